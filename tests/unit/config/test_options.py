"""The options: what each takes, its bounds, where it stands, and its other names."""

from __future__ import annotations

import pytest

from pushservice.auth.origins import allowed_origin
from pushservice.config import coercers
from pushservice.config.coercers import node_name, nonempty_text
from pushservice.config.options import CONFIG_FILE, OPTIONS
from pushservice.redis.url import redis_address

BY_NAME = {option.name: option for option in OPTIONS}


def refusal(coerce, text: str) -> str:
    """The words in which `coerce` must refuse the text."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        coerce(text)
    return str(caught.value)


# -- the options -----------------------------------------------------------------------------------

NUMBERS = {
    "port": (1, 65535),
    "max-connections": (1, 10_000_000),
    "max-per-address": (0, 10_000_000),
    "connect-rate": (0, 1_000_000),
    "max-handshakes": (16, 1_000_000),
    "max-symbols": (1, 1_000_000),
    "max-total-symbols": (1, 100_000_000),
    "max-message": (128, 16_777_216),
    "message-rate": (0, 1_000_000),
    "byte-rate": (0, 1_000_000_000),
    "raw-budget": (1024, 1_073_741_824),
    "send-buffer": (0, 67_108_864),
    "heartbeat": (100, 600_000),
    "demo-rate": (1, 100_000),
    "log-max-size": (0, 1_099_511_627_776),
    "log-keep": (1, 10_000),
    "client-log-rate": (0, 100_000),
    "delay-buffer": (65_536, 1_099_511_627_776),
}
LENGTHS = {
    "tls-timeout": ("0.1", "600"),
    "upgrade-timeout": ("0.1", "600"),
    "close-timeout": ("0.1", "600"),
    "stall-timeout": ("0.1", "86400"),
    "ping-interval": ("0", "3600"),
    "ping-timeout": ("0.1", "3600"),
    "stale-after": ("0.1", "86400"),
    "feed-stale-after": ("0.1", "86400"),
    "max-worker-age": ("60", "31536000"),
    "drain-timeout": ("0.1", "3600"),
    "drain-delay": ("0", "600"),
    "token-leeway": ("0", "600"),
    "auth-timeout": ("0.1", "600"),
    "delays": ("0.1", "86400"),
}
TEXTS = {
    *("interface", "listen", "cert", "key", "certs", "channels", "symbol-regex", "symbol-field"),
    *("redis-ca", "redis-cert", "redis-key", "snapshot-hash", "registry-prefix"),
    *("redis-file", "registry-file", "client-ca"),
    *("token-key", "token-jwks", "token-audience", "token-issuer"),
}
ADDRESSES = {"redis", "registry"}
FLAGS = {
    *("plain", "no-page", "no-registry", "demo", "cert-watch", "affinity"),
    *("token-in-url", "require-origin"),
}
WORDS = {
    "subscribe": ["all", "demand"],
    "compression": ["auto", "off"],
    "auth": ["none", "token", "redis"],
    "token-algorithms": ["HS256", "RS256", "ES256", "EdDSA"],
    "log-format": ["text", "json"],
    "log-level": ["debug", "info", "warn", "error", "critical"],
}
OTHERS = {
    "node": node_name,
    "trusted-proxies": coercers.network,
    "admin": coercers.admin,
    "workers": coercers.workers,
    "origins": allowed_origin,
}


def test_every_option_is_of_one_kind():
    kinds = [*NUMBERS, *LENGTHS, *TEXTS, *FLAGS, *ADDRESSES, *WORDS, *OTHERS]
    assert sorted(kinds) == sorted(option.name for option in OPTIONS)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_of_the_options_have_these_bounds(name):
    low, high = NUMBERS[name]
    coerce = BY_NAME[name].coerce
    assert (coerce(str(low)), coerce(str(high))) == (low, high)
    for text in (str(low - 1), str(high + 1)):
        assert refusal(coerce, text) == f"{text!r} is not a whole number from {low} to {high}"


@pytest.mark.parametrize("name", LENGTHS)
def test_the_lengths_of_time_of_the_options_have_these_bounds(name):
    low, high = LENGTHS[name]
    coerce = BY_NAME[name].coerce
    assert (coerce(low), coerce(high)) == (float(low), float(high))
    for text in ("0.099" if float(low) else "-0.001", f"{high}.001"):
        assert refusal(coerce, text) == f"{text!r} is not a number of seconds from {low} to {high}"


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_text_is_taken_as_it_is_and_an_empty_one_refused(name):
    coerce = BY_NAME[name].coerce
    assert coerce is nonempty_text
    assert coerce(" a=b ") == " a=b "
    assert refusal(coerce, "") == "the value is empty"


@pytest.mark.parametrize("name", sorted(ADDRESSES))
def test_a_redis_is_read_as_an_address(name):
    assert BY_NAME[name].coerce is redis_address


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_read_in_a_way_of_its_own(name):
    assert BY_NAME[name].coerce is OTHERS[name]


@pytest.mark.parametrize("name", WORDS)
def test_some_options_are_one_of_a_few_words(name):
    coerce = BY_NAME[name].coerce
    assert [coerce(word) for word in WORDS[name]] == WORDS[name]
    assert refusal(coerce, "some") == f"'some' is none of: {', '.join(WORDS[name])}"


def test_files_and_directories_are_known_as_such():
    assert CONFIG_FILE.path
    assert {option.name for option in OPTIONS if option.path} == {
        *("cert", "key", "certs", "redis-ca", "redis-cert", "redis-key"),
        *("redis-file", "registry-file", "token-key", "token-jwks", "client-ca"),
    }


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_default_is_a_value_that_the_option_takes_and_numbers_have_units(option):
    if option.default is not None:
        option.coerce(option.default)
    counts = option.name in {*LENGTHS, *NUMBERS, "workers"} - {"port"}
    assert (option.unit is not None) is counts
    assert option.flag is (option.name in FLAGS)
