"""permessage-deflate (RFC 7692): what is agreed on, and events that are compressed once for many.

Must not know: connections, who is subscribed, or Autobahn. Nothing here is kept for a client.

Own code: zlib compresses, but Autobahn and wsproto would do it once for each connection.

A piece is DEFLATE blocks (RFC 1951) that refer to nothing before them, begin at a byte and end with
the header of an empty stored block, of which the four bytes of LEN and NLEN are left out. So pieces
in any order make one message, with stored blocks of `[`, `,` and `]` that begin with those bytes:

    00 01 00 FE FF [    piece    01 00 FE FF ,    piece    01 00 FE FF ] 00

The last byte begins the block whose four bytes the receiver adds (section 7.2.2). Pieces that are
not compressed share a stored block with what stands around them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from pushservice.metrics import Counters
from pushservice.protocol.codecs import Codec, Joint, JsonCodec, Quote, RawCodec
from pushservice.protocol.frames import frame_head

EXTENSION: Final = "permessage-deflate"

#: The window that what we send can be read with, as a power of 2 (section 7.1.2.1), and that we ask
#: for where clients let us (7.1.2.2). Some clients ask for no more than 12; it is no loss, since no
#: piece refers to another and few are larger, and an unfinished message holds 4 KiB instead of 32.
WINDOW_BITS: Final = 12
#: The least time that comes within 1% of the least size for quotes of 200 bytes.
_LEVEL: Final = 4
_MEMORY_LEVEL: Final = 5
#: So many clients always share a compressed piece. For fewer, compressing takes more than a third
#: of all other time of a long turn: of its pieces only the first are compressed, one for each EACH
#: clients. See docs/performance.rst.
ALWAYS: Final = 100
EACH: Final = 8
#: Milliseconds by which a turn may be older than the latest, as those of paced clients are. What is
#: older yet comes from a delay, or the clock was set back: it counts by itself.
OLDEST: Final = 60_000


# -- what is agreed on -------------------------------------------------------------------------


class Agreement(NamedTuple):
    """A response for Sec-WebSocket-Extensions, and the window that what the client sends needs."""

    response: str
    client_bits: int


def agree(offers: Iterable[tuple[str, Mapping[str, Sequence[object]]]]) -> Agreement | None:
    """The answer to a client's offers; None to decline all.

    An offer is an extension's name and its parameters, each with the values it was given, True for
    none. The first is taken that is legal and asks for what we do (section 5.1, 7.1).
    """
    for name, parameters in offers:
        if name == EXTENSION and _acceptable(parameters):
            # Neither end keeps anything between messages, whether that was asked for or not.
            response = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
            if "server_max_window_bits" in parameters:
                response += f"; server_max_window_bits={WINDOW_BITS}"
            if "client_max_window_bits" not in parameters:
                return Agreement(response, zlib.MAX_WBITS)
            [most] = parameters["client_max_window_bits"]
            if most is True or int(str(most)) > WINDOW_BITS:
                response += f"; client_max_window_bits={WINDOW_BITS}"
            # Whoever names less uses no more (section 7.1.2.2).
            return Agreement(response, WINDOW_BITS)
    return None


#: Of each parameter of an offer the values it may have (section 7.1), and with which we take it.
_BITS: Final = frozenset(map(str, range(8, 16)))
_ACCEPTED: Final[Mapping[str, frozenset[object]]] = {
    "server_no_context_takeover": frozenset([True]),
    "client_no_context_takeover": frozenset([True]),
    "client_max_window_bits": _BITS | {True},
    "server_max_window_bits": frozenset(map(str, range(WINDOW_BITS, 16))),
}


def _acceptable(parameters: Mapping[str, Sequence[object]]) -> bool:
    return all(
        len(values) == 1 and values[0] in _ACCEPTED.get(name, ())
        for name, values in parameters.items()
    )


# -- what clients send -------------------------------------------------------------------------

_TAIL: Final = b"\x00\x00\xff\xff"


class TooLong(ValueError):
    """A message is longer than it may be."""


class Corrupt(ValueError):
    """A message is not what DEFLATE makes."""


class Inflation:
    """One message of a client, inflated as it comes (section 7.2.2)."""

    __slots__ = ("_stream",)

    def __init__(self, window_bits: int = zlib.MAX_WBITS) -> None:
        self._stream = zlib.decompressobj(-window_bits)

    def feed(self, data: bytes, most: int) -> bytes:
        """What `data` adds to the message; raises TooLong past `most` bytes, or Corrupt."""
        stream = self._stream
        try:
            # One byte more shows that there is more, and what is shorter is complete.
            text = stream.decompress(data, max(most, 0) + 1)
        except zlib.error as error:
            raise Corrupt(str(error)) from None
        if len(text) > most:
            raise TooLong
        if len(stream.unused_data) > 1:
            raise Corrupt("there is more after the final block")
        return text

    def end(self) -> None:
        """The message is complete; raises Corrupt where it ends within a block."""
        stream = self._stream
        if stream.eof:
            # A final block, and what the sender put after it to begin an empty one (7.2.3.4).
            if stream.unused_data not in (b"", b"\x00"):
                raise Corrupt("there is more after the final block")
            return
        try:
            more = stream.decompress(_TAIL, 1)
        except zlib.error as error:
            raise Corrupt(str(error)) from None
        if more:
            raise Corrupt("it ends within a block")


# -- what clients get --------------------------------------------------------------------------

_MOST_STORED: Final = 65535

_FIRST_COMPRESSED: Final = 0xC1


def stored(event: bytes) -> bytes:
    """`event` as a piece that is not compressed."""
    return b"\x00%b\x00" % _blocks(event)


def _blocks(text: bytes) -> bytes:
    """Stored blocks of `text`; of the first the header is there already (RFC 1951, 3.2.4)."""
    return b"\x00".join(
        [
            _sizes(chunk := text[at : at + _MOST_STORED]) + chunk
            for at in range(0, max(1, len(text)), _MOST_STORED)
        ]
    )


def _sizes(text: bytes) -> bytes:
    """LEN and NLEN."""
    size = len(text)
    return size.to_bytes(2, "little") + (size ^ _MOST_STORED).to_bytes(2, "little")


def _is_stored(piece: bytes) -> bool:
    """Whether `piece` is one stored block, which its text can be taken out of."""
    return piece[0] == 0 and int.from_bytes(piece[1:3], "little") == len(piece) - 6


class Deflater:
    """Compresses what many clients get, each by itself; one for a process."""

    __slots__ = ("_always", "_compressed", "_counters", "_stream", "_turn")

    def __init__(self, counters: Counters, always: int) -> None:
        """What `always` clients or more share is always worth it."""
        self._always = always
        self._counters = counters
        # The latest turn, by its `t`, and how many pieces were compressed in it.
        self._turn = self._compressed = 0
        self._stream = self._new()

    def chosen(self, clients: int, plain: Quote, compressed: Quote) -> Quote:
        """What is to make the pieces that so many clients share."""
        if clients >= self._always:
            return compressed
        most = clients // EACH
        if not most:
            return plain

        def quote(symbol: bytes, n: int, t: int, body: bytes) -> bytes:
            if t > self._turn or t < self._turn - OLDEST:
                self._turn, self._compressed = t, 0
            elif self._compressed >= most:
                return plain(symbol, n, t, body)
            self._compressed += 1
            return compressed(symbol, n, t, body)

        return quote

    def deflate(self, text: bytes) -> bytes:
        """`text` as a piece; longer than `stored` makes it where it does not get shorter."""
        stream = self._stream
        try:
            # A full flush forgets what was before, and costs less than another stream.
            piece = stream.compress(text) + stream.flush(zlib.Z_FULL_FLUSH)
        except MemoryError:
            # Half of an event may be in it.
            self._stream = self._new()
            raise
        return piece[: -len(_TAIL)]

    def count(self, size: int, sent: int) -> None:
        """An event of `size` bytes was looked at, and `sent` is how many became of it."""
        counters = self._counters
        counters.deflated_events += 1
        counters.deflated_bytes_in += size
        counters.deflated_bytes_out += sent

    @staticmethod
    def _new() -> zlib._Compress:
        return zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)


class DeflatedJson(JsonCodec):
    """`quotepush.v1.json` where compression was agreed on: what many get is compressed.

    A turn of which no piece is compressed goes out as JsonCodec would send it.
    """

    joins = Joint.DEFLATED

    def __init__(self, deflater: Deflater) -> None:
        self._deflater = deflater

    def quote(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        return stored(super().quote(symbol, n, t, body))

    def quoting(self, clients: int) -> Quote:
        return self._deflater.chosen(clients, self.quote, self._compressed)

    def _compressed(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        event = super().quote(symbol, n, t, body)
        piece = self._deflater.deflate(event)
        if len(piece) >= len(event) + 6:
            piece = stored(event)
        self._deflater.count(len(event), len(piece))
        return piece

    def snapshot(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        return stored(super().snapshot(symbol, n, t, body))

    def event(self, event: bytes) -> bytes:
        return stored(event)

    def frames(self, pieces: Iterable[bytes]) -> bytes:
        blocks, text, comma = [], [b"["], b""
        for piece in pieces:
            text.append(comma)
            comma = b","
            if _is_stored(piece):
                text.append(piece[5:-1])
            else:
                blocks += [_blocks(b"".join(text)), piece]
                text = []
        text.append(b"]")
        rest = b"".join(text)
        if not blocks:
            return frame_head(len(rest)) + rest
        body = b"\x00%b%b\x00" % (b"".join(blocks), _blocks(rest))
        return frame_head(len(body), _FIRST_COMPRESSED) + body


class DeflatedRaw(RawCodec):
    """`quotepush.raw` where compression was agreed on: a message is compressed or is not."""

    def __init__(self, deflater: Deflater) -> None:
        self._deflater = deflater

    def quoting(self, clients: int) -> Quote:
        return self._deflater.chosen(clients, self.quote, self._compressed)

    def _compressed(self, symbol: bytes, n: int, t: int, body: bytes) -> bytes:
        plain = self.quote(symbol, n, t, body)
        text = self._deflater.deflate(body)
        frame = frame_head(len(text), _FIRST_COMPRESSED) + text
        if len(frame) >= len(plain):
            frame = plain
        self._deflater.count(len(plain), len(frame))
        return frame


def codecs(counters: Counters, always: int = ALWAYS) -> Mapping[str, Codec]:
    """The codecs of clients with which compression was agreed on, by subprotocol.

    They compress all that `always` clients or more share, and for fewer the first of a turn.
    """
    deflater = Deflater(counters, always)
    return {codec.name: codec for codec in (DeflatedJson(deflater), DeflatedRaw(deflater))}
