"""What a case of the conformance suite is: what is sent, in which ways, and what must come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from wsproto.events import (
    BytesMessage,
    Event,
    Message,
    Ping,
    Pong,
    TextMessage,
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
#: The mask of the examples in RFC 6455, section 5.7.
MASK: Final = b"\x37\xfa\x21\x3d"

#: Octets of the longest message that the server takes.
MAX_MESSAGE: Final = 16 * 1024 * 1024

NORMAL, PROTOCOL_ERROR, INVALID_PAYLOAD, TOO_BIG = 1000, 1002, 1007, 1009


# -- what is sent --------------------------------------------------------------------------------


class Wait(NamedTuple):
    """Send on only when one more of `kind` has come."""

    kind: type[Event]


class Fragments(NamedTuple):
    """A message in fragments of `size` bytes or characters each; made when it is sent."""

    data: str | bytes
    size: int

    def events(self) -> list[Event]:
        """The fragments in order."""
        pieces = [
            self.data[at : at + self.size] for at in range(0, max(len(self.data), 1), self.size)
        ]
        return [said(piece, final=False) for piece in pieces[:-1]] + [said(pieces[-1])]


class Text(NamedTuple):
    """A text message of octets that may be no text, cut into fragments where the way says so."""

    octets: bytes


#: Bytes go out as they are; events as wsproto writes them.
Step: TypeAlias = bytes | Event | Wait | Fragments | Text


class Way(NamedTuple):
    """How a case is cut: into writes of `size` octets, and its texts into fragments of one."""

    name: str
    size: int = 0
    fragments: bool = False


AT_ONCE: Final = Way("at once")
BY_FRAME: Final = Way("frame by frame")
BY_OCTET: Final = Way("octet by octet", 1)
IN_FRAGMENTS: Final = Way("in fragments of one octet", fragments=True)


def chopped(size: int) -> Way:
    """Writes of `size` bytes, whatever begins and ends in them."""
    return Way(f"in writes of {size} octets", size)


def xor(data: bytes, mask: bytes) -> bytes:
    """`data` masked, or unmasked (RFC 6455, section 5.3)."""
    size = len(data)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(size)


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length_size: int | None = None,
    announced: int | None = None,
) -> bytes:
    """A frame by hand (RFC 6455, section 5.2), right or wrong.

    `length_size`: bytes of the extended length, 0, 2 or 8, where it is not to be the right one;
    `announced`: the length that is written, where it is not that of the payload.
    """
    length = len(payload) if announced is None else announced
    if length_size is None:
        length_size = 0 if length < 126 else 2 if length < 65536 else 8
    short = {0: length, 2: 126, 8: 127}[length_size]
    head = bytes([opcode | rsv << 4 | (0x80 if final else 0), short | (0x80 if mask else 0)])
    head += length.to_bytes(length_size) if length_size else b""
    return head + mask + xor(payload, mask) if mask else head + payload


def in_octets(payload: bytes, opcode: int = TEXT) -> list[bytes]:
    """A message in fragments of one octet each, which cut its characters."""
    last = len(payload) - 1
    return [
        frame(CONTINUATION if at else opcode, payload[at : at + 1], final=at == last)
        for at in range(len(payload))
    ]


def close_frame(code: int | None = NORMAL, reason: bytes = b"") -> bytes:
    """A client's close frame."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2) + reason)


def said(data: str | bytes, *, final: bool = True) -> Message[str] | Message[bytes]:
    """A message, or a fragment of one, that wsproto is to write."""
    kind = TextMessage if isinstance(data, str) else BytesMessage
    return kind(data=data, message_finished=final)


# -- what must come ------------------------------------------------------------------------------


class Maybe(NamedTuple):
    """Something that may come and need not."""

    event: Event


def matches(came: Sequence[Event], expected: Sequence[Event | Maybe]) -> bool:
    """Whether just what was expected came, in that order."""
    left = list(came)
    for event in expected:
        wanted = event.event if isinstance(event, Maybe) else event
        if left and left[0] == wanted:
            left.pop(0)
        elif not isinstance(event, Maybe):
            return False
    return not left


