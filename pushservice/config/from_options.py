"""Makes the Config of option values: each field from the option that sets it.

Must not know: where values come from (command line, environment, file), or what they are good for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pushservice.config.config import Config, Conflict, ConflictingOptions
from pushservice.limits import Limits
from pushservice.redis.url import RedisAddress, RedisTLS

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


def config_from_options(options: Mapping[str, Any]) -> Config:
    """A Config of coerced option values by option name; absent or None means not given.

    Only an `admin` of None was given, as `off`. Raises ConflictingOptions.
    """
    found: list[Conflict] = []

    def path(name: str) -> Path | None:
        return None if options.get(name) is None else Path(options[name])

    def paths(name: str) -> tuple[Path, ...]:
        return tuple(map(Path, options.get(name) or ()))

    values: dict[str, Any] = {
        "port": options.get("port"),
        "interface": options.get("interface"),
        "listen": tuple(options.get("listen") or ()),
        "cert": paths("cert"),
        "key": paths("key"),
        "certs": path("certs"),
        "cert_watch": bool(options.get("cert-watch")),
        "plain": bool(options.get("plain")),
        "redis": _addresses(options.get("redis") or (), found),
        "redis_tls": _redis_tls(path("redis-ca"), path("redis-cert"), path("redis-key"), found),
        "subscribe": options.get("subscribe"),
        "snapshot_hash": options.get("snapshot-hash"),
        "stale_after": options.get("stale-after"),
        "feed_stale_after": options.get("feed-stale-after"),
        "registry": options.get("registry"),
        "node": options.get("node"),
        "channels": tuple(options.get("channels") or ()) or None,
        "symbol_regex": options.get("symbol-regex"),
        "symbol_field": options.get("symbol-field"),
        "compression": options.get("compression"),
        "max_connections": options.get("max-connections"),
        "limits": _limits(options, found),
        "page": not options.get("no-page"),
        "demo": bool(options.get("demo")),
        "demo_rate": options.get("demo-rate"),
        "trusted_proxies": tuple(options.get("trusted-proxies") or ()),
        "workers": options.get("workers"),
        "affinity": bool(options.get("affinity")),
        "max_worker_age": options.get("max-worker-age"),
        "drain_timeout": options.get("drain-timeout"),
        "drain_delay": options.get("drain-delay"),
        "log_format": options.get("log-format"),
        "log_level": options.get("log-level"),
        "log_max_size": options.get("log-max-size"),
        "log_keep": options.get("log-keep"),
        "client_log_rate": options.get("client-log-rate"),
        "auth": options.get("auth"),
        "token_key": path("token-key"),
        "token_jwks": path("token-jwks"),
        "token_algorithms": tuple(options.get("token-algorithms") or ()),
        "token_audience": options.get("token-audience"),
        "token_issuer": options.get("token-issuer"),
        "token_leeway": options.get("token-leeway"),
        "token_in_url": bool(options.get("token-in-url")),
        "auth_timeout": options.get("auth-timeout"),
        "delays": tuple(options.get("delays") or ()),
        "delay_buffer": options.get("delay-buffer"),
        "origins": tuple(options.get("origins") or ()),
        "require_origin": bool(options.get("require-origin")),
        "client_ca": path("client-ca"),
    }
    given = {name: value for name, value in values.items() if value is not None}
    if "admin" in options:
        given["admin"] = options["admin"]
    if options.get("no-registry"):
        if options.get("registry") is not None:
            exclude = "--registry and --no-registry exclude each other"
            found.append(Conflict(("registry", "no-registry"), exclude))
        given["registry_prefix"] = None
    elif options.get("registry-prefix") is not None:
        given["registry_prefix"] = options["registry-prefix"]
    try:
        config = Config(**given)
    except ConflictingOptions as more:
        found += more.found
    if found:
        raise ConflictingOptions(found)
    return config


def _addresses(
    given: Sequence[RedisAddress | None], found: list[Conflict]
) -> tuple[RedisAddress, ...]:
    """The addresses of --redis; the embedded one, which is None in `given`, makes none."""
    addresses = tuple(dict.fromkeys(address for address in given if address is not None))
    if addresses and None in given:
        found.append(
            Conflict(("redis",), "--redis embedded can't be combined with another --redis")
        )
    return addresses


def _redis_tls(
    ca: Path | None, cert: Path | None, key: Path | None, found: list[Conflict]
) -> RedisTLS:
    try:
        return RedisTLS(ca, cert, key)
    except ValueError as error:
        found.append(Conflict(("redis-cert", "redis-key"), str(error)))
        return RedisTLS(ca)


def _limits(options: Mapping[str, Any], found: list[Conflict]) -> Limits:
    given = {
        field: options[name]
        for field, name in _LIMIT_OPTIONS.items()
        if options.get(name) is not None
    }
    try:
        return Limits(**given)
    except ValueError as error:
        found.append(Conflict(("ping-timeout", "ping-interval"), str(error)))
        return Limits()
