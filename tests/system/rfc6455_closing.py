"""Cases of group 7: the closing handshake, what its frames may hold, and which codes are valid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rfc6455_framing import letters
from rfc6455_records import (
    AT_ONCE,
    BINARY,
    CLOSE,
    INVALID_PAYLOAD,
    NORMAL,
    PING,
    PROTOCOL_ERROR,
    TEXT,
    Case,
    Maybe,
    Wait,
    binary,
    chopped,
    close_frame,
    closes,
    fails,
    frame,
    replies,
    said,
    text,
)
from wsproto.events import BytesMessage, CloseConnection, TextMessage


def _behaviour() -> Iterator[Case]:
    yield closes("7.1.1", "A close before any message is answered", "5.5.1, 7.1.2", close_frame())
    yield closes(
        "7.1.2",
        "A close as wsproto sends it after an echo is answered",
        "5.5.1, 7.1.2",
        text("hello"),
        Wait(TextMessage),
        CloseConnection(code=NORMAL, reason="done"),
        came=[text("hello")],
    )
    yield closes(
        "7.1.3",
        "A message right before a close is echoed, or given up with all that waits",
        "5.5.1",
        text("last words"),
        close_frame(),
        came=[Maybe(text("last words"))],
    )
    yield closes(
        "7.1.4",
        "A second close frame is not answered",
        "5.5.1",
        close_frame(),
        close_frame(),
        abrupt=True,
    )
    late = {
        "ping": frame(PING, b"late"),
        "text message": frame(TEXT, b"late"),
        "binary message": frame(BINARY, b"late"),
        "invalid frame": frame(3, b"late"),
    }
    for number, (what, data) in enumerate(late.items(), 5):
        yield closes(
            f"7.1.{number}",
            f"A {what} after a close frame is not answered",
            "5.5.1, 7.1.2",
            close_frame(),
            data,
            abrupt=True,
        )
    size = 256 * 1024
    yield Case(
        "7.1.9",
        "A large message right before a close is echoed whole, or given up whole",
        "5.5.1",
        (said(letters(size)), close_frame()),
        (Maybe(text(letters(size))),),
        ways=(AT_ONCE, chopped(4096)),
        closed_by="client",
    )
    yield closes(
        "7.1.10",
        "A close after a message that began is answered, and nothing is echoed",
        "5.4, 5.5.1",
        frame(TEXT, b"half", final=False),
        close_frame(),
    )
    yield closes(
        "7.1.11",
        "A close frame in the middle of another frame is that frame's data",
        "5.2",
        frame(BINARY, close_frame()),
        Wait(BytesMessage),
        close_frame(),
        came=[binary(close_frame())],
    )
    for number, (what, answer) in enumerate(
        {
            "with another code": close_frame(4000, b"as you say"),
            "without a code": close_frame(None),
            "that is invalid itself": frame(CLOSE, b"\x03"),
        }.items(),
        12,
    ):
        yield Case(
            f"7.1.{number}",
            f"An answer {what} to the close of a failed connection ends it all the same",
            "7.1.2, 7.1.7",
            (frame(3), Wait(CloseConnection), answer),
            close=frozenset({PROTOCOL_ERROR}),
            closed_by="client",
            abrupt=True,
        )
    yield Case(
        "7.1.15",
        "Frames before the answer to the close of a failed connection are not answered",
        "7.1.2, 7.1.7",
        (
            frame(3),
            Wait(CloseConnection),
            frame(PING, b"late"),
            frame(TEXT, b"late"),
            close_frame(),
        ),
        close=frozenset({PROTOCOL_ERROR}),
        closed_by="client",
        abrupt=True,
    )


def _payloads() -> Iterator[Case]:
    section = "5.5.1"
    yield closes("7.3.1", "A close without payload is answered", section, close_frame(None))
    yield fails(
        "7.3.2",
        "A close with one octet of payload fails the connection",
        section,
        frame(CLOSE, b"\x03"),
    )
    reasons = {
        "a code and no reason": "",
        "a reason of one octet": "x",
        "a reason": "Hello, world!",
        "a reason of 122 octets": "x" * 122,
        "a reason of 123 octets": "x" * 123,
        "a reason with characters of two to four octets": "\u00e9\u4e2d\U0001f600",
        "a reason of 41 characters in 123 octets": "\u4e2d" * 41,
    }
    for number, (what, reason) in enumerate(reasons.items(), 3):
        yield closes(
            f"7.3.{number}",
            f"A close with {what} is answered",
            section,
            close_frame(NORMAL, reason.encode()),
        )
    yield fails(
        "7.3.10",
        "A close with a reason of 124 octets fails the connection",
        "5.5, 5.5.1",
        close_frame(NORMAL, b"x" * 124),
    )
    bad = {
        "an impossible octet": b"ab\xff",
        "a continuation octet alone": b"\x80",
        "a cut character": b"cut \xe4\xb8",
        "a surrogate": b"\xed\xa0\x80",
        "an overlong slash": b"\xc0\xaf",
        "123 octets of which the last is wrong": b"x" * 122 + b"\xc3",
    }
    for number, (what, reason) in enumerate(bad.items(), 1):
        yield fails(
            f"7.5.{number}",
            f"A close whose reason has {what} fails the connection",
            "5.5.1, 8.1",
            close_frame(NORMAL, reason),
            code=INVALID_PAYLOAD,
        )


_VALID: Final = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
_INVALID: Final = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999)
#: In the registry since, or beyond all ranges of the RFC.
_EITHER: Final = (1012, 1013, 1014, 5000, 65535)


def _codes() -> Iterator[Case]:
    for number, code in enumerate(_VALID, 1):
        yield closes(
            f"7.7.{number}",
            f"A close with {code} is answered",
            "7.4.1" if code < 3000 else "7.4.2",
            close_frame(code),
            code=replies(code),
        )
    for number, code in enumerate(_INVALID, 1):
        yield fails(
            f"7.9.{number}",
            f"A close with {code} fails the connection",
            "7.4.1" if code in (1004, 1005, 1006, 1015) else "7.4.2",
            close_frame(code),
        )
    yield fails(
        "7.9.12",
        "A close with 1005 and a reason fails the connection",
        "7.4.1",
        close_frame(1005, b"no code"),
    )
    for number, code in enumerate(_EITHER, 1):
        yield closes(
            f"7.13.{number}",
            f"A close with {code} is answered, or fails the connection",
            "7.4.2",
            close_frame(code),
            code=replies(code) | {PROTOCOL_ERROR},
        )


CASES: Final = (*_behaviour(), *_payloads(), *_codes())
