"""The codecs: how each subprotocol turns quotes and events into WebSocket frames.

Must not know: connections, who is subscribed, or when anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Final, Protocol, TypeAlias

import msgspec

from pushservice.protocol.commands import Command, parse_bare_symbols, parse_command
from pushservice.protocol.frames import frame_head
from pushservice.protocol.payload import is_json, json_string, text_of

JSON_SUBPROTOCOL: Final = "quotepush.v1.json"
RAW_SUBPROTOCOL: Final = "quotepush.raw"

_encode = msgspec.json.Encoder().encode


class Joint(IntEnum):
    """How the pieces of a turn become wire bytes; _fanout.c knows the same numbers."""

    #: each is a frame already
    FRAMES = 0
    #: one text frame with a JSON array
    ARRAY = 1
    #: the same in DEFLATE blocks, see protocol/deflate.py
    DEFLATED = 2


#: Makes a piece of an update: of its symbol as JSON text, its `n`, its `t`, and its body.
Quote: TypeAlias = Callable[[bytes, int, int, bytes], bytes]


class Codec(Protocol):
    """How one subprotocol turns events into WebSocket frames.

    A *piece* is what an outbox collects; `frames` makes wire bytes of a turn's pieces.
    """

    #: the subprotocol's name in the handshake
    name: str
    #: whether clients get welcome, answers, heartbeats and bye, or quotes and errors alone
    converses: bool
    #: how the pieces of a turn are joined
    joins: Joint

    def body(self, payload: bytes) -> bytes:
        """The payload as this codec sends it; the very same object where nothing had to change."""
        ...

    def quote(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        """One update as a piece; `symbol` is JSON text."""
        ...

    def quoting(self, clients: int) -> Quote:
        """`quote`, or what makes a smaller piece where so many clients share it."""
        ...

    def snapshot(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        """The last known update as a piece; `symbol` is JSON text."""
        ...

    def event(self, event: bytes) -> bytes:
        """An event as a piece; only of a codec that converses."""
        ...

    def failure(self, event: bytes) -> bytes:
        """An error event as a piece."""
        ...

    def frames(self, pieces: Iterable[bytes]) -> bytes:
        """The wire bytes that carry `pieces`, in order."""
        ...

    def parse(self, text: bytes) -> Command:
        """The command in a client's message; raises BadCommand."""
        ...


class JsonCodec:
    """`quotepush.v1.json`: a message is an array of events, one frame a turn."""

    name = JSON_SUBPROTOCOL
    converses = True
    joins = Joint.ARRAY

    def body(self, payload: bytes) -> bytes:
        return payload if is_json(payload) else json_string(payload)

    def quote(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        return b'{"ev":"quote","s":%b,"n":%d,"t":%d,"d":%b}' % (symbol, n, t, body)

    def snapshot(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        return b'{"ev":"snapshot","s":%b,"n":%d,"t":%d,"d":%b}' % (symbol, n, t, body)

    def quoting(self, clients: int) -> Quote:
        return self.quote

    def event(self, event: bytes) -> bytes:
        return event

    def failure(self, event: bytes) -> bytes:
        return self.event(event)

    def frames(self, pieces: Iterable[bytes]) -> bytes:
        text = b",".join(pieces)
        return b"%b[%b]" % (frame_head(len(text) + 2), text)

    def parse(self, text: bytes) -> Command:
        return parse_command(text)


class RawCodec:
    """`quotepush.raw`: each publish is a message of its own, with no envelope."""

    name = RAW_SUBPROTOCOL
    converses = False
    joins = Joint.FRAMES

    def body(self, payload: bytes) -> bytes:
        return text_of(payload)

    def quote(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        return frame_head(len(body)) + body

    snapshot = quote

    def quoting(self, clients: int) -> Quote:
        return self.quote

    def event(self, event: bytes) -> bytes:
        return frame_head(len(event)) + event

    def failure(self, event: bytes) -> bytes:
        fields = msgspec.json.decode(event, type=dict[str, msgspec.Raw])
        del fields["ev"]
        return self.event(_encode({"error": fields}))

    def frames(self, pieces: Iterable[bytes]) -> bytes:
        return b"".join(pieces)

    def parse(self, text: bytes) -> Command:
        if text.lstrip()[:1] == b"{":
            return parse_command(text)
        return parse_bare_symbols(text)


JSON: Final[Codec] = JsonCodec()
RAW: Final[Codec] = RawCodec()
CODECS: Final[Mapping[str, Codec]] = {codec.name: codec for codec in (JSON, RAW)}


def count_frames(codec: Codec, pieces: int) -> int:
    """How many frames `codec` makes of so many pieces, of which there is one at least."""
    return pieces if codec.joins is Joint.FRAMES else 1
