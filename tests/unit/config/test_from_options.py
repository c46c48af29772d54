"""The Config of option values: each option sets one field, and all conflicts are told."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pushservice.auth.origins import ANY
from pushservice.config.config import Config, ConflictingOptions
from pushservice.config.from_options import config_from_options
from pushservice.config.options import OPTIONS
from pushservice.limits import Limits
from pushservice.redis.url import RedisAddress, RedisTLS

BY_NAME = {option.name: option for option in OPTIONS}


def refusal(call, *arguments: object, **values: object) -> str:
    """The text of the ValueError that the call must raise."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        call(*arguments, **values)
    return str(caught.value)


# -- options and fields ----------------------------------------------------------------------------

#: A value for each option that makes another Config than the pair alone.
PAIR = {"cert": ["a.crt"], "key": ["a.key"]}
TOKENS = {
    "auth": "token",
    "token-key": "a.pem",
    "token-jwks": "a.json",
    "token-algorithms": ["ES256"],
    "token-audience": "a",
    "token-issuer": "a",
    "delays": [1.0],
}
REDIS_TLS = {
    "redis": [RedisAddress("secure", tls=True)],
    "redis-ca": "a.ca",
    "redis-cert": "a.crt",
    "redis-key": "a.key",
}
LIMITS = {
    "max-per-address": 21,
    "connect-rate": 22,
    "max-handshakes": 23,
    "tls-timeout": 24.5,
    "upgrade-timeout": 25.5,
    "close-timeout": 26.5,
    "max-symbols": 27,
    "max-total-symbols": 28,
    "max-message": 290,
    "message-rate": 30,
    "byte-rate": 31,
    "raw-budget": 3200,
    "send-buffer": 33,
    "stall-timeout": 34.5,
    "ping-interval": 35.5,
    "ping-timeout": 15.5,
    "heartbeat": 370,
}
CHANGES = LIMITS | {
    "port": 9,
    "interface": "::1",
    "listen": ["tcp:1", "tcp:2"],
    "cert": ["b.crt"],
    "key": ["b.key"],
    "certs": "elsewhere",
    "cert-watch": 1,
    "plain": 1,
    "redis": [RedisAddress("host"), RedisAddress("other", tls=True)],
    "redis-ca": "ca.crt",
    "redis-cert": "b.crt",
    "redis-key": "b.key",
    "channels": ["a.*", "b.*"],
    "subscribe": "demand",
    "snapshot-hash": "latest",
    "stale-after": 10.5,
    "feed-stale-after": 11.5,
    "registry": RedisAddress("registry"),
    "no-registry": 1,
    "registry-prefix": "q:",
    "node": "n1",
    "symbol-regex": "(?P<symbol>.+)",
    "symbol-field": "s",
    "compression": "off",
    "max-connections": 9,
    "no-page": 1,
    "demo": 1,
    "demo-rate": 9,
    "trusted-proxies": [ip_network("10.0.0.0/8"), "unix"],
    "admin": None,
    "workers": "auto",
    "affinity": 1,
    "max-worker-age": 90.5,
    "drain-timeout": 91.5,
    "drain-delay": 92.5,
    "log-format": "json",
    "log-level": "warn",
    "log-max-size": 0,
    "log-keep": 3,
    "client-log-rate": 0,
    "auth": "redis",
    "token-key": "t.pem",
    "token-jwks": "t.json",
    "token-algorithms": ["HS256", "EdDSA"],
    "token-audience": "quotes",
    "token-issuer": "shop",
    "token-leeway": 3.5,
    "token-in-url": 1,
    "auth-timeout": 4.5,
    "delays": [900.0, 60.0],
    "delay-buffer": 65_536,
    "origins": [ANY],
    "require-origin": 1,
    "client-ca": "ca.pem",
}
#: Of the option NAME-file nothing is known here: its content comes as NAME.
FILES = {option.name for option in OPTIONS if option.content_of}


