"""The frozen, validated Config: everything the daemon was told.

Must not know: where the words came from (command line, environment, file) beyond naming options in
messages, or what any room does with its settings. Every refusal is a ValueError whose text names
what was wrong and what would be right, with a line for each contradiction.
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


class Contradiction(NamedTuple):
    """What does not go together: the names of the options that are involved, and why in words."""

    options: tuple[str, ...]
    text: str


class Contradictory(ValueError):
    """Options that contradict each other: `found` has every contradiction, the text a line each."""

    def __init__(self, found: Sequence[Contradiction]) -> None:
        super().__init__("\n".join(each.text for each in found))
        self.found = tuple(found)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon was told, checked; see OPTIONS for what each field means.

    No address in `redis` stands for an embedded one; a `registry_prefix` of None for no registry,
    an `admin` of None for no place where operators ask.

    Raises Contradictory when fields contradict each other.
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
        found = list(self._contradictions())
        if found:
            raise Contradictory(found)

    def _contradictions(self) -> Iterator[Contradiction]:
        if len(self.cert) != len(self.key):
            given, other = (
                ("--cert", "--key") if len(self.cert) > len(self.key) else ("--key", "--cert")
            )
            counts = (
                f", one for each: of --cert there are {len(self.cert)}, of --key {len(self.key)}"
            )
            each = counts if self.cert and self.key else ""
            yield Contradiction(("cert", "key"), f"{given} needs {other} too{each}")
        if self.plain and self.cert:
            yield Contradiction(
                ("plain", "cert", "key"),
                "--plain serves without TLS, so --cert and --key make no sense",
            )
        refusals = list(self._against_reading())
        yield from refusals
        if self.redis_tls != RedisTLS() and not self.redis_over_tls:
            yield Contradiction(
                ("redis", "registry", "redis-ca", "redis-cert", "redis-key"),
                "--redis-ca, --redis-cert and --redis-key are for Redis over TLS: use rediss://",
            )
        if self.subscribe == "demand":
            yield from self._against_demand()
        if self.demo:
            yield from self._against_demo(None if refusals else self.symbol_reader())
        yield from self._against_auth()

    def _against_auth(self) -> Iterator[Contradiction]:
        if self.auth == "token" and self.token_key is None and self.token_jwks is None:
            yield Contradiction(
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
            yield Contradiction(
                ("auth", *given), f"--{given[0]} is for tokens: say --auth token too"
            )
        if self.delays and self.auth not in ("token", "redis"):
            yield Contradiction(
                ("auth", "delays"),
                "--delays are for who has a token that asks for one: say --auth token or redis too",
            )
        if self.client_ca is not None and self.plain:
            yield Contradiction(
                ("client-ca", "plain"),
                "--client-ca asks for certificates, which --plain has none of",
            )
        if self.client_ca is not None and any(text.startswith("ssl:") for text in self.listen):
            yield Contradiction(
                ("client-ca", "listen"),
                "--client-ca asks for certificates, which an ssl: endpoint of --listen does not:"
                " listen on tcp: instead, with --cert and --key",
            )

    def _against_reading(self) -> Iterator[Contradiction]:
        ways = ("symbol-regex", "symbol-field")
        try:
            SymbolReader(("*",), self.symbol_regex, self.symbol_field, ())
        except ValueError as error:
            text = str(error)
            yield Contradiction(ways, text if text.startswith("--") else f"--symbol-regex: {text}")
        # One by one, so that each pattern that can't be read is named. Where the symbol comes from
        # elsewhere, a field stands for it.
        elsewhere = self.symbol_regex is not None or self.symbol_field is not None
        apart: list[tuple[str, ...]] = [(pattern,) for pattern in self.channels]
        for patterns in apart or [()]:
            try:
                SymbolReader(patterns, None, "symbol" if elsewhere else None, ())
            except ValueError as error:
                yield Contradiction(("channels", *ways), f"--channels: {error}")

    def _against_demand(self) -> Iterator[Contradiction]:
        if self.symbol_regex is not None or self.symbol_field is not None:
            yield Contradiction(
                ("subscribe", "symbol-regex", "symbol-field"),
                "--subscribe demand makes channels of symbols, which --symbol-regex and"
                " --symbol-field do not allow",
            )
        for pattern in self.channels:
            if single_star(pattern) is None:
                yield Contradiction(
                    ("subscribe", "channels"),
                    "--subscribe demand needs patterns with one * and no other wildcard, which"
                    f" {pattern!r} is not",
                )

    def _against_demo(self, reader: SymbolReader | None) -> Iterator[Contradiction]:
        """`reader` is None where there can't be one."""
        channel = self.demo_channel("AAPL")
        if channel is None and self.channels:
            yield Contradiction(
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
            yield Contradiction(
                ("demo", "channels", "symbol-regex"),
                f"--symbol-regex finds no AAPL in {channel!r}, where --demo publishes",
            )
        if self.symbol_field not in (None, "symbol"):
            yield Contradiction(
                ("demo", "symbol-field"),
                "the payloads of --demo have their symbol in the field symbol",
            )

    @property
    def redis_over_tls(self) -> bool:
        """Whether any Redis that is named is spoken to over TLS."""
        named = self.redis if self.registry is None else (*self.redis, self.registry)
        return any(address.tls for address in named)

    @property
    def certificate_files(self) -> tuple[Path, ...]:
        """Every file that certificates are made of, as `materials` reads them."""
        authority = () if self.client_ca is None else (self.client_ca,)
        return (*self.cert, *self.key, *authority)

    def symbol_reader(self) -> SymbolReader:
        """A reader for the channels and the way of finding the symbol."""
        return SymbolReader(self.channels, self.symbol_regex, self.symbol_field, self.no_quotes_on)

    @property
    def no_quotes_on(self) -> tuple[str, ...]:
        """Channels of the daemon's own, whose messages are no quotes, whatever pattern matches."""
        if self.registry_prefix is None:
            return (REVOKE_CHANNEL,)
        return (REVOKE_CHANNEL, f"{self.registry_prefix}demand")

    def demo_channel(self, symbol: str) -> str | None:
        """Where the simulated market publishes `symbol`; None where no pattern allows it."""
        parts = single_star(self.channels[0]) if self.channels else None
        return None if parts is None else parts[0] + symbol + parts[1]

    def endpoints(self) -> tuple[str, ...]:
        """What to listen on, as Twisted endpoint strings with a backlog of 1024 or as given."""
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
