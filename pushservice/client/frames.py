"""The server's messages, as far as the protocol says what is in them; the rest is skipped.

Must not know: what an event leads to. docs/protocol.rst, section "Events", is the contract.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

DEFAULT_MESSAGE_LIMIT: Final = 16384


class BadFrame(ValueError):
    """A message that is no array of events; the text says what is wrong with it."""


class _Event(msgspec.Struct, tag_field="ev", frozen=True):
    """What all events have: the key `ev`, which names their kind."""


class QuoteEvent(_Event, frozen=True, tag="quote", gc=False):
    """An update."""

    s: str
    n: int
    t: int
    d: msgspec.Raw


class SnapshotEvent(_Event, frozen=True, tag="snapshot", gc=False):
    """The last known update."""

    s: str
    n: int
    t: int
    d: msgspec.Raw


class Limits(msgspec.Struct, frozen=True):
    """How many symbols a connection may have, and how many bytes a message to the server."""

    symbols: int | None = None
    message: int = DEFAULT_MESSAGE_LIMIT


class WelcomeEvent(_Event, frozen=True, tag="welcome"):
    """The first event; `hb` in milliseconds."""

    conn: str = ""
    epoch: str = ""
    hb: int = 0
    limits: Limits = Limits()
    auth: str | None = None


class SymbolError(msgspec.Struct, frozen=True):
    """Why one symbol of a request is not served; `retry` in milliseconds."""

    code: int
    msg: str = ""
    retry: float | None = None


class SubscribedEvent(_Event, frozen=True, tag="subscribed"):
    """Answers subscribe."""

    id: int | str | None = None
    symbols: tuple[str, ...] = ()
    errors: dict[str, SymbolError] = {}


class UnsubscribedEvent(_Event, frozen=True, tag="unsubscribed"):
    """Answers unsubscribe, or without `id` says what is not served any more."""

    id: int | str | None = None
    symbols: tuple[str, ...] = ()
    errors: dict[str, SymbolError] = {}


class ListEvent(_Event, frozen=True, tag="list"):
    """Answers list."""

    id: int | str | None = None
    symbols: tuple[str, ...] = ()


class PongEvent(_Event, frozen=True, tag="pong"):
    """Answers ping."""

    id: int | str | None = None


class AuthenticatedEvent(_Event, frozen=True, tag="authenticated"):
    """A token was taken; `expires` in milliseconds since 1970, `delay` in seconds."""

    id: int | str | None = None
    user: str | None = None
    expires: int | None = None
    delay: float = 0.0


class ExpiringEvent(_Event, frozen=True, tag="expiring", rename={"left": "in"}):
    """The token ends in so many milliseconds."""

    left: float


class ErrorEvent(_Event, frozen=True, tag="error"):
    """Something was refused; `retry` in milliseconds."""

    code: int
    msg: str = ""
    id: int | str | float | None = None
    retry: float | None = None


class HeartbeatEvent(_Event, frozen=True, tag="heartbeat"):
    """The link lives; `age` in milliseconds."""

    t: int
    feed: str = "up"
    age: float | None = None
    merged: int = 0


class FeedEvent(_Event, frozen=True, tag="feed"):
    """The daemon lost its source, or has it again."""

    state: str
    t: int = 0


class GapEvent(_Event, frozen=True, tag="gap"):
    """Updates of a symbol may be missing."""

    s: str


class StaleEvent(_Event, frozen=True, tag="stale"):
    """These symbols, or all, have had no update for too long."""

    symbols: tuple[str, ...] = ()
    all: bool = False


class FreshEvent(_Event, frozen=True, tag="fresh"):
    """These symbols, or all, have updates again."""

    symbols: tuple[str, ...] = ()
    all: bool = False


class ByeEvent(_Event, frozen=True, tag="bye"):
    """The server closes; `retry` in milliseconds."""

    code: int
    retry: float | None = None


ServerEvent: TypeAlias = (
    QuoteEvent
    | SnapshotEvent
    | WelcomeEvent
    | SubscribedEvent
    | UnsubscribedEvent
    | ListEvent
    | PongEvent
    | AuthenticatedEvent
    | ExpiringEvent
    | ErrorEvent
    | HeartbeatEvent
    | FeedEvent
    | GapEvent
    | StaleEvent
    | FreshEvent
    | ByeEvent
)


class _Kind(msgspec.Struct):
    ev: str = ""


_decode_frame = msgspec.json.Decoder(list[ServerEvent]).decode
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_event: msgspec.json.Decoder[ServerEvent] = msgspec.json.Decoder(ServerEvent)
_decode_kind = msgspec.json.Decoder(_Kind).decode

_KNOWN: Final = frozenset(str(kind.__struct_config__.tag) for kind in _Event.__subclasses__())


def decode(message: bytes) -> tuple[list[ServerEvent], list[str]]:
    """The events that `message` holds, and what was wrong with others of a known kind.

    Events of unknown kinds are left out: newer servers may send more. Raises BadFrame where the
    message is no array of events at all.
    """
    try:
        return _decode_frame(message), []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_one_by_one(message)


def _decode_one_by_one(message: bytes) -> tuple[list[ServerEvent], list[str]]:
    try:
        parts = _decode_parts(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(str(error)) from None
    events: list[ServerEvent] = []
    faults: list[str] = []
    for part in parts:
        try:
            events.append(_decode_event.decode(part))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if _kind_of(part) in _KNOWN:
                faults.append(str(error))
    return events, faults


def _kind_of(part: msgspec.Raw) -> str:
    try:
        return _decode_kind(part).ev
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
