"""The options, declared once, and the frozen, validated Config they make.

Must not know: where the words came from (command line, environment) beyond naming options in
messages, or what any room does with its settings. Every refusal is a ValueError whose text names
what was wrong and what would be right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from pushservice.channels import SymbolReader, single_star

Coercer: TypeAlias = Callable[[str], Any]


MAX_DIGITS: Final = 12


# -- coercers ----------------------------------------------------------------------------------


def whole_number(low: int, high: int) -> Coercer:
    """A coercer for whole numbers from `low` to `high`."""

    def coerce(text: str) -> int:
        plain = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
        number = int(text) if plain else low - 1
        if not low <= number <= high:
            raise ValueError(f"{text!r} is no whole number from {low} to {high}")
        return number

    return coerce


def some_text(text: str) -> str:
    """A coercer for text that may not be empty."""
    if not text:
        raise ValueError("the value is empty")
    return text


# -- Redis -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis listens: TCP `host` and `port`, or the Unix socket `path`; never both."""

    host: str | None = None
    port: int = 6379
    path: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """The address as a URL without its password, for logs."""
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host
        login = "" if self.password is None else f"{self.user or ''}:***@"
        return f"redis://{login}{host}:{self.port}"


#: the value of --redis that asks for a private redis-server
EMBEDDED: Final = "embedded"

_REDIS_FORMS: Final = "redis://[[user]:password@]host[:port], unix:///path, or embedded"


def redis_address(text: str) -> RedisAddress | None:
    """The coercer of --redis: an address, or None for `embedded`."""
    if text == EMBEDDED:
        return None
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        # The library's own words may repeat the password.
        raise ValueError(
            f"{_masked(text)!r} has a host or a port that can't be one; use {_REDIS_FORMS}"
        ) from None
    if url.scheme == "unix":
        if url.netloc or not url.path.startswith("/"):
            raise ValueError(
                f"{_masked(text)!r} needs an absolute path after three slashes,"
                " such as unix:///run/redis/redis.sock"
            )
        _refuse_extras(text, url.query, url.fragment)
        return RedisAddress(path=unquote(url.path))
    if url.scheme != "redis":
        raise ValueError(f"{_masked(text)!r} is not understood; use {_REDIS_FORMS}")
    if not url.hostname:
        raise ValueError(f"{_masked(text)!r} names no host; use {_REDIS_FORMS}")
    if port == 0:
        raise ValueError(f"{_masked(text)!r} has port 0; use 1 to 65535")
    if url.path.strip("/"):
        raise ValueError(
            f"{_masked(text)!r} names a database, and pub/sub is the same in all of them:"
            " leave out what follows the host"
        )
    _refuse_extras(text, url.query, url.fragment)
    if url.username and not url.password:
        raise ValueError(f"{_masked(text)!r} has a user and no password; use user:password@")
    return RedisAddress(
        host=url.hostname,
        port=port or 6379,
        user=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
    )


def _refuse_extras(text: str, query: str, fragment: str) -> None:
    if query or fragment:
        raise ValueError(f"{_masked(text)!r} has a ? or # part, which means nothing here")


def _masked(text: str) -> str:
    """`text` without what may be a login: all before its last `@`, however broken."""
    _, at, place = text.rpartition("@")
    if not at:
        return text
    scheme, slashes, _ = text.partition("://")
    return f"{scheme}{slashes}***@{place}" if slashes and scheme.isalpha() else f"***@{place}"


