"""The frozen, validated Config: everything the daemon was told.

Must not know: where the words came from (command line, environment) beyond naming options in
messages, or what any room does with its settings. Every refusal is a ValueError whose text names
what was wrong and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pushservice.channels import SymbolReader, single_star
from pushservice.limits import Limits
from pushservice.redisurl import RedisAddress, RedisTLS

#: the fields of Limits that options set, with their options; the daemon itself sets `connections`
_LIMIT_OPTIONS: Final = {
    "symbols": "max-symbols",
    "message": "max-message",
    "message_rate": "message-rate",
    "byte_rate": "byte-rate",
    "raw_budget": "raw-budget",
    "send_buffer": "send-buffer",
    "heartbeat_ms": "heartbeat",
    "stall_timeout": "stall-timeout",
    "ping_interval": "ping-interval",
    "ping_timeout": "ping-timeout",
    "per_address": "max-per-address",
    "connect_rate": "connect-rate",
    "handshakes": "max-handshakes",
    "total_symbols": "max-total-symbols",
    "tls_timeout": "tls-timeout",
    "upgrade_timeout": "upgrade-timeout",
    "close_timeout": "close-timeout",
}


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon was told, checked; see OPTIONS for what each field means.

    No address in `redis` stands for an embedded one; a `registry_prefix` of None for no registry.

    Raises ValueError when fields contradict each other.
    """

    port: int = 8008
    interface: str = "0.0.0.0"  # noqa: S104 - a server's default
    listen: tuple[str, ...] = ()
    cert: Path | None = None
    key: Path | None = None
    certs: Path = Path("certs")
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
    max_connections: int | None = None
    limits: Limits = field(default_factory=Limits)
    page: bool = True
    demo: bool = False
    demo_rate: int = 200

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, other = ("--cert", "--key") if self.key is None else ("--key", "--cert")
            raise ValueError(f"{given} needs {other} too")
        if self.plain and self.cert is not None:
            raise ValueError("--plain serves without TLS, so --cert and --key make no sense")
        self.symbol_reader()
        if self.redis_tls != RedisTLS() and not self.redis_over_tls:
            raise ValueError(
                "--redis-ca, --redis-cert and --redis-key are for Redis over TLS: use rediss://"
            )
        if self.subscribe == "demand":
            self._check_demand()
        if self.demo and not self.demo_channel("AAPL"):
            raise ValueError(
                "--demo publishes to the first pattern of --channels with its only * replaced by"
                f" the symbol, and {self.channels[0]!r} has not exactly one wildcard *"
            )
        if self.demo and self.symbol_regex is not None:
            reader = self.symbol_reader()
            channel = (self.demo_channel("AAPL") or "").encode()
            if reader.read(self.channels[0].encode(), channel, b"") != "AAPL":
                raise ValueError(
                    f"--symbol-regex finds no AAPL in {channel.decode()!r}, where --demo publishes"
                )
        if self.demo and self.symbol_field not in (None, "symbol"):
            raise ValueError("the payloads of --demo have their symbol in the field symbol")

    def _check_demand(self) -> None:
        if self.symbol_regex is not None or self.symbol_field is not None:
            raise ValueError(
                "--subscribe demand makes channels of symbols, which --symbol-regex and"
                " --symbol-field do not allow"
            )
        for pattern in self.channels:
            if single_star(pattern) is None:
                raise ValueError(
                    "--subscribe demand needs patterns with one * and no other wildcard, which"
                    f" {pattern!r} is not"
                )

    @property
    def redis_over_tls(self) -> bool:
        """Whether any Redis that is named is spoken to over TLS."""
        named = self.redis if self.registry is None else (*self.redis, self.registry)
        return any(address.tls for address in named)

    def symbol_reader(self) -> SymbolReader:
        """A reader for the channels and the way of finding the symbol."""
        # What the registry tells publishers is no quote, whatever pattern matches its channel.
        told = () if self.registry_prefix is None else (f"{self.registry_prefix}demand",)
        return SymbolReader(self.channels, self.symbol_regex, self.symbol_field, told)

    def demo_channel(self, symbol: str) -> str | None:
        """Where the simulated market publishes `symbol`; None where no pattern allows it."""
        parts = single_star(self.channels[0])
        return None if parts is None else parts[0] + symbol + parts[1]

    def endpoints(self) -> tuple[str, ...]:
        """What to listen on, as Twisted endpoint strings with a backlog of 1024 or as given."""
        given = self.listen or (f"tcp:{self.port}:interface={_quoted(self.interface)}",)
        return tuple(
            f"{text}:backlog=1024"
            if text.startswith(("tcp:", "tcp6:", "ssl:")) and "backlog=" not in text
            else text
            for text in given
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Config:
        """A Config of coerced option values by option name, absent or None meaning not given."""

        def path(name: str) -> Path | None:
            return None if options.get(name) is None else Path(options[name])

        values: dict[str, Any] = {
            "port": options.get("port"),
            "interface": options.get("interface"),
            "listen": tuple(options.get("listen") or ()),
            "cert": path("cert"),
            "key": path("key"),
            "certs": path("certs"),
            "plain": bool(options.get("plain")),
            "redis": _addresses(options.get("redis") or ()),
            "redis_tls": RedisTLS(path("redis-ca"), path("redis-cert"), path("redis-key")),
            "subscribe": options.get("subscribe"),
            "snapshot_hash": options.get("snapshot-hash"),
            "stale_after": options.get("stale-after"),
            "feed_stale_after": options.get("feed-stale-after"),
            "registry": options.get("registry"),
            "node": options.get("node"),
            "channels": tuple(options.get("channels") or ()) or None,
            "symbol_regex": options.get("symbol-regex"),
            "symbol_field": options.get("symbol-field"),
            "max_connections": options.get("max-connections"),
            "limits": Limits(
                **{
                    field: options[name]
                    for field, name in _LIMIT_OPTIONS.items()
                    if options.get(name) is not None
                }
            ),
            "page": not options.get("no-page"),
            "demo": bool(options.get("demo")),
            "demo_rate": options.get("demo-rate"),
        }
        given = {name: value for name, value in values.items() if value is not None}
        if options.get("no-registry"):
            if options.get("registry") is not None:
                raise ValueError("--registry and --no-registry exclude each other")
            given["registry_prefix"] = None
        elif options.get("registry-prefix") is not None:
            given["registry_prefix"] = options["registry-prefix"]
        return cls(**given)


def _addresses(given: Sequence[RedisAddress | None]) -> tuple[RedisAddress, ...]:
    """The addresses of --redis; none for the embedded one, which is None among those given."""
    addresses = tuple(dict.fromkeys(address for address in given if address is not None))
    if addresses and None in given:
        raise ValueError("--redis embedded goes with no other --redis")
    return addresses


def _quoted(text: str) -> str:
    """`text` as an argument of an endpoint string: colons and the like escaped."""
    for char in ("\\", ":", "="):
        text = text.replace(char, "\\" + char)
    return text
