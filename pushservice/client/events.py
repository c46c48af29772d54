"""The events of a client, one frozen type for each kind, and the error that calls raise.

Must not know: where events come from, or who reads them.

Durations are in seconds. Points in time, `t` and `expires`, are in milliseconds since 1970-01-01
UTC, as they are on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

StateName: TypeAlias = Literal["connecting", "authenticating", "open", "waiting", "closed"]

_decode = msgspec.json.Decoder().decode


class QuoteError(Exception):
    """A request was refused, or could not be made.

    `code` is the protocol's error code; where the connection ended it is the close code or the
    HTTP status that ended it, and 0 where the link was lost or there is none. `retry` is the
    seconds after which the very same request may be answered otherwise, if the server said so.
    """

    def __init__(self, code: int, message: str, retry: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry = retry

    def __repr__(self) -> str:
        return f"QuoteError({self.code}, {self.message!r}, {self.retry!r})"


# A msgspec struct is made several times faster than a dataclass, and there are very many quotes.
class Quote(msgspec.Struct, frozen=True, eq=False):
    """One update of a symbol, or its last known one (`snapshot`).

    `raw` is the publisher's payload byte for byte, as JSON text, so that prices are exact:
    ``json.loads(quote.raw, parse_float=Decimal)``. `data` is the same decoded, with floats.

    `n` is this update's number among all of the symbol within `epoch`, `t` when the daemon got it.
    `merged` is how many updates since the quote before were merged into this one.
    From one quote of a symbol to the next, with no Gap and no snapshot between, `n` grows by
    exactly `merged` + 1.
    """

    symbol: str
    n: int
    t: int
    raw: bytes
    snapshot: bool = False
    merged: int = 0
    epoch: str = ""
    _decoded: Any = msgspec.UNSET

    @property
    def data(self) -> Any:
        """The payload, decoded when it is first asked for."""
        if self._decoded is msgspec.UNSET:
            msgspec.structs.force_setattr(self, "_decoded", _decode(self.raw))
        return self._decoded

    def _told(self) -> tuple[object, ...]:
        return (self.symbol, self.n, self.t, self.raw, self.snapshot, self.merged, self.epoch)

    def __eq__(self, other: object) -> bool:
        return self._told() == other._told() if isinstance(other, Quote) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._told())

    def __repr__(self) -> str:
        names = ("symbol", "n", "t", "raw", "snapshot", "merged", "epoch")
        told = zip(names, self._told(), strict=True)
        return f"Quote({', '.join(f'{name}={value!r}' for name, value in told)})"


@dataclass(frozen=True, slots=True)
class Gap:
    """Updates of `symbol` may have been lost between the last quote and the next.

    "feed": before they reached the daemon; "link": while this client was not served.
    """

    symbol: str
    reason: Literal["feed", "link"]


@dataclass(frozen=True, slots=True)
class Feed:
    """The daemon has lost its source of quotes, or has it again; one event for each change.

    `t` is when the daemon said so.
    """

    up: bool
    t: int


@dataclass(frozen=True, slots=True)
class Stale:
    """These symbols, or all where `symbols` is None, may not be current any more.

    "link": there is no connection; "feed": the daemon has no source; "quiet": nothing has come for
    longer than the daemon allows.
    """

    symbols: tuple[str, ...] | None
    reason: Literal["link", "feed", "quiet"]


@dataclass(frozen=True, slots=True)
class Fresh:
    """These symbols, or all where `symbols` is None, are current again."""

    symbols: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class State:
    """The state of the connection.

    "connecting"; "authenticating": the server waits for a token; "open": served; "waiting": it
    connects again after `delay` seconds, or, where that is None, once there is a token; "closed":
    for good, or until it is opened again. `code` is the WebSocket close code that led here, or
    below 1000 the HTTP status of a refused handshake; 1006 a link that broke or never stood, 1015
    a failure of TLS.
    """

    name: StateName
    delay: float | None = None
    code: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The server refused a symbol, or where `symbol` is None something else.

    `code` is the protocol's error code; 0: a message of the server's could not be read. With
    `retry` the request is made again after so many seconds.
    """

    symbol: str | None
    code: int
    message: str
    retry: float | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The first event of a connection; `heartbeat` is the time between two, 0 for none."""

    conn: str
    epoch: str
    heartbeat: float
    max_symbols: int | None
    max_message: int
    auth: str | None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The link lives. `age` is the seconds since the daemon's last quote, `merged` a total."""

    t: int
    up: bool
    age: float | None
    merged: int


@dataclass(frozen=True, slots=True)
class Bye:
    """The server is about to close with `code`, and asks to reconnect after `retry` seconds."""

    code: int
    retry: float | None


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A token was taken: it ends at `expires`, and its quotes come `delay` seconds late."""

    user: str | None
    expires: int | None
    delay: float


@dataclass(frozen=True, slots=True)
class Expiring:
    """The token ends in so many seconds; a token function is asked for the next one by then."""

    left: float


Event: TypeAlias = (
    Quote
    | Gap
    | Feed
    | Stale
    | Fresh
    | State
    | Refused
    | Welcome
    | Heartbeat
    | Bye
    | Authenticated
    | Expiring
)
