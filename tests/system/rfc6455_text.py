"""Cases of group 6: text is UTF-8 (RFC 3629), and what is not fails the connection at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rfc6455_records import (
    AT_ONCE,
    BINARY,
    BY_FRAME,
    BY_OCTET,
    CONTINUATION,
    IN_FRAGMENTS,
    INVALID_PAYLOAD,
    TEXT,
    Case,
    Fragments,
    Text,
    Wait,
    answers,
    binary,
    echoes,
    fails,
    frame,
    in_octets,
    text,
)
from wsproto.events import CloseConnection

#: Characters of one, two, three and four octets.
MIXED: Final = "a\u00e9\u4e2d\U0001f600 \u03ba\u1f79\u03c3\u03bc\u03b5 \u042f\u05d0 \U00010348z"
_WAYS: Final = (AT_ONCE, BY_OCTET, IN_FRAGMENTS)
#: Around the ends of blocks in which a validator may read.
_OFFSETS: Final = (7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128)


def valid(id: str, title: str, payload: str) -> Case:
    """Text that is echoed."""
    data = Text(payload.encode())
    return Case(id, f"{title} is echoed", "5.6, 8.1", (data,), (text(payload),), ways=_WAYS)


def invalid(id: str, title: str, data: bytes) -> Case:
    """Text that fails the connection."""
    title = f"{title} fails the connection"
    return fails(id, title, "5.6, 8.1", Text(data), code=INVALID_PAYLOAD, ways=_WAYS)


def numbered(
    prefix: str, make: Callable[[str, str, Any], Case], cases: Mapping[str, str | bytes]
) -> Iterator[Case]:
    """Cases of one kind, in order."""
    for number, (title, data) in enumerate(cases.items(), 1):
        yield make(f"{prefix}.{number}", title, data)


def _cut() -> Iterator[Case]:
    yield echoes("6.1.1", "Text of no octets is echoed", "5.6", "")
    yield answers(
        "6.1.2",
        "Text between empty fragments is echoed",
        "5.4, 5.6",
        [frame(TEXT, final=False), frame(0, "\u4e2d".encode(), final=False), frame(0)],
        text("\u4e2d"),
    )
    yield echoes("6.2.1", "Text of characters of one to four octets is echoed", "5.6, 8.1", MIXED)
    yield answers(
        "6.2.2",
        "Text in fragments of whole characters is echoed",
        "5.4, 5.6",
        [Fragments(MIXED, 1)],
        text(MIXED),
    )
    data = MIXED.encode()
    yield answers(
        "6.2.3",
        "Text in fragments that cut its characters is echoed",
        "5.4, 5.6",
        in_octets(data),
        text(MIXED),
    )
    yield answers(
        "6.2.4",
        "A character cut by an empty fragment and by a ping's pong is whole",
        "5.4, 5.6",
        [
            frame(TEXT, data[:7], final=False),
            frame(CONTINUATION, final=False),
            frame(10, b"\xff"),
            frame(CONTINUATION, data[7:]),
        ],
        text(MIXED),
    )
    yield answers(
        "6.2.5",
        "Four octets of a character at every place among 130 others are echoed",
        "5.6, 8.1",
        [text("x" * at + "\U0001f600" + "y" * (130 - at)) for at in range(131)],
        *[text("x" * at + "\U0001f600" + "y" * (130 - at)) for at in range(131)],
        ways=(AT_ONCE, BY_FRAME),
    )
    yield answers(
        "6.2.6",
        "Binary data that is no UTF-8 is echoed",
        "5.6",
        [frame(BINARY, b"\xff\xc0\x80\xed\xa0\x80"), *in_octets(b"\xff\xfe", BINARY)],
        binary(b"\xff\xc0\x80\xed\xa0\x80"),
        binary(b"\xff\xfe"),
    )


#: Text that goes wrong in its second half.
_GOOD, _BAD, _REST = MIXED.encode() + b"\xed", b"\xa0", b"\x80edited"


def _fail_fast() -> Iterator[Case]:
    whole = _GOOD + _BAD + _REST
    code = INVALID_PAYLOAD
    yield invalid("6.3.1", "Text that goes wrong in its second half", whole)
    late = Wait(CloseConnection)
    ways = (BY_FRAME, BY_OCTET)
    yield fails(
        "6.3.2",
        "A fragment that makes text invalid fails the connection before the next",
        "8.1",
        frame(TEXT, _GOOD, final=False),
        frame(CONTINUATION, _BAD, final=False),
        late,
        frame(CONTINUATION, _REST),
        code=code,
        ways=ways,
    )
    sent = frame(TEXT, whole)
    end = len(sent) - len(_REST)
    yield fails(
        "6.3.3",
        "An octet that makes text invalid fails the connection before the frame's rest",
        "8.1",
        sent[: end - 1],
        sent[end - 1 : end],
        late,
        sent[end:],
        code=code,
        ways=ways,
    )
    long = frame(TEXT, b"\xff" + b"x" * 70_000)
    yield fails(
        "6.3.4",
        "A first octet that makes text invalid fails the connection before a long frame's rest",
        "8.1",
        long[:15],
        late,
        long[15:],
        code=code,
        ways=(BY_FRAME,),
    )
    yield fails(
        "6.3.5",
        "A message before invalid text is echoed, and one after it is not",
        "7.1.7, 8.1",
        frame(TEXT, b"before"),
        frame(TEXT, b"\x80"),
        came=[text("before")],
        code=code,
    )
    yield fails(
        "6.3.6",
        "A character cut by the end of a message is not made whole by the next",
        "8.1",
        frame(TEXT, b"\xe4\xb8"),
        frame(TEXT, b"\xad"),
        code=code,
    )
    yield fails(
        "6.3.7",
        "A character cut by the end of the last fragment fails the connection",
        "8.1",
        frame(TEXT, b"\xe4", final=False),
        frame(CONTINUATION, b"\xb8"),
        code=code,
    )


def _offsets() -> Iterator[Case]:
    for number, at in enumerate(_OFFSETS, 1):
        yield invalid(
            f"6.4.{number}",
            f"An impossible octet after {at} others of a long text",
            b"x" * at + b"\xff" + b"y" * 130,
        )
    for number, at in enumerate(_OFFSETS, 1):
        yield invalid(
            f"6.5.{number}",
            f"Text of {at} octets whose last character is cut",
            b"x" * (at - 2) + b"\xe4\xb8",
        )


def _prefixes() -> Iterator[Case]:
    data = "\u03ba\u1f79\u03c3\u03bc\u03b5".encode()
    for size in range(1, len(data) + 1):
        part = data[:size]
        title = f"The first {size} octets of a Greek word"
        try:
            yield valid(f"6.6.{size}", title, part.decode())
        except UnicodeDecodeError:
            yield invalid(f"6.6.{size}", f"{title}, which cut a character,", part)


CASES: Final = (*_cut(), *_fail_fast(), *_offsets(), *_prefixes())
