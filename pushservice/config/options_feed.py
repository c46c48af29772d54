"""Options about Redis: where quotes come from, and the registry of subscriptions.

Must not know: where values come from (command line, environment, file), or how Redis is reached.
"""

from __future__ import annotations

from typing import Final

from pushservice.config.coercers import node_name, one_of, seconds
from pushservice.config.option import Option
from pushservice.redis.url import EMBEDDED, redis_address

FEED: Final[tuple[Option, ...]] = (
    Option(
        "redis",
        "Redis that quotes come from: redis:// or rediss:// (TLS) with"
        " [[user]:password@]host[:port], unix://[[user]:password@]/path, redis+sentinel:// or"
        " rediss+sentinel:// with [[user]:password@]host[:port],host[:port]/service, or embedded"
        " for a private redis-server; several are shards, and any symbol may come from any of"
        " them",
        EMBEDDED,
        redis_address,
        placeholder="URL",
        repeatable=True,
        section="feed",
        secret=True,
    ),
    Option(
        "redis-ca",
        "CA certificates that verify Redis over TLS, in PEM; when not given, the system's",
        placeholder="FILE",
        section="feed",
        path=True,
    ),
    Option(
        "redis-cert",
        "client certificate to present to Redis over TLS, in PEM",
        placeholder="FILE",
        section="feed",
        path=True,
    ),
    Option(
        "redis-key",
        "private key of --redis-cert, in PEM",
        placeholder="FILE",
        section="feed",
        path=True,
    ),
    Option(
        "channels",
        "Redis channel pattern to listen to; the symbol is what its * matches",
        "quote.*",
        placeholder="PATTERN",
        repeatable=True,
        section="feed",
    ),
    Option(
        "subscribe",
        "what to subscribe to in Redis: all, the patterns of --channels, or demand, only the"
        " channels of watched symbols",
        "all",
        one_of("all", "demand"),
        placeholder="all|demand",
        section="feed",
    ),
    Option(
        "snapshot-hash",
        "Redis hash in which publishers keep the latest payload of each symbol; read for a"
        " symbol's first subscriber and after an outage",
        placeholder="NAME",
        section="feed",
    ),
    Option(
        "stale-after",
        "time without a quote of a symbol after which its clients are told that it is stale",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        section="feed",
    ),
    Option(
        "feed-stale-after",
        "time without any quote after which all clients are told that the feed is stale",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        section="feed",
    ),
    Option(
        "symbol-regex",
        "take the symbol from the channel's name: it is what the group `symbol` of this regular"
        " expression matches",
        placeholder="REGEX",
        section="feed",
    ),
    Option(
        "symbol-field",
        "take the symbol from this field of the JSON payload",
        placeholder="NAME",
        section="feed",
    ),
)

REGISTRY: Final[tuple[Option, ...]] = (
    Option(
        "registry",
        "Redis that holds the registry of who watches what; when not given, the first of --redis",
        None,
        redis_address,
        placeholder="URL",
        section="registry",
        secret=True,
    ),
    Option(
        "no-registry",
        "keep no registry of who watches what in Redis",
        flag=True,
        section="registry",
    ),
    Option(
        "registry-prefix",
        "prefix of the registry's keys",
        "quotepush:",
        section="registry",
    ),
    Option(
        "node",
        "name of this daemon in the registry, different from that of any other running daemon;"
        " when not given, the host's name and the port",
        None,
        node_name,
        placeholder="NAME",
        section="registry",
    ),
)
