"""The frozen, validated Config: everything the daemon is configured with.

Fields that contradict each other are refused by a ValueError with a line for each contradiction,
which names the options. Must not know: where values come from (command line, environment, file), or
what any folder does with them. Own code: a frozen dataclass is all that validated values need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pushservice.auth.origins import Origin
from pushservice.config.coercers import Admin, Network
from pushservice.feed.symbol_reader import REVOKE_CHANNEL, SymbolReader, single_star
from pushservice.limits import Limits
from pushservice.redis.url import RedisAddress, RedisTLS


class Conflict(NamedTuple):
    """A contradiction between options: their names, and why in words."""

    options: tuple[str, ...]
    text: str


class ConflictingOptions(ValueError):
    """Options contradict each other: `found` has every conflict, the text a line for each."""

    def __init__(self, found: Sequence[Conflict]) -> None:
        super().__init__("\n".join(each.text for each in found))
        self.found = tuple(found)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon is configured with; see OPTIONS for what each field means.

    No address in `redis` means an embedded one, a `registry_prefix` of None no registry, and an
    `admin` of None no admin port. Raises ConflictingOptions when fields contradict each other.
    """

    port: int = 8008
    interface: str = "0.0.0.0"  # noqa: S104 - a server's default
    listen: tuple[str, ...] = ()
    cert: tuple[Path, ...] = ()
    key: tuple[Path, ...] = ()
    certs: Path = Path("certs")
    cert_watch: bool = False
    plain: bool = False
    redis: tuple[RedisAddress, ...] = ()
    redis_tls: RedisTLS = field(default_factory=RedisTLS)
    subscribe: str = "all"
    snapshot_hash: str | None = None
    stale_after: float | None = None
    feed_stale_after: float | None = None
    registry: RedisAddress | None = None
    registry_prefix: str | None = "quotepush:"
    node: str | None = None
    channels: tuple[str, ...] = ("quote.*",)
    symbol_regex: str | None = None
    symbol_field: str | None = None
    compression: str = "auto"
    max_connections: int | None = None
    limits: Limits = field(default_factory=Limits)
    page: bool = True
    demo: bool = False
    demo_rate: int = 200
    trusted_proxies: tuple[Network | str, ...] = ()
    admin: Admin | None = ("127.0.0.1", 8009)
    workers: int | str = 1
    affinity: bool = False
    max_worker_age: float | None = None
    drain_timeout: float = 15
    drain_delay: float = 0
    log_format: str = "text"
    log_level: str = "info"
    log_max_size: int = 10 * 1024 * 1024
    log_keep: int = 10
    client_log_rate: int = 20
    auth: str | None = None
    token_key: Path | None = None
    token_jwks: Path | None = None
    token_algorithms: tuple[str, ...] = ()
    token_audience: str | None = None
    token_issuer: str | None = None
    token_leeway: float = 10
    token_in_url: bool = False
    auth_timeout: float = 10
    delays: tuple[float, ...] = ()
    delay_buffer: int = 64 * 1024 * 1024
    origins: tuple[Origin | str, ...] = ()
    require_origin: bool = False
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        found = list(self._conflicts())
        if found:
            raise ConflictingOptions(found)

    def _conflicts(self) -> Iterator[Conflict]:
        if len(self.cert) != len(self.key):
            given, other = (
                ("--cert", "--key") if len(self.cert) > len(self.key) else ("--key", "--cert")
            )
            counts = (
                f", one for each: of --cert there are {len(self.cert)}, of --key {len(self.key)}"
            )
            each = counts if self.cert and self.key else ""
            yield Conflict(("cert", "key"), f"{given} needs {other} too{each}")
        if self.plain and self.cert:
            yield Conflict(
                ("plain", "cert", "key"),
                "--plain serves without TLS, so --cert and --key can't be used with it",
            )
        refusals = list(self._symbol_conflicts())
        yield from refusals
        if self.redis_tls != RedisTLS() and not self.redis_over_tls:
            yield Conflict(
                ("redis", "registry", "redis-ca", "redis-cert", "redis-key"),
                "--redis-ca, --redis-cert and --redis-key are for Redis over TLS: use rediss://",
            )
        if self.subscribe == "demand":
            yield from self._demand_conflicts()
        if self.demo:
            yield from self._demo_conflicts(None if refusals else self.symbol_reader())
        yield from self._auth_conflicts()

    def _auth_conflicts(self) -> Iterator[Conflict]:
        if self.auth == "token" and self.token_key is None and self.token_jwks is None:
            yield Conflict(
                ("auth", "token-key", "token-jwks"),
                "--auth token needs --token-key or --token-jwks",
            )
        for_tokens = {
            "token-key": self.token_key,
            "token-jwks": self.token_jwks,
            "token-algorithms": self.token_algorithms,
            "token-audience": self.token_audience,
            "token-issuer": self.token_issuer,
        }
        given = [name for name, value in for_tokens.items() if value]
        if given and self.auth != "token":
            yield Conflict(("auth", *given), f"--{given[0]} needs --auth token")
        if self.delays and self.auth not in ("token", "redis"):
            yield Conflict(
                ("auth", "delays"),
                "--delays needs --auth token or --auth redis, by which clients ask for a delay",
            )
        if self.client_ca is not None and self.plain:
            yield Conflict(
                ("client-ca", "plain"),
                "--client-ca needs TLS, which --plain turns off",
            )
        if self.client_ca is not None and any(text.startswith("ssl:") for text in self.listen):
            yield Conflict(
                ("client-ca", "listen"),
                "--client-ca does not apply to an ssl: endpoint of --listen: listen on tcp: instead"
                ", with --cert and --key",
            )

    def _symbol_conflicts(self) -> Iterator[Conflict]:
        ways = ("symbol-regex", "symbol-field")
        try:
            SymbolReader(("*",), self.symbol_regex, self.symbol_field, ())
        except ValueError as error:
            text = str(error)
            yield Conflict(ways, text if text.startswith("--") else f"--symbol-regex: {text}")
        # One by one, so that each bad pattern is named. Where the symbol does not come from the
        # channel, any field will do.
        elsewhere = self.symbol_regex is not None or self.symbol_field is not None
        apart: list[tuple[str, ...]] = [(pattern,) for pattern in self.channels]
        for patterns in apart or [()]:
            try:
                SymbolReader(patterns, None, "symbol" if elsewhere else None, ())
            except ValueError as error:
                yield Conflict(("channels", *ways), f"--channels: {error}")

    def _demand_conflicts(self) -> Iterator[Conflict]:
        if self.symbol_regex is not None or self.symbol_field is not None:
            yield Conflict(
                ("subscribe", "symbol-regex", "symbol-field"),
                "--subscribe demand derives channels from symbols, which --symbol-regex and"
                " --symbol-field make impossible",
            )
        for pattern in self.channels:
            if single_star(pattern) is None:
                yield Conflict(
                    ("subscribe", "channels"),
                    "--subscribe demand needs patterns with one * and no other wildcard, which"
                    f" {pattern!r} is not",
                )

    def _demo_conflicts(self, reader: SymbolReader | None) -> Iterator[Conflict]:
        """`reader` is None where the options for it are in conflict."""
        channel = self.demo_channel("AAPL")
        if channel is None and self.channels:
            yield Conflict(
                ("demo", "channels"),
                "--demo publishes to the first pattern of --channels with its only * replaced by"
                f" the symbol, and {self.channels[0]!r} has not exactly one wildcard *",
            )
        if (
            channel is not None
            and reader is not None
            and self.symbol_regex is not None
            and reader.read(self.channels[0].encode(), channel.encode(), b"") != "AAPL"
        ):
            yield Conflict(
                ("demo", "channels", "symbol-regex"),
                f"--symbol-regex finds no AAPL in {channel!r}, where --demo publishes",
            )
        if self.symbol_field not in (None, "symbol"):
            yield Conflict(
                ("demo", "symbol-field"),
                "--demo publishes the symbol in the field symbol: --symbol-field must be symbol",
            )

    @property
    def redis_over_tls(self) -> bool:
        """Whether any configured Redis is reached over TLS."""
        named = self.redis if self.registry is None else (*self.redis, self.registry)
        return any(address.tls for address in named)

    @property
    def certificate_files(self) -> tuple[Path, ...]:
        """Every file that certificates are made of, as `materials` reads them."""
        authority = () if self.client_ca is None else (self.client_ca,)
        return (*self.cert, *self.key, *authority)

    def symbol_reader(self) -> SymbolReader:
        """A reader that finds the symbol of a message as configured."""
        return SymbolReader(
            self.channels, self.symbol_regex, self.symbol_field, self.ignored_channels
        )

    @property
    def ignored_channels(self) -> tuple[str, ...]:
        """Channels of the daemon's own: their messages are not quotes, whatever pattern matches."""
        if self.registry_prefix is None:
            return (REVOKE_CHANNEL,)
        return (REVOKE_CHANNEL, f"{self.registry_prefix}demand")

    def demo_channel(self, symbol: str) -> str | None:
        """Where the simulated market publishes `symbol`; None where no pattern allows it."""
        parts = single_star(self.channels[0]) if self.channels else None
        return None if parts is None else parts[0] + symbol + parts[1]

    def endpoints(self) -> tuple[str, ...]:
        """What to listen on: Twisted endpoint strings, the backlog 1024 unless they set another."""
        given = self.listen or (f"tcp:{self.port}:interface={_quoted(self.interface)}",)
        return tuple(
            f"{text}:backlog=1024"
            if text.startswith(("tcp:", "tcp6:", "ssl:", "unix:")) and "backlog=" not in text
            else text
            for text in given
        )


def _quoted(text: str) -> str:
    """`text` as an argument of an endpoint string: colons and the like escaped."""
    for char in ("\\", ":", "="):
        text = text.replace(char, "\\" + char)
    return text