def replies(code: int | None = NORMAL) -> frozenset[int | None]:
    """The codes with which a close may be answered: typically its own (RFC 6455, section 5.5.1)."""
    return frozenset({code, NORMAL, None})


@dataclass(frozen=True, slots=True)
class Case:
    """One rule of RFC 6455 as it can be observed from outside."""

    id: str
    #: what must happen, as a sentence
    title: str
    section: str
    steps: tuple[Step, ...]
    #: what must come, in order, before the server's close frame
    came: tuple[Event | Maybe, ...] = ()
    #: the codes of which one must be in the server's close frame; None is a frame without a code
    close: frozenset[int | None] = field(default_factory=replies)
    ways: tuple[Way, ...] = (AT_ONCE, BY_FRAME, BY_OCTET)
    #: who closes by the steps' end; without either, the client does then
    closed_by: Literal["client", "server"] | None = None
    #: the connection may end in any way, as nothing that matters can get lost any more
    abrupt: bool = False
    #: what is sent last is no whole frame: an end of the stream follows instead of a close frame
    unfinished: bool = False
    #: what the client offers in Sec-WebSocket-Extensions
    offers: str = ""


def ways_of(steps: Sequence[Step]) -> tuple[Way, ...]:
    """All ways, less one that would repeat another."""
    return (AT_ONCE, BY_OCTET) if len(steps) == 1 else (AT_ONCE, BY_FRAME, BY_OCTET)


def echoes(
    id: str,
    title: str,
    section: str,
    *messages: str | bytes,
    ways: tuple[Way, ...] | None = None,
) -> Case:
    """Each message comes back as it was sent."""
    events = tuple(said(message) for message in messages)
    return Case(id, title, section, events, events, ways=ways or ways_of(events))


def answers(
    id: str,
    title: str,
    section: str,
    steps: Sequence[Step],
    *came: Event | Maybe,
    ways: tuple[Way, ...] | None = None,
) -> Case:
    """Something comes, and the connection goes on."""
    return Case(id, title, section, tuple(steps), came, ways=ways or ways_of(steps))


#: What a client may send after the server has failed the connection; nothing of it is answered.
LATE: Final = (frame(PING, b"too late"), frame(TEXT, b"too late"))


def fails(
    id: str,
    title: str,
    section: str,
    *steps: Step,
    code: int | tuple[int, ...] = PROTOCOL_ERROR,
    came: Sequence[Event | Maybe] = (),
    unfinished: bool = False,
    ways: tuple[Way, ...] = (AT_ONCE, BY_FRAME, BY_OCTET),
    offers: str = "",
) -> Case:
    """The server fails the connection: its close frame comes with the code, and nothing else."""
    return Case(
        id,
        title,
        section,
        steps if unfinished else (*steps, *LATE),
        tuple(came),
        close=frozenset({code} if isinstance(code, int) else code),
        ways=ways,
        abrupt=True,
        unfinished=unfinished,
        offers=offers,
        closed_by="server",
    )


def closes(
    id: str,
    title: str,
    section: str,
    *steps: Step,
    code: frozenset[int | None] | None = None,
    came: Sequence[Event | Maybe] = (),
    abrupt: bool = False,
) -> Case:
    """The client closes; the server answers with a close frame and ends the TCP connection."""
    return Case(
        id,
        title,
        section,
        steps,
        tuple(came),
        close=code or replies(),
        ways=ways_of(steps),
        abrupt=abrupt,
        closed_by="client",
    )


def text(data: str) -> TextMessage:
    """A text message that must come."""
    return TextMessage(data=data)


def binary(data: bytes) -> BytesMessage:
    """A binary message that must come."""
    return BytesMessage(data=data)


def pongs(*payloads: bytes) -> tuple[Event | Maybe, ...]:
    """The answers to several pings sent in a row: those before the last may be left out."""
    *others, last = (Pong(payload=payload) for payload in payloads)
    return (*map(Maybe, others), last)


def ping(payload: bytes = b"") -> Ping:
    """A ping that wsproto is to write."""
    return Ping(payload=payload)


def pong(payload: bytes = b"") -> Pong:
    """A pong that must come, or that wsproto is to write."""
    return Pong(payload=payload)
