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
        "where quotes come from: redis:// or rediss:// (TLS) with [[user]:password@]host[:port],"
        " unix://[[user]:password@]/path, redis+sentinel:// or rediss+sentinel:// with"
        " [[user]:password@]host[:port],host[:port]/service, or embedded for a private"
        " redis-server; several are shards, each of which may bring any symbol",
        EMBEDDED,
        redis_address,
        placeholder="URL",
        repeatable=True,
        section="feed",
        secret=True,
    ),
    Option(
        "redis-ca",
        "certificates that Redis is trusted by over TLS, in PEM; when not given, the system's",
        placeholder="FILE",
        section="feed",
        path=True,
    ),
    Option(
        "redis-cert",
        "certificate to show Redis over TLS, in PEM",
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
        "Redis channel pattern to listen to; the symbol is what its * matched",
        "quote.*",
        placeholder="PATTERN",
        repeatable=True,
        section="feed",
    ),
    Option(
        "subscribe",
        "what to listen to: all, whatever is published, or demand, the channels of watched symbols",
        "all",
        one_of("all", "demand"),
        placeholder="all|demand",
        section="feed",
    ),
    Option(
        "snapshot-hash",
        "Redis hash, symbol to latest payload, that publishers keep: read for first subscribers and"
        " after an outage",
        placeholder="NAME",
        section="feed",
    ),
    Option(
        "stale-after",
        "time without a quote after which the clients of a symbol are told that it is stale",
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
        "take the symbol from the channel's name with this regular expression's group `symbol`",
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
        "Redis in which who watches what is kept; when not given, the first of --redis",
        None,
        redis_address,
        placeholder="URL",
        section="registry",
        secret=True,
    ),
    Option(
        "no-registry",
        "do not keep in Redis who watches what",
        flag=True,
        section="registry",
    ),
    Option(
        "registry-prefix",
        "what the registry's keys begin with",
        "quotepush:",
        section="registry",
    ),
    Option(
        "node",
        "this daemon's name in the registry, another for each that runs at a time; when not given,"
        " the host's name and the port",
        None,
        node_name,
        placeholder="NAME",
        section="registry",
    ),
)
