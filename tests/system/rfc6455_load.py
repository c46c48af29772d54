"""Cases of group 9: large messages, many fragments, chopped writes, rows of messages, the limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rfc6455_framing import letters, octets
from rfc6455_records import (
    AT_ONCE,
    BINARY,
    BY_FRAME,
    CONTINUATION,
    MAX_MESSAGE,
    TEXT,
    TOO_BIG,
    Case,
    Fragments,
    Step,
    Wait,
    answers,
    binary,
    chopped,
    echoes,
    fails,
    frame,
    ping,
    pong,
    said,
)
from wsproto.events import BytesMessage, CloseConnection, Event, Pong, TextMessage

KIB: Final = 1024
MIB: Final = 1024 * KIB
_LETTERS, _OCTETS = letters(4 * MIB), octets(4 * MIB)
#: The same in characters of three octets.
_CHARACTERS: Final = "\u4e2d\u6587" * (MIB // 6)


def _large() -> Iterator[Case]:
    sizes = (64 * KIB, 256 * KIB, MIB, 4 * MIB)
    for number, size in enumerate(sizes, 1):
        title = f"A text message of {size // KIB} KiB is echoed"
        yield echoes(f"9.1.{number}", title, "5.2, 5.6", _LETTERS[:size], ways=(AT_ONCE,))
    for number, size in enumerate(sizes, 1):
        title = f"A binary message of {size // KIB} KiB is echoed"
        yield echoes(f"9.2.{number}", title, "5.2, 5.6", _OCTETS[:size], ways=(AT_ONCE,))
    yield echoes(
        "9.1.5",
        "A text message of 1 MiB in characters of three octets is echoed",
        "5.6, 8.1",
        _CHARACTERS,
        ways=(AT_ONCE, chopped(1001)),
    )


def _fragmented() -> Iterator[Case]:
    sizes = {64: 256 * KIB, 256: 256 * KIB, KIB: MIB, 4 * KIB: MIB, 16 * KIB: 4 * MIB} | {
        64 * KIB: 4 * MIB,
        256 * KIB: 4 * MIB,
        MIB: 4 * MIB,
    }
    for group, (what, data) in enumerate({"text": _LETTERS, "binary": _OCTETS}.items(), 3):
        for number, (size, length) in enumerate(sizes.items(), 1):
            whole = data[:length]
            yield answers(
                f"9.{group}.{number}",
                f"A {what} message of {length // KIB} KiB in fragments of {size} octets is echoed",
                "5.4",
                [Fragments(whole, size)],
                said(whole),
                ways=(AT_ONCE, BY_FRAME),
            )


def _chopped() -> Iterator[Case]:
    sizes = (64, 128, 256, 512, KIB, 2 * KIB)
    for group, (what, data) in enumerate({"text": _LETTERS, "binary": _OCTETS}.items(), 5):
        for number, size in enumerate(sizes, 1):
            length = 8 * KIB * size if size < 256 else MIB
            yield echoes(
                f"9.{group}.{number}",
                f"A {what} message of {length // KIB} KiB in writes of {size} octets is echoed",
                "5.2",
                data[:length],
                ways=(chopped(size),),
            )


def _rows() -> Iterator[Case]:
    for group, data in enumerate((_LETTERS, _OCTETS), 7):
        what = "text" if isinstance(data, str) else "binary"
        for number, size in enumerate((0, 16, 64, 256, KIB, 4 * KIB, 16 * KIB), 1):
            message = said(data[:size])
            yield answers(
                f"9.{group}.{number}",
                f"Two hundred {what} messages of {size} octets in a row are all echoed",
                "5.4, 5.6",
                [message] * 200,
                *[message] * 200,
                ways=(AT_ONCE, BY_FRAME),
            )
        kind: type[Event] = TextMessage if isinstance(data, str) else BytesMessage
        steps: list[Step] = [step for _ in range(100) for step in (said(data[:99]), Wait(kind))]
        yield answers(
            f"9.{group}.8",
            f"A hundred {what} messages of which each waits for the echo before it are echoed",
            "5.4, 5.6",
            steps,
            *[said(data[:99])] * 100,
            ways=(BY_FRAME,),
        )


def _limit() -> Iterator[Case]:
    whole = octets(MAX_MESSAGE)
    yield echoes(
        "9.9.1",
        "A message of just the server's limit is echoed",
        "10.4",
        whole,
        ways=(AT_ONCE,),
    )
    head = frame(BINARY, announced=MAX_MESSAGE + 1)
    yield fails(
        "9.9.2",
        "A frame over the server's limit fails the connection before its payload has come",
        "7.4.1, 10.4",
        head,
        Wait(CloseConnection),
        code=TOO_BIG,
        unfinished=True,
        ways=(AT_ONCE, BY_FRAME),
    )
    yield fails(
        "9.9.3",
        "A frame that announces the most octets there can be fails the connection",
        "7.4.1, 10.4",
        frame(TEXT, announced=(1 << 63) - 1),
        code=TOO_BIG,
        unfinished=True,
        ways=(AT_ONCE, BY_FRAME),
    )
    yield fails(
        "9.9.4",
        "Fragments over the server's limit together fail the connection",
        "7.4.1, 10.4",
        frame(BINARY, whole[: MAX_MESSAGE // 2], final=False),
        frame(CONTINUATION, whole[: MAX_MESSAGE // 2], final=False),
        frame(CONTINUATION, b"x"),
        code=TOO_BIG,
        ways=(AT_ONCE,),
    )
    yield answers(
        "9.9.5",
        "A ping between two large fragments is answered before the second has come",
        "5.4, 5.5.2",
        [said(_OCTETS[:MIB], final=False), ping(b"now"), Wait(Pong), said(_OCTETS[MIB : 2 * MIB])],
        pong(b"now"),
        binary(_OCTETS[: 2 * MIB]),
        ways=(BY_FRAME,),
    )


CASES: Final = (*_large(), *_fragmented(), *_chopped(), *_rows(), *_limit())
