"""The words of the wire: symbols, events, payloads, WebSocket frame heads, and the two codecs.

Must not know: connections, who is subscribed, Redis, or Twisted. Everything here is a pure
function of its arguments; docs/protocol.rst is the same contract in prose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final, Protocol, TypeAlias

import msgspec

from pushservice.protocol.close_codes import ErrorCode
from pushservice.protocol.commands import Command, CommandId, parse_bare_symbols, parse_command

JSON_SUBPROTOCOL: Final = "quotepush.v1.json"
RAW_SUBPROTOCOL: Final = "quotepush.raw"

MAX_SYMBOL_BYTES: Final = 64
_BAD_SYMBOL_CHARACTER = re.compile(r'[\s\x00-\x1f\x7f-\x9f*?\[\]\\"]')

_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


# -- symbols ---------------------------------------------------------------------------------


def symbol_fault(symbol: object) -> str | None:
    """What keeps `symbol` from being one, as a sentence for the client; None when it is one."""
    if not isinstance(symbol, str):
        return "a symbol is a string"
    try:
        size = len(symbol.encode())
    except UnicodeEncodeError:
        return "a symbol is valid UTF-8"
    if not 1 <= size <= MAX_SYMBOL_BYTES:
        return f"a symbol has 1 to {MAX_SYMBOL_BYTES} bytes, this one {size}"
    found = _BAD_SYMBOL_CHARACTER.search(symbol)
    if found is not None:
        return (
            "a symbol has no white space, no control characters and none of"
            f' * ? [ ] \\ "; found U+{ord(found[0]):04X} at position {found.start()}'
        )
    return None


# -- events: server to client ------------------------------------------------------------------


def welcome(
    conn: str,
    epoch: str,
    heartbeat_ms: int,
    max_symbols: int,
    max_message: int,
    auth: str | None = None,
) -> bytes:
    """The first event on a connection; limits are counts of symbols and bytes of a message.

    `auth` says whether to authenticate; None where nobody has to.
    """
    event: dict[str, object] = {
        "ev": "welcome",
        "v": 1,
        "conn": conn,
        "epoch": epoch,
        "hb": heartbeat_ms,
        "limits": {"symbols": max_symbols, "message": max_message},
    }
    if auth is not None:
        event["auth"] = auth
    return _encode(event)


def subscribed(
    id: CommandId | None,
    symbols: Sequence[str],
    errors: Mapping[str, tuple[ErrorCode, str]],
    total: int,
) -> bytes:
    """Answers Subscribe: what is served now, what is not and why, and how many in all."""
    event = _answer("subscribed", id)
    event["symbols"] = symbols
    _add_symbol_errors(event, errors)
    event["total"] = total
    return _encode(event)


def unsubscribed(
    id: CommandId | None,
    symbols: Sequence[str],
    errors: Mapping[str, tuple[ErrorCode, str]],
    total: int,
) -> bytes:
    """Answers Unsubscribe: what is no longer served, and how many still are."""
    event = _answer("unsubscribed", id)
    event["symbols"] = symbols
    _add_symbol_errors(event, errors)
    event["total"] = total
    return _encode(event)


def listing(id: CommandId | None, symbols: Sequence[str]) -> bytes:
    """Answers ListSymbols."""
    return _encode(_answer("list", id) | {"symbols": symbols})


def pong(id: CommandId | None) -> bytes:
    """Answers Ping."""
    return _encode(_answer("pong", id))


def authenticated(
    id: CommandId | None, user: str | None, expires: int | None, delay: float
) -> bytes:
    """Answers Authenticate; `expires` in milliseconds since the epoch, `delay` in seconds."""
    event = _answer("authenticated", id)
    if user is not None:
        event["user"] = user
    if expires is not None:
        event["expires"] = expires
    if delay:
        event["delay"] = int(delay) if delay == int(delay) else delay
    return _encode(event)


def expiring(left_ms: int) -> bytes:
    """Says that the client's token ends in so many milliseconds."""
    return _encode({"ev": "expiring", "in": left_ms})


def error(id: CommandId | None, code: ErrorCode, message: str, retry: int | None = None) -> bytes:
    """Says what was wrong with a command and what would be right.

    `retry` is milliseconds after which the very same command may be carried out.
    """
    event = _answer("error", id) | {"code": code, "msg": message}
    if retry is not None:
        event["retry"] = retry
    return _encode(event)


def internal_error(incident: str) -> str:
    """What is said of a fault of ours, by the id that the log has of it."""
    return f"internal error: incident {incident}"


def incident(codec: Codec, incident: str) -> bytes:
    """Says, as a piece for `codec`, that something failed here, and by which id to ask about it."""
    return codec.failure(error(None, ErrorCode.INTERNAL, internal_error(incident)))