def fields_of(config: Config) -> dict[str, Any]:
    """All values of a config by name, those of its limits among them."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for of in ("limits", "redis_tls"):
        within = dataclasses.asdict(values.pop(of))
        values |= {f"{of}.{name}": value for name, value in within.items()}
    return values


def test_every_field_of_a_config_is_fed_by_exactly_one_option_and_every_option_feeds_one():
    assert set(CHANGES) == set(BY_NAME) - FILES
    fed = []
    for name, value in CHANGES.items():
        base = next((with_it for with_it in (PAIR, REDIS_TLS) if name in with_it), {})
        if name in TOKENS.keys() - {"auth"}:
            base = TOKENS
        before = fields_of(config_from_options(base))
        after = fields_of(config_from_options(base | {name: value}))
        changed = [field for field in before if before[field] != after[field]]
        assert len(changed) == 1, f"--{name} changes {changed}"
        fed += changed
    # That there is no registry is the lack of what its keys begin with.
    fed.remove("registry_prefix")
    # How many clients there may be is known only once the files that may be open are counted.
    assert sorted(fed) == sorted(fields_of(Config()).keys() - {"limits.connections"})


def test_options_become_a_config_with_paths_tuples_and_truth_values():
    without = {"plain": 0, "symbol-field": None, "demo": 0, "subscribe": "all", "no-registry": 0}
    config = config_from_options(CHANGES | without | {"auth": "token"})
    assert config == Config(
        port=9,
        interface="::1",
        listen=("tcp:1", "tcp:2"),
        cert=(Path("b.crt"),),
        key=(Path("b.key"),),
        certs=Path("elsewhere"),
        cert_watch=True,
        plain=False,
        redis=(RedisAddress("host"), RedisAddress("other", tls=True)),
        redis_tls=RedisTLS(Path("ca.crt"), Path("b.crt"), Path("b.key")),
        channels=("a.*", "b.*"),
        subscribe="all",
        snapshot_hash="latest",
        compression="off",
        stale_after=10.5,
        feed_stale_after=11.5,
        registry=RedisAddress("registry"),
        registry_prefix="q:",
        node="n1",
        symbol_regex="(?P<symbol>.+)",
        symbol_field=None,
        max_connections=9,
        limits=Limits(
            symbols=27,
            message=290,
            message_rate=30,
            byte_rate=31,
            raw_budget=3200,
            send_buffer=33,
            heartbeat_ms=370,
            stall_timeout=34.5,
            ping_interval=35.5,
            ping_timeout=15.5,
            per_address=21,
            connect_rate=22,
            handshakes=23,
            total_symbols=28,
            tls_timeout=24.5,
            upgrade_timeout=25.5,
            close_timeout=26.5,
        ),
        page=False,
        demo=False,
        demo_rate=9,
        trusted_proxies=(ip_network("10.0.0.0/8"), "unix"),
        admin=None,
        workers="auto",
        affinity=True,
        max_worker_age=90.5,
        drain_timeout=91.5,
        drain_delay=92.5,
        log_format="json",
        log_level="warn",
        log_max_size=0,
        log_keep=3,
        client_log_rate=0,
        auth="token",
        token_key=Path("t.pem"),
        token_jwks=Path("t.json"),
        token_algorithms=("HS256", "EdDSA"),
        token_audience="quotes",
        token_issuer="shop",
        token_leeway=3.5,
        token_in_url=True,
        auth_timeout=4.5,
        delays=(900.0, 60.0),
        delay_buffer=65_536,
        origins=(ANY,),
        require_origin=True,
        client_ca=Path("ca.pem"),
    )
    assert config_from_options({"plain": 1, "demo": 1, "no-page": 0}).plain is True


def test_a_limit_of_zero_is_a_limit_that_was_given():
    given = {
        "max-per-address": 0,
        "connect-rate": 0,
        "message-rate": 0,
        "byte-rate": 0,
        "send-buffer": 0,
        "ping-interval": 0.0,
    }
    assert config_from_options(given).limits == Limits(
        per_address=0, connect_rate=0, message_rate=0, byte_rate=0, send_buffer=0, ping_interval=0
    )


def test_a_ping_time_out_longer_than_the_interval_is_refused_naming_both_options():
    words = refusal(config_from_options, {"ping-timeout": 7.5, "ping-interval": 5.0})
    assert "--ping-timeout 7.5 is longer than --ping-interval 5" in words
    # The other one's default counts as well.
    assert "--ping-timeout 10 is longer" in refusal(config_from_options, {"ping-interval": 5.0})
    assert "--ping-interval 20:" in refusal(config_from_options, {"ping-timeout": 21.0})
    config_from_options({"ping-timeout": 5.0, "ping-interval": 5.0})
    config_from_options({"ping-timeout": 21.0, "ping-interval": 0.0})


def test_no_options_make_the_default_config():
    assert config_from_options({}) == Config()
    # That of --admin stands for `off`.
    assert config_from_options(dict.fromkeys(set(BY_NAME) - {"admin"})) == Config()
    assert config_from_options({"listen": [], "channels": []}) == Config()


def test_what_contradicts_says_which_options_are_involved():
    with pytest.raises(ConflictingOptions) as caught:
        config_from_options(
            {
                "redis": [None, RedisAddress("host")],
                "redis-cert": "a.crt",
                "ping-timeout": 21.0,
                "no-registry": 1,
                "registry": RedisAddress("host"),
                "cert": ["a.crt"],
            }
        )
    assert [each.options for each in caught.value.found] == [
        ("redis",),
        ("redis-cert", "redis-key"),
        ("ping-timeout", "ping-interval"),
        ("registry", "no-registry"),
        ("cert", "key"),
    ]
    assert str(caught.value) == "\n".join(each.text for each in caught.value.found)
    names = {name for each in caught.value.found for name in each.options}
    assert names <= set(BY_NAME)
