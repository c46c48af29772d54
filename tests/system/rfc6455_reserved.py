"""Cases of groups 3 and 4: bits and opcodes that are reserved, and fail the connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rfc6455_records import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Case,
    fails,
    frame,
    text,
)

_KINDS: Final = {
    "text message": (TEXT, b"hello"),
    "binary message": (BINARY, b"\x00\x01\x02"),
    "ping": (PING, b"hello"),
}
#: Bits of which one is reserved for each, from RSV1 on.
_BITS: Final = {1: "RSV3", 2: "RSV2", 3: "RSV2 and RSV3", 4: "RSV1", 5: "RSV1 and RSV3"} | {
    6: "RSV1 and RSV2",
    7: "all three reserved bits",
}


def _reserved_bits() -> Iterator[Case]:
    for group, (what, (opcode, payload)) in enumerate(_KINDS.items(), 1):
        for rsv, bits in _BITS.items():
            yield fails(
                f"3.{group}.{rsv}",
                f"A {what} with {bits} set fails the connection",
                "5.2",
                frame(opcode, payload, rsv=rsv),
            )
    rest = {
        "An empty text message": [frame(TEXT, rsv=4)],
        "A pong": [frame(PONG, b"hello", rsv=4)],
        "A close frame": [frame(CLOSE, b"\x03\xe8", rsv=4)],
        "A first fragment": [frame(TEXT, b"hello", rsv=4, final=False)],
        "A later fragment": [
            frame(TEXT, b"hel", final=False),
            frame(CONTINUATION, b"lo", rsv=4),
        ],
    }
    for number, (what, frames) in enumerate(rest.items(), 1):
        title = f"{what} with RSV1 set fails the connection"
        yield fails(f"3.4.{number}", title, "5.2", *frames)
    yield fails(
        "3.5.1",
        "A message before a frame with a reserved bit is echoed, and nothing after it",
        "5.2, 7.1.7",
        frame(TEXT, b"before"),
        frame(TEXT, b"bad", rsv=1),
        came=[text("before")],
    )
    yield fails(
        "3.5.2",
        "RSV1 fails the connection where compression was offered and not accepted",
        "5.2, 9.1",
        frame(TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", rsv=4),
        offers="permessage-deflate; server_max_window_bits=8",
    )


def _reserved_opcodes() -> Iterator[Case]:
    opcodes = {1: ("non-control", range(3, 8)), 2: ("control", range(11, 16))}
    for group, (what, numbers) in opcodes.items():
        for opcode in numbers:
            number = 2 * (opcode - numbers.start)
            for more, (size, payload) in enumerate({"no": b"", "some": b"hello"}.items(), 1):
                yield fails(
                    f"4.{group}.{number + more}",
                    f"The reserved {what} opcode {opcode:#x} with {size} payload fails"
                    " the connection, after a message that is echoed",
                    "5.2",
                    frame(TEXT, b"before"),
                    frame(opcode, payload),
                    came=[text("before")],
                )
    inside = frame(TEXT, b"un", final=False)
    yield fails(
        "4.3.1",
        "A reserved non-control opcode between fragments fails the connection",
        "5.2",
        inside,
        frame(3, b"hello"),
        frame(CONTINUATION, b"finished"),
    )
    yield fails(
        "4.3.2",
        "A reserved control opcode between fragments fails the connection",
        "5.2",
        inside,
        frame(11, b"hello"),
        frame(CONTINUATION, b"finished"),
    )
    yield fails(
        "4.3.3",
        "A reserved control opcode in fragments fails the connection",
        "5.2, 5.5",
        frame(12, b"hel", final=False),
        frame(CONTINUATION, b"lo"),
    )
    yield fails(
        "4.3.4",
        "A reserved opcode with 126 octets of payload fails the connection",
        "5.2, 5.5",
        frame(15, b"x" * 126),
    )


CASES: Final = (*_reserved_bits(), *_reserved_opcodes())