def heartbeat(t: int, feed_up: bool, age: int | None, merged: int) -> bytes:
    """Says that the link lives: `t` and `age` in milliseconds, `merged` the connection's total."""
    feed = "up" if feed_up else "down"
    return _encode({"ev": "heartbeat", "t": t, "feed": feed, "age": age, "merged": merged})


def feed(up: bool, t: int) -> bytes:
    """Says that the feed was lost or is back; `t` in milliseconds since the epoch."""
    return _encode({"ev": "feed", "state": "up" if up else "down", "t": t})


def gap(symbol: bytes) -> bytes:
    """Says that updates of a symbol may be missing before the next; `symbol` is JSON text."""
    return b'{"ev":"gap","s":%b}' % symbol


def quiet(symbols: Sequence[str], stale: bool, everything: bool = False) -> bytes:
    """Says which symbols have gone quiet for long, or are back; `everything`: all of the feed."""
    event: dict[str, object] = {"ev": "stale" if stale else "fresh", "symbols": symbols}
    if everything:
        event["all"] = True
    return _encode(event)


def bye(code: int, retry: int | None) -> bytes:
    """Announces a close; `retry` is milliseconds to wait before reconnecting."""
    event: dict[str, object] = {"ev": "bye", "code": code}
    if retry is not None:
        event["retry"] = retry
    return _encode(event)


def _answer(ev: str, id: CommandId | None) -> dict[str, object]:
    return {"ev": ev} if id is None else {"ev": ev, "id": msgspec.Raw(id)}


def _add_symbol_errors(
    event: dict[str, object], errors: Mapping[str, tuple[ErrorCode, str]]
) -> None:
    if errors:
        event["errors"] = {
            symbol: {"code": code, "msg": message} for symbol, (code, message) in errors.items()
        }


# -- payloads ----------------------------------------------------------------------------------


def is_json(payload: bytes) -> bool:
    """True when every strict JSON parser takes `payload`: UTF-8, no NaN, no lone surrogate."""
    try:
        _decode_any(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def text_of(payload: bytes) -> bytes:
    """`payload` itself where it is UTF-8, else with U+FFFD in place of what is not."""
    if payload.isascii():
        return payload
    try:
        payload.decode()
    except UnicodeDecodeError:
        return payload.decode("utf-8", "replace").encode()
    return payload


def json_string(payload: bytes) -> bytes:
    """`payload` as a JSON string, with U+FFFD in place of bytes that are not UTF-8."""
    return _encode(payload.decode("utf-8", "replace"))


# -- frames and codecs -------------------------------------------------------------------------

_TEXT: Final = 0x81
_PING: Final = 0x89
_PONG: Final = 0x8A


def frame_head(length: int, first: int = _TEXT) -> bytes:
    """The head of an unmasked final frame of `length` bytes (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return bytes((first, 126)) + length.to_bytes(2)
    return bytes((first, 127)) + length.to_bytes(8)


def ping_frame(payload: bytes) -> bytes:
    """A whole ping control frame; `payload` has at most 125 bytes."""
    return frame_head(len(payload), _PING) + payload


def pong_frame(payload: bytes) -> bytes:
    """A whole pong control frame; `payload` is the ping's own, at most 125 bytes."""
    return frame_head(len(payload), _PONG) + payload


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
        """An event of this module as a piece; of a codec that converses."""
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


def symbol_text(symbol: str) -> bytes:
    """`symbol` as JSON text, for Codec.quote and Codec.snapshot."""
    return _encode(symbol)


def count_frames(codec: Codec, pieces: int) -> int:
    """How many frames `codec` makes of so many pieces, one at least."""
    return pieces if codec.joins is Joint.FRAMES else 1


class Share:
    """What one flush of the hub shares between clients, and counts.

    Clients with equal pieces, as when everybody watches one index, get the very same frame: the
    comparison of two lists of the same objects costs far less than joining them again.
    """

    __slots__ = ("bytes", "codec", "data", "frames", "pieces", "taken")

    def __init__(self) -> None:
        self.codec: Codec | None = None
        self.taken: list[bytes] = []
        self.data = b""
        self.frames = 0
        self.pieces = 0
        self.bytes = 0

    def wire_bytes(self, codec: Codec, pieces: list[bytes]) -> bytes:
        """The frames that carry `pieces`, counted; the last client's own where they are equal."""
        if codec is not self.codec or pieces != self.taken:
            self.codec = codec
            self.taken = pieces.copy()
            self.data = codec.frames(pieces)
        self.frames += count_frames(codec, len(pieces))
        self.pieces += len(pieces)
        self.bytes += len(self.data)
        return self.data