# -- the options -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One option of `twistd quotepush`.

    `default` is text, as it would be typed; None means that the option has no value unless given.
    `unit` says what a number counts. `variable` is an environment variable that stands in for the
    option. A `flag` takes no value.
    """

    name: str
    help: str
    default: str | None = None
    coerce: Coercer = some_text
    unit: str | None = None
    placeholder: str = "VALUE"
    repeatable: bool = False
    flag: bool = False
    variable: str | None = None


OPTIONS: Final[tuple[Option, ...]] = (
    Option("port", "TCP port to listen on", "8008", whole_number(1, 65535), placeholder="PORT"),
    Option("interface", "address to listen on", "0.0.0.0", placeholder="ADDRESS"),  # noqa: S104 - a server's default
    Option(
        "listen",
        "Twisted endpoint to listen on instead of --port and --interface, such as"
        " tcp:8008:interface=127.0.0.1 or unix:/run/quotepush.sock",
        placeholder="ENDPOINT",
        repeatable=True,
    ),
    Option(
        "cert", "TLS certificate in PEM, followed by its chain if it has one", placeholder="FILE"
    ),
    Option("key", "private key of --cert, in PEM", placeholder="FILE"),
    Option(
        "certs",
        "directory in which a development certificate is made when --cert is not given",
        "certs",
        placeholder="DIR",
    ),
    Option("plain", "serve ws:// without TLS", flag=True),
    Option(
        "redis",
        "where quotes come from: redis://[[user]:password@]host[:port], unix:///path, or embedded"
        " for a private redis-server",
        EMBEDDED,
        redis_address,
        placeholder="URL",
        variable="QUOTEPUSH_REDIS",
    ),
    Option(
        "channels",
        "Redis channel pattern to listen to; the symbol is what its * matched",
        "quote.*",
        placeholder="PATTERN",
        repeatable=True,
    ),
    Option(
        "symbol-regex",
        "take the symbol from the channel's name with this regular expression's group `symbol`",
        placeholder="REGEX",
    ),
    Option(
        "symbol-field", "take the symbol from this field of the JSON payload", placeholder="NAME"
    ),
    Option(
        "max-connections",
        "clients served at a time; when not given, the process's file limit less a reserve",
        None,
        whole_number(1, 10_000_000),
        "clients",
        "N",
    ),
    Option(
        "max-symbols",
        "symbols one client may subscribe",
        "1000",
        whole_number(1, 1_000_000),
        "symbols",
        "N",
    ),
    Option(
        "max-message",
        "size of one message from a client",
        "16384",
        whole_number(128, 16 * 1024 * 1024),
        "bytes",
        "N",
    ),
    Option(
        "heartbeat",
        "time between heartbeats on a connection",
        "5000",
        whole_number(100, 600_000),
        "milliseconds",
        "N",
    ),
    Option("no-page", "do not serve the page and quotepush.js on the public port", flag=True),
    Option("demo", "publish a simulated market of 200 symbols through Redis", flag=True),
    Option(
        "demo-rate",
        "quotes the simulated market publishes",
        "200",
        whole_number(1, 100_000),
        "quotes a second",
        "N",
    ),
)


# -- the configuration -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon was told, checked; see OPTIONS for what each field means.

    Raises ValueError when fields contradict each other.
    """

    port: int = 8008
    interface: str = "0.0.0.0"  # noqa: S104 - a server's default
    listen: tuple[str, ...] = ()
    cert: Path | None = None
    key: Path | None = None
    certs: Path = Path("certs")
    plain: bool = False
    redis: RedisAddress | None = None
    channels: tuple[str, ...] = ("quote.*",)
    symbol_regex: str | None = None
    symbol_field: str | None = None
    max_connections: int | None = None
    max_symbols: int = 1000
    max_message: int = 16384
    heartbeat: int = 5000
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

    def symbol_reader(self) -> SymbolReader:
        """A reader for the channels and the way of finding the symbol."""
        return SymbolReader(self.channels, self.symbol_regex, self.symbol_field)

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
            "redis": options.get("redis"),
            "channels": tuple(options.get("channels") or ()) or None,
            "symbol_regex": options.get("symbol-regex"),
            "symbol_field": options.get("symbol-field"),
            "max_connections": options.get("max-connections"),
            "max_symbols": options.get("max-symbols"),
            "max_message": options.get("max-message"),
            "heartbeat": options.get("heartbeat"),
            "page": not options.get("no-page"),
            "demo": bool(options.get("demo")),
            "demo_rate": options.get("demo-rate"),
        }
        return cls(**{name: value for name, value in values.items() if value is not None})


def _quoted(text: str) -> str:
    """`text` as an argument of an endpoint string: colons and the like escaped."""
    for char in ("\\", ":", "="):
        text = text.replace(char, "\\" + char)
    return text
