"""The options, declared once: names, words for the help, defaults, and what reads their values.

Must not know: where the words came from (command line, environment) beyond naming options in
messages, or what any room does with its settings. Every refusal is a ValueError whose text names
what was wrong and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pushservice.redisurl import EMBEDDED, redis_address

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


def seconds(low: float, high: float) -> Coercer:
    """A coercer for lengths of time from `low` to `high`, with up to three decimals."""

    def coerce(text: str) -> float:
        number = float(text) if _SECONDS.fullmatch(text) else low - 1
        if not low <= number <= high:
            raise ValueError(f"{text!r} is no number of seconds from {low:g} to {high:g}")
        return number

    return coerce


def one_of(*words: str) -> Coercer:
    """A coercer for one of a few words."""

    def coerce(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of: {', '.join(words)}")
        return text

    return coerce


def node_name(text: str) -> str:
    """A coercer for a name that stands in the registry's keys."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is no name: it has letters, digits, - and _, and dots within, 64 in all"
        )
    return text


_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}(?<!\.)", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")


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
        "where quotes come from: redis:// or rediss:// (TLS) with [[user]:password@]host[:port],"
        " unix://[[user]:password@]/path, redis+sentinel:// or rediss+sentinel:// with"
        " [[user]:password@]host[:port],host[:port]/service, or embedded for a private"
        " redis-server; several are shards, each of which may bring any symbol",
        EMBEDDED,
        redis_address,
        placeholder="URL",
        repeatable=True,
        variable="QUOTEPUSH_REDIS",
    ),
    Option(
        "redis-ca",
        "certificates that Redis is trusted by over TLS, in PEM; when not given, the system's",
        placeholder="FILE",
    ),
    Option("redis-cert", "certificate to show Redis over TLS, in PEM", placeholder="FILE"),
    Option("redis-key", "private key of --redis-cert, in PEM", placeholder="FILE"),
    Option(
        "channels",
        "Redis channel pattern to listen to; the symbol is what its * matched",
        "quote.*",
        placeholder="PATTERN",
        repeatable=True,
    ),
    Option(
        "subscribe",
        "what to listen to: all, whatever is published, or demand, the channels of watched symbols",
        "all",
        one_of("all", "demand"),
        placeholder="all|demand",
    ),
    Option(
        "snapshot-hash",
        "Redis hash, symbol to latest payload, that publishers keep: read for first subscribers and"
        " after an outage",
        placeholder="NAME",
    ),
    Option(
        "stale-after",
        "time without a quote after which the clients of a symbol are told that it is stale",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
    ),
    Option(
        "feed-stale-after",
        "time without any quote after which all clients are told that the feed is stale",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
    ),
    Option(
        "registry",
        "Redis in which who watches what is kept; when not given, the first of --redis",
        None,
        redis_address,
        placeholder="URL",
    ),
    Option("no-registry", "do not keep in Redis who watches what", flag=True),
    Option("registry-prefix", "what the registry's keys begin with", "quotepush:"),
    Option(
        "node",
        "this daemon's name in the registry, another for each that runs at a time; when not given,"
        " the host's name and the port",
        None,
        node_name,
        placeholder="NAME",
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
        "max-per-address",
        "connections from one address (IPv6: from one /64 network) at a time; 0 for any number",
        "1000",
        whole_number(0, 10_000_000),
        "connections",
        "N",
    ),
    Option(
        "connect-rate",
        "new connections from one address, averaged over 10 seconds; 0 for any number",
        "100",
        whole_number(0, 1_000_000),
        "connections a second",
        "N",
    ),
    Option(
        "max-handshakes",
        "connections at a time that are not clients yet, or any more: handshakes, pages, closes",
        "1000",
        whole_number(16, 1_000_000),
        "connections",
        "N",
    ),
    Option(
        "tls-timeout",
        "time for the TLS handshake, from the accept on",
        "10",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
    ),
    Option(
        "upgrade-timeout",
        "time for the HTTP request of the opening handshake",
        "10",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
    ),
    Option(
        "close-timeout",
        "time a client has to answer a close before the connection is aborted",
        "5",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
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
        "max-total-symbols",
        "symbols known at a time, watched or quoted; the last values of those nobody watches make"
        " room, oldest first",
        "100000",
        whole_number(1, 100_000_000),
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
        "message-rate",
        "messages from one client, averaged over 10 seconds; 0 for any number",
        "100",
        whole_number(0, 1_000_000),
        "messages a second",
        "N",
    ),
    Option(
        "byte-rate",
        "bytes from one client, averaged over 10 seconds; 0 for any number",
        "65536",
        whole_number(0, 1_000_000_000),
        "bytes a second",
        "N",
    ),
    Option(
        "raw-budget",
        "updates kept for one client's raw subscriptions while it is slow; past it the client is"
        " closed with 4008",
        "1048576",
        whole_number(1024, 1024 * 1024 * 1024),
        "bytes",
        "N",
    ),
    Option(
        "send-buffer",
        "what the kernel keeps for one client (SO_SNDBUF); 0 leaves it to the kernel",
        "65536",
        whole_number(0, 64 * 1024 * 1024),
        "bytes",
        "N",
    ),
    Option(
        "stall-timeout",
        "time after which a client is given up that is behind and takes nothing",
        "30",
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
    ),
    Option(
        "ping-interval",
        "time between pings to a client, to find dead connections; 0 for none",
        "20",
        seconds(0, 3600),
        "seconds",
        "SECONDS",
    ),
    Option(
        "ping-timeout",
        "time for the answer to a ping before the connection is aborted",
        "10",
        seconds(0.1, 3600),
        "seconds",
        "SECONDS",
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
