"""Cases of groups 5 and 10: messages in fragments, what may come between, automatic fragments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rfc6455_framing import letters, octets
from rfc6455_records import (
    AT_ONCE,
    BINARY,
    BY_FRAME,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Case,
    Fragments,
    Maybe,
    Step,
    Wait,
    answers,
    binary,
    chopped,
    close_frame,
    closes,
    fails,
    frame,
    ping,
    pong,
    said,
    text,
)
from wsproto.events import Event, Pong


def _parts(*pieces: str | bytes) -> list[Event]:
    """The fragments of one message."""
    return [said(piece, final=False) for piece in pieces[:-1]] + [said(pieces[-1])]


def _put_together() -> Iterator[Case]:
    def whole(number: int, title: str, *pieces: str) -> Iterator[Case]:
        yield answers(f"5.1.{number}", title, "5.4", _parts(*pieces), text("".join(pieces)))

    yield from whole(1, "A text message in two fragments is put together", "frag", "ments")
    yield from whole(2, "A text message in five fragments is put together", *"abcde")
    yield from whole(3, "An empty first fragment adds nothing", "", "rest")
    yield from whole(4, "An empty last fragment ends the message", "first", "")
    yield from whole(5, "Empty fragments in the middle add nothing", "a", "", "", "z")
    yield from whole(6, "A message in three empty fragments is empty", "", "", "")
    yield from whole(
        7, "Fragments may have lengths of all three forms", "x", *map(letters, (125, 126, 127, 300))
    )
    yield answers(
        "5.1.8",
        "A binary message in fragments is put together as binary",
        "5.4, 5.6",
        _parts(b"\x00\xff", b"", b"\x80", b"\xfe\xfe"),
        binary(b"\x00\xff\x80\xfe\xfe"),
    )
    yield answers(
        "5.1.9",
        "A text message in fragments, then a binary one, then a whole one, are three messages",
        "5.4",
        [*_parts("a", "b"), *_parts(b"c", b"d"), text("e")],
        text("ab"),
        binary(b"cd"),
        text("e"),
    )
    yield answers(
        "5.1.10",
        "A message in a thousand fragments of one octet is put together",
        "5.4",
        [Fragments(letters(1000), 1)],
        text(letters(1000)),
        ways=(AT_ONCE, BY_FRAME, chopped(5)),
    )


def _between() -> Iterator[Case]:
    first, last = said("first, ", final=False), said("last")
    yield answers(
        "5.2.1",
        "A ping between fragments is answered",
        "5.4, 5.5",
        [first, ping(b"between"), last],
        pong(b"between"),
        text("first, last"),
    )
    yield answers(
        "5.2.2",
        "A ping between fragments is answered before the message is complete",
        "5.4, 5.5",
        [first, ping(b"between"), Wait(Pong), last],
        pong(b"between"),
        text("first, last"),
    )
    yield answers(
        "5.2.3",
        "A ping with 125 octets between fragments is answered",
        "5.4, 5.5",
        [first, ping(octets(125)), last],
        pong(octets(125)),
        text("first, last"),
    )
    yield answers(
        "5.2.4",
        "A pong between fragments is ignored",
        "5.4, 5.5",
        [first, pong(b"between"), last],
        text("first, last"),
    )
    steps: list[Step] = [ping(b"0"), Wait(Pong)]
    for number, part in enumerate(_parts("a", "b", "", "d", "e"), 1):
        steps += [part, ping(b"%d" % number), Wait(Pong)]
    yield answers(
        "5.2.5",
        "Pings before, between and after fragments are answered one by one",
        "5.4, 5.5",
        steps,
        *[pong(b"%d" % number) for number in range(5)],
        text("abde"),
        pong(b"5"),
    )
    yield answers(
        "5.2.6",
        "Pings between empty fragments are answered, the last of them for those before or each",
        "5.4, 5.5.3",
        [said("", final=False), ping(b"1"), said("", final=False), ping(b"2"), said("")],
        Maybe(pong(b"1")),
        pong(b"2"),
        text(""),
    )
    yield closes(
        "5.2.7",
        "A close frame between fragments is answered, and the message is never echoed",
        "5.4, 5.5.1",
        first,
        close_frame(),
    )
    yield closes(
        "5.2.8",
        "The rest of a message after a close frame is not echoed",
        "5.4, 5.5.1",
        frame(TEXT, b"first", final=False),
        close_frame(),
        frame(CONTINUATION, b"last"),
        abrupt=True,
    )


def _control_in_fragments() -> Iterator[Case]:
    kinds = {"ping": PING, "pong": PONG}
    for number, (what, opcode) in enumerate(kinds.items(), 1):
        yield fails(
            f"5.3.{number}",
            f"A {what} in two fragments fails the connection",
            "5.4, 5.5",
            frame(opcode, b"frag", final=False),
            frame(CONTINUATION, b"ments"),
        )
    yield fails(
        "5.3.3",
        "A close frame in two fragments fails the connection",
        "5.4, 5.5",
        frame(CLOSE, b"\x03", final=False),
        frame(CONTINUATION, b"\xe8"),
    )
    yield fails(
        "5.3.4",
        "A ping in fragments between those of a message fails the connection",
        "5.4, 5.5",
        frame(TEXT, b"first", final=False),
        frame(PING, b"frag", final=False),
        frame(CONTINUATION, b"last"),
    )


def _out_of_order() -> Iterator[Case]:
    nothing = {
        "A last fragment": frame(CONTINUATION, b"lost"),
        "A fragment that is not the last": frame(CONTINUATION, b"lost", final=False),
        "An empty last fragment": frame(CONTINUATION),
    }
    for number, (what, lost) in enumerate(nothing.items(), 1):
        yield fails(
            f"5.4.{number}",
            f"{what} with nothing to continue fails the connection",
            "5.4",
            lost,
        )
    complete = [frame(TEXT, b"a", final=False), frame(CONTINUATION, b"b")]
    for number, (what, lost) in enumerate(nothing.items(), 4):
        yield fails(
            f"5.4.{number}",
            f"{what} after a complete message fails the connection, and the message is echoed",
            "5.4",
            *complete,
            lost,
            came=[text("ab")],
        )
    yield fails(
        "5.4.7",
        "A fragment to continue a message that came whole fails the connection",
        "5.4",
        frame(TEXT, b"whole"),
        frame(CONTINUATION, b"lost"),
        came=[text("whole")],
    )
    kinds = {"text": TEXT, "binary": BINARY}
    number = 0
    for outer, opcode in kinds.items():
        for inner, other in kinds.items():
            for final in (True, False):
                number += 1
                title = (
                    f"A {inner} message {'as a whole' if final else 'in fragments'} within"
                    f" the fragments of a {outer} one fails the connection"
                )
                yield fails(
                    f"5.5.{number}",
                    title,
                    "5.4",
                    frame(opcode, b"first", final=False),
                    frame(other, b"inner", final=final),
                    frame(CONTINUATION, b"last"),
                )


def _automatic() -> Iterator[Case]:
    for number, size in enumerate((1300, 1, 125, 126, 65535), 1):
        length = 65536 if size > 1 else 4000
        yield answers(
            f"10.1.{number}",
            f"A text message of {length} octets in fragments of {size} is put together",
            "5.4",
            [Fragments(letters(length), size)],
            text(letters(length)),
            ways=(AT_ONCE, BY_FRAME, chopped(997)),
        )
    yield answers(
        "10.2.1",
        "A binary message of 65536 octets in fragments of 1300 is put together",
        "5.4",
        [Fragments(octets(65536), 1300)],
        binary(octets(65536)),
        ways=(AT_ONCE, BY_FRAME, chopped(997)),
    )
    yield answers(
        "10.2.2",
        "Fragmented messages in a row are put together each for itself",
        "5.4",
        [Fragments(letters(3000), 700), Fragments(octets(3000), 701), Fragments(letters(1), 1)],
        text(letters(3000)),
        binary(octets(3000)),
        text(letters(1)),
        ways=(AT_ONCE, BY_FRAME, chopped(997)),
    )


CASES: Final = (
    *_put_together(),
    *_between(),
    *_control_in_fragments(),
    *_out_of_order(),
)
AUTOMATIC: Final = tuple(_automatic())
