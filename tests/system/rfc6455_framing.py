"""Cases of groups 1 and 2: the base framing of messages, and pings with their pongs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rfc6455_records import (
    AT_ONCE,
    BINARY,
    BY_FRAME,
    BY_OCTET,
    CLOSE,
    PING,
    PONG,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    Case,
    Maybe,
    Wait,
    Way,
    answers,
    binary,
    chopped,
    close_frame,
    closes,
    echoes,
    fails,
    frame,
    ping,
    pong,
    pongs,
    text,
)
from wsproto.events import CloseConnection, Pong

#: Around the bounds of the three forms of a length (RFC 6455, section 5.2).
SIZES: Final = (0, 1, 125, 126, 127, 128, 65535, 65536)


def letters(size: int) -> str:
    """Text of `size` octets in which no two neighbours are alike."""
    return ("".join(map(chr, range(33, 122))) * (size // 89 + 1))[:size]


def octets(size: int) -> bytes:
    """Binary data in which every octet has its turn."""
    return (bytes(range(256))[:251] * (size // 251 + 1))[:size]


def ways_for(size: int) -> tuple[Way, ...]:
    """Small messages go octet by octet too, large ones in chops that fit to nothing."""
    return (AT_ONCE, BY_OCTET) if size < 200 else (AT_ONCE, chopped(997))


def _count(size: int) -> str:
    return "one octet" if size == 1 else f"{size} octets"


def _sizes() -> Iterator[Case]:
    for number, size in enumerate(SIZES, 1):
        yield echoes(
            f"1.1.{number}",
            f"A text message of {_count(size)} is echoed",
            "5.2, 5.6",
            letters(size),
            ways=ways_for(size),
        )
    for number, size in enumerate(SIZES, 1):
        yield echoes(
            f"1.2.{number}",
            f"A binary message of {_count(size)} is echoed",
            "5.2, 5.6",
            octets(size),
            ways=ways_for(size),
        )


def _masks() -> Iterator[Case]:
    masks = {
        "A mask of zeros": bytes(4),
        "A mask of ones": b"\xff" * 4,
        "A mask that is zero but for its first octet": b"\x5a\0\0\0",
        "A mask that is zero but for its last octet": b"\0\0\0\x5a",
    }
    for number, (what, mask) in enumerate(masks.items(), 1):
        sent = letters(131)
        yield answers(
            f"1.3.{number}",
            f"{what} is taken off",
            "5.3",
            [frame(TEXT, sent.encode(), mask=mask)],
            text(sent),
        )
    yield answers(
        "1.3.5",
        "Each frame is unmasked with its own mask, from the mask's first octet on",
        "5.3",
        [
            frame(BINARY, octets(7), final=False, mask=b"\x01\x02\x04\x08"),
            frame(0, octets(5), final=False, mask=b"\x80\x40\x20\x10"),
            frame(0, octets(6), mask=b"\xff\0\xff\0"),
        ],
        binary(octets(7) + octets(5) + octets(6)),
    )
    unmasked = {
        "A text message": frame(TEXT, b"hello", mask=None),
        "A binary message": frame(BINARY, b"hello", mask=None),
        "An empty message": frame(TEXT, mask=None),
        "A ping": frame(PING, b"hello", mask=None),
        "A pong": frame(PONG, b"hello", mask=None),
        "A close frame": frame(CLOSE, b"\x03\xe8", mask=None),
    }
    for number, (what, data) in enumerate(unmasked.items(), 1):
        yield fails(f"1.4.{number}", f"{what} without a mask fails the connection", "5.1", data)


def _lengths() -> Iterator[Case]:
    longer = [(2, 0), (2, 125), (8, 0), (8, 125), (8, 126), (8, 65535)]
    for number, (size, length) in enumerate(longer, 1):
        yield fails(
            f"1.5.{number}",
            f"A length of {length} in {size} more octets, not the fewest, fails the connection",
            "5.2",
            frame(BINARY, octets(length), length_size=size),
            ways=(AT_ONCE, BY_FRAME, BY_OCTET if length < 200 else chopped(997)),
        )
    for number, length in enumerate((1 << 63, (1 << 64) - 1), 7):
        yield fails(
            f"1.5.{number}",
            f"A length of {length:#x}, with its first bit set, fails the connection"
            " (1009 would do too)",
            "5.2",
            frame(BINARY, announced=length),
            code=(PROTOCOL_ERROR, TOO_BIG),
            unfinished=True,
            ways=(AT_ONCE, BY_OCTET),
        )


def _streams() -> Iterator[Case]:
    yield answers(
        "1.6.1",
        "A hundred messages in a row are echoed in their order",
        "5.4, 5.6",
        [text(f"number {n}") for n in range(100)],
        *[text(f"number {n}") for n in range(100)],
        ways=(AT_ONCE, BY_FRAME, chopped(7)),
    )
    mixed = ["one", b"\x02", "", b"", "\u4e94", b"\xff\xfe"]
    yield echoes("1.6.2", "Text and binary messages in turns keep their kinds", "5.6", *mixed)
    yield echoes(
        "1.6.3",
        "Binary data that looks like frames is data",
        "5.6",
        close_frame() + frame(PING, b"no ping"),
    )


def _pings() -> Iterator[Case]:
    payloads = {
        "without payload": b"",
        "with text": b"Hello, world!",
        "with binary payload": b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff",
        "with one octet": b"\x00",
        "with 124 octets": octets(124),
        "with 125 octets": octets(125),
        "with what would be the text of a close frame": b"\x03\xe8goodbye",
    }
    for number, (what, payload) in enumerate(payloads.items(), 1):
        yield answers(
            f"2.1.{number}",
            f"A ping {what} is answered by a pong with the same",
            "5.5.2, 5.5.3",
            [ping(payload)],
            pong(payload),
        )
    too_long = {
        "A ping with 126 octets": frame(PING, octets(126)),
        "A ping with 65536 octets": frame(PING, octets(65536)),
        "A ping with its length in two more octets": frame(PING, octets(125), length_size=2),
        "A pong with 126 octets": frame(PONG, octets(126)),
    }
    for number, (what, data) in enumerate(too_long.items(), 1):
        yield fails(
            f"2.2.{number}",
            f"{what} fails the connection",
            "5.5",
            data,
            ways=(AT_ONCE, BY_FRAME, BY_OCTET if len(data) < 200 else chopped(997)),
        )
    head, rest = frame(PING, octets(126))[:8], frame(PING, octets(126))[8:]
    yield fails(
        "2.2.5",
        "A ping that is too long fails the connection before its payload has come",
        "5.5",
        head,
        Wait(CloseConnection),
        rest,
    )


def _pongs() -> Iterator[Case]:
    yield answers("2.3.1", "A pong nobody asked for is ignored", "5.5.3", [pong()])
    yield answers(
        "2.3.2",
        "A pong with payload nobody asked for is ignored",
        "5.5.3",
        [pong(b"unasked")],
    )
    yield answers(
        "2.3.3",
        "A pong nobody asked for, with 125 octets that are no UTF-8, is ignored",
        "5.5.3",
        [pong(b"\xff" * 125)],
    )
    yield answers(
        "2.3.4",
        "A ping after a pong nobody asked for is answered",
        "5.5.3",
        [pong(b"unasked"), ping(b"asked")],
        pong(b"asked"),
    )
    yield answers(
        "2.3.5",
        "A pong with the payload of the ping before it changes nothing",
        "5.5.3",
        [ping(b"same"), pong(b"same"), text("after")],
        pong(b"same"),
        text("after"),
    )
    ten = [b"number %d" % n for n in range(10)]
    yield answers(
        "2.4.1",
        "Ten pings in a row are answered in order, or the last of them for those before it",
        "5.5.3",
        [ping(payload) for payload in ten],
        *pongs(*ten),
    )
    steps = [step for payload in ten for step in (ping(payload), Wait(Pong))]
    yield answers(
        "2.4.2",
        "Ten pings of which each waits for the pong before it are all answered",
        "5.5.2",
        steps,
        *[pong(payload) for payload in ten],
        ways=(BY_FRAME, BY_OCTET),
    )
    yield answers(
        "2.4.3",
        "Pings between messages are answered in their place, the last of them for all or each",
        "5.5.2",
        [ping(b"1"), text("a"), ping(b"2"), text("b"), ping(b"3")],
        Maybe(pong(b"1")),
        text("a"),
        Maybe(pong(b"2")),
        text("b"),
        pong(b"3"),
    )
    yield answers(
        "2.4.4",
        "The text of a message is unharmed by a ping that is no UTF-8",
        "5.5.2",
        [ping(b"\xe4\xb8"), text("\u4e2d")],
        pong(b"\xe4\xb8"),
        text("\u4e2d"),
    )
    yield closes(
        "2.4.5",
        "A ping right before the close frame is answered or left",
        "5.5.2",
        ping(b"last"),
        close_frame(),
        came=[Maybe(pong(b"last"))],
    )


CASES: Final = (
    *_sizes(),
    *_masks(),
    *_lengths(),
    *_streams(),
    *_pings(),
    *_pongs(),
)
