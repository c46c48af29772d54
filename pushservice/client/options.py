"""The options of a client, checked: address, tokens, trust, pacing, time-outs.

Must not know: how a connection is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict
from urllib.parse import urlsplit

from pushservice.protocol.commands import MAX_INTERVAL_MS

#: What a token is needed for: a connection, the place of one that ends soon or of a refused one.
Why: TypeAlias = Literal["connect", "expiring", "refused"]
#: A token; or what gives one when it is called, at once or by something that can be awaited.
Token: TypeAlias = str | Callable[[Why], Any]


class Settings(TypedDict, total=False):
    """The options beside the address, as keywords; see Options."""

    token: Token | None
    mode: Literal["auto", "raw"]
    interval: float
    snapshot: bool
    ca: str | Path | None
    insecure: bool
    backoff: float
    backoff_max: float
    stable_after: float
    connect_timeout: float
    compression: bool


_RIGHT: Final = 'an address is "wss://HOST:PORT/", or "ws://HOST:PORT/" without TLS'
_PORTS: Final = {"ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Options:
    """How to connect, what to ask for, and when to try again. Durations are in seconds.

    Raises ValueError, which says what would be right.
    """

    #: ``wss://HOST:PORT/`` or ``ws://HOST:PORT/``
    url: str
    #: Shown where the server asks for one, never earlier, and never part of an event or a log. A
    #: string serves until it is refused or ends. A function is called with the reason for each
    #: token that is needed: "connect", "expiring" (in the first half of what is left of the last
    #: one) or "refused"; it returns the token, or what gives it when awaited.
    token: Token | None = field(default=None, repr=False)
    #: "auto": only the newest update of a symbol where the client is too slow; "raw": all of them
    mode: Literal["auto", "raw"] = "auto"
    #: least time between two updates of a symbol, 0 to 60; for mode "auto"
    interval: float = 0.0
    #: whether the last known quote of a symbol comes first
    snapshot: bool = True
    #: a file of certificates (PEM) to trust in place of the system's
    ca: str | Path | None = None
    #: trust whoever answers; for development alone
    insecure: bool = False
    #: first bound of the wait before connecting again, which doubles each time
    backoff: float = 0.5
    #: last bound of it
    backoff_max: float = 30.0
    #: how long a connection has to be served for the wait to start anew
    stable_after: float = 10.0
    #: how long to wait for the welcome
    connect_timeout: float = 15.0
    #: whether to offer compression (permessage-deflate)
    compression: bool = False

    def __post_init__(self) -> None:
        address = _checked(self.url)
        if address.scheme == "ws" and (self.ca is not None or self.insecure):
            raise ValueError("ca and insecure are about TLS, and ws:// has none: use wss://")
        if self.ca is not None and self.insecure:
            raise ValueError("ca says whom to trust, insecure to trust everybody: give one of them")
        if self.mode not in ("auto", "raw"):
            raise ValueError(f'mode is "auto" or "raw", not {self.mode!r}')
        if not 0 <= self.interval <= MAX_INTERVAL_MS / 1000:
            raise ValueError(f"interval is 0 to 60 seconds, not {self.interval!r}")
        if self.interval and self.mode == "raw":
            raise ValueError("interval goes with mode auto; raw brings every update at once")
        for name in ("backoff", "backoff_max", "stable_after", "connect_timeout"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is a number of seconds, not {getattr(self, name)!r}")
        if self.token is not None and not self.token:
            raise ValueError("token is empty: give a text, a function that returns one, or None")
        if not (self.token is None or isinstance(self.token, str) or callable(self.token)):
            raise ValueError("token is a text, a function that returns one, or None")

    @property
    def secure(self) -> bool:
        """Whether the connection is one over TLS."""
        return urlsplit(self.url).scheme == "wss"

    @property
    def host(self) -> str:
        """The host's name or address, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, which has a default as for web pages."""
        address = urlsplit(self.url)
        return address.port or _PORTS[address.scheme]

    @property
    def place(self) -> str:
        """The address for people: it has nothing that could be a secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.secure else 'ws'}://{host}:{self.port}/"


def _checked(url: str) -> Any:
    """The parts of `url`. What is wrong is named without the URL, which may hold a secret."""
    if not isinstance(url, str):
        raise ValueError(f"{_RIGHT}; this is no text")
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError as error:
        raise ValueError(f"{_RIGHT}: {error}") from None
    if address.scheme in ("http", "https"):
        right = "wss" if address.scheme == "https" else "ws"
        raise ValueError(f"{_RIGHT}: {right}:// in place of {address.scheme}://")
    if address.scheme not in _PORTS or not address.netloc:
        raise ValueError(f"{_RIGHT}; this one begins with neither")
    if "@" in address.netloc:
        raise ValueError(f"{_RIGHT}; a user has no place in it: give a token")
    if not address.hostname:
        raise ValueError(f"{_RIGHT}; this one has no host")
    if port == 0:
        raise ValueError(f"{_RIGHT}; port 0 is none")
    if "#" in url:
        raise ValueError(f"{_RIGHT}; it has no part after #")
    if any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
        raise ValueError(f"{_RIGHT}; it has no white space")
    return address
