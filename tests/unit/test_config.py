"""Options and Config: what each takes, how each refusal reads, and that passwords stay secret."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pushservice.config import (
    OPTIONS,
    Config,
    RedisAddress,
    redis_address,
    some_text,
    whole_number,
)

BY_NAME = {option.name: option for option in OPTIONS}


def refusal(call, *arguments: object, **values: object) -> str:
    """The text of the ValueError that the call must raise."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        call(*arguments, **values)
    return str(caught.value)


# -- numbers and texts -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["5", "6", "7"])
def test_a_whole_number_within_its_bounds_is_taken(text):
    assert whole_number(5, 7)(text) == int(text)


@pytest.mark.parametrize("text", ["4", "8", "-5", "5.0", "five", "", "5 000", "1e9", "0x5"])
def test_a_whole_number_outside_of_its_bounds_is_refused_with_the_bounds(text):
    assert refusal(whole_number(5, 7), text) == f"{text!r} is no whole number from 5 to 7"


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("port", 1, 65535),
        ("max-connections", 1, 10_000_000),
        ("max-symbols", 1, 1_000_000),
        ("max-message", 128, 16_777_216),
        ("heartbeat", 100, 600_000),
        ("demo-rate", 1, 100_000),
    ],
)
def test_the_numbers_of_the_options_have_these_bounds(name, low, high):
    coerce = BY_NAME[name].coerce
    assert (coerce(str(low)), coerce(str(high))) == (low, high)
    for text in (str(low - 1), str(high + 1)):
        assert refusal(coerce, text) == f"{text!r} is no whole number from {low} to {high}"


TEXTS = sorted(set(BY_NAME) - {o.name for o in OPTIONS if o.flag or o.unit} - {"port", "redis"})


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_taken_as_it_is_and_an_empty_one_refused(name):
    coerce = BY_NAME[name].coerce
    assert coerce is some_text
    assert coerce(" a=b ") == " a=b "
    assert refusal(coerce, "") == "the value is empty"


# -- Redis -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("embedded", None),
        ("redis://host", RedisAddress("host")),
        ("redis://host/", RedisAddress("host")),
        ("redis://host:7000", RedisAddress("host", 7000)),
        ("redis://[::1]:7000", RedisAddress("::1", 7000)),
        ("redis://:secret@host", RedisAddress("host", password="secret")),
        ("redis://bot:secret@host", RedisAddress("host", user="bot", password="secret")),
        (
            "redis://b%40t:s%2F%3a%E2%82%ac@host:1",
            RedisAddress("host", 1, user="b@t", password="s/:€"),
        ),
        ("unix:///run/redis.sock", RedisAddress(path="/run/redis.sock")),
        ("unix:///run/my%20redis", RedisAddress(path="/run/my redis")),
    ],
)
def test_an_address_is_understood(text, address):
    assert redis_address(text) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost", "'localhost' is not understood; use redis://"),
        ("rediss://host", "'rediss://host' is not understood; use redis://"),
        ("", "'' is not understood; use redis://"),
        ("redis://", "'redis://' names no host; use redis://"),
        ("redis://:6379", "names no host"),
        ("redis://host:0", "has port 0; use 1 to 65535"),
        ("redis://host:70000", "has a host or a port that can't be one; use redis://"),
        ("redis://host:x", "has a host or a port that can't be one"),
        ("redis://[::1", "has a host or a port that can't be one; use redis://"),
        ("redis://host/3", "names a database, and pub/sub is the same in all of them: leave out"),
        ("redis://host?db=3", "has a ? or # part, which means nothing here"),
        ("redis://host#3", "has a ? or # part, which means nothing here"),
        ("redis://bot@host", "has a user and no password; use user:password@"),
        ("redis://bot:@host", "has a user and no password; use user:password@"),
        ("unix://run/redis.sock", "needs an absolute path after three slashes, such as unix:///"),
        ("unix:redis.sock", "needs an absolute path after three slashes"),
        ("unix:///a?b", "has a ? or # part, which means nothing here"),
        ("unix:///a#b", "has a ? or # part, which means nothing here"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused_in_words(text, words):
    assert words in refusal(redis_address, text)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (RedisAddress("host", 7000), "redis://host:7000"),
        (RedisAddress("::1"), "redis://[::1]:6379"),
        (RedisAddress(path="/run/redis.sock"), "unix:///run/redis.sock"),
        (RedisAddress("host", password="secret"), "redis://:***@host:6379"),
        (RedisAddress("host", user="bot", password="secret"), "redis://bot:***@host:6379"),
    ],
)
def test_an_address_is_shown_as_a_url_without_its_password(address, text):
    assert str(address) == text
    assert "secret" not in repr(address)
    assert "secret" not in repr(Config(redis=address))
    assert address.password is None or redis_address(text.replace("***", "secret")) == address


@pytest.mark.parametrize(
    "text",
    [
        "http://bot:secret@host",
        "redis://bot:secret@",
        "redis://bot:secret@host:0",
        "redis://bot:secret@host:x",
        "redis://bot:secret@host/3",
        "redis://bot:secret@host?x",
        "redis://bot:s@secret@host?x",
        "redis://bot:secret@[::1",
        "redis://bot:x/secret@host",
        "redis://bot:?secret@host",
        "redis://bot:x#secret@host",
        "unix://bot:secret@host/path",
        "redis:bot:secret@host",
        "bot:secret@host",
        "redis:/bot:secret@host",
        "redis://bot:12/secret@host",
        "redis://bot:secret/x@host",
        "redis://bot:secret@h℀st",
    ],
)
def test_no_refusal_shows_a_password(text):
    assert "secret" not in refusal(redis_address, text)


# -- options and fields ----------------------------------------------------------------------------

#: A value for each option that makes another Config than the pair alone.
PAIR = {"cert": "a.crt", "key": "a.key"}
CHANGES = {
    "port": 9,
    "interface": "::1",
    "listen": ["tcp:1", "tcp:2"],
    "cert": "b.crt",
    "key": "b.key",
    "certs": "elsewhere",
    "plain": 1,
    "redis": RedisAddress("host"),
    "channels": ["a.*", "b.*"],
    "symbol-regex": "(?P<symbol>.+)",
    "symbol-field": "s",
    "max-connections": 9,
    "max-symbols": 9,
    "max-message": 999,
    "heartbeat": 999,
    "no-page": 1,
    "demo": 1,
    "demo-rate": 9,
}


def test_every_field_of_a_config_is_fed_by_exactly_one_option_and_every_option_feeds_one():
    assert set(CHANGES) == set(BY_NAME)
    fed = []
    for name, value in CHANGES.items():
        base = PAIR if name in PAIR else {}
        before = dataclasses.asdict(Config.from_options(base))
        after = dataclasses.asdict(Config.from_options(base | {name: value}))
        changed = [field for field in before if before[field] != after[field]]
        assert len(changed) == 1, f"--{name} changes {changed}"
        fed += changed
    assert sorted(fed) == sorted(field.name for field in dataclasses.fields(Config))


def test_options_become_a_config_with_paths_tuples_and_truth_values():
    config = Config.from_options(CHANGES | {"plain": 0, "symbol-field": None, "demo": 0})
    assert config == Config(
        port=9,
        interface="::1",
        listen=("tcp:1", "tcp:2"),
        cert=Path("b.crt"),
        key=Path("b.key"),
        certs=Path("elsewhere"),
        plain=False,
        redis=RedisAddress("host"),
        channels=("a.*", "b.*"),
        symbol_regex="(?P<symbol>.+)",
        symbol_field=None,
        max_connections=9,
        max_symbols=9,
        max_message=999,
        heartbeat=999,
        page=False,
        demo=False,
        demo_rate=9,
    )
    assert Config.from_options({"plain": 1, "demo": 1, "no-page": 0}).plain is True


def test_no_options_make_the_default_config():
    assert Config.from_options({}) == Config()
    assert Config.from_options(dict.fromkeys(BY_NAME)) == Config()
    assert Config.from_options({"listen": [], "channels": []}) == Config()


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_a_config_is_frozen(field):
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field.name, getattr(config, field.name))
    hash(config)


def test_an_address_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RedisAddress("host").password = "other"


# -- contradictions --------------------------------------------------------------------------------

CERT, KEY = Path("a.crt"), Path("a.key")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cert": CERT}, "--cert needs --key too"),
        ({"key": KEY}, "--key needs --cert too"),
        ({"cert": CERT, "key": KEY, "plain": True}, "--plain serves without TLS, so --cert and"),
        ({"channels": ()}, "at least one channel pattern"),
        ({"channels": ("quote",)}, "'quote' has 0 *"),
        ({"symbol_regex": "x"}, "no group named symbol"),
        ({"symbol_regex": "(?P<symbol>x)", "symbol_field": "s"}, "exclude each other"),
        ({"demo": True, "channels": ("a?.*",)}, "'a?.*' has not exactly one wildcard *"),
        (
            {"demo": True, "channels": ("a", "b.*"), "symbol_field": "symbol"},
            "--demo publishes to the first pattern of --channels with its only *",
        ),
        (
            {"demo": True, "symbol_regex": r"(?P<symbol>\d+)"},
            "--symbol-regex finds no AAPL in 'quote.AAPL', where --demo publishes",
        ),
        ({"demo": True, "symbol_field": "s"}, "--demo have their symbol in the field symbol"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_in_words(fields, words):
    assert words in refusal(Config, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"cert": CERT, "key": KEY},
        {"plain": True},
        {"demo": True},
        {"demo": True, "symbol_field": "symbol"},
        {"demo": True, "symbol_regex": r"quote\.(?P<symbol>.+)"},
        {"demo": True, "channels": ("a.*.b", "c?.*")},
    ],
)
def test_fields_that_go_together_are_taken(fields):
    Config(**fields)


def test_the_reader_of_a_config_reads_by_its_channels_regex_and_field():
    assert Config(channels=("a.*",)).symbol_reader().read(b"a.*", b"a.X", b"") == "X"
    by_regex = Config(symbol_regex="(?P<symbol>.)$").symbol_reader()
    assert by_regex.read(b"quote.*", b"quote.XY", b"") == "Y"
    by_field = Config(symbol_field="s").symbol_reader()
    assert by_field.read(b"quote.*", b"quote.X", b'{"s":"Z"}') == "Z"


def test_the_demonstration_publishes_by_the_first_pattern():
    assert Config(channels=("a.*.b", "*")).demo_channel("AAPL") == "a.AAPL.b"
    assert Config(channels=("a?.*",)).demo_channel("AAPL") is None


# -- endpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "endpoints"),
    [
        ({}, ["tcp:8008:interface=0.0.0.0:backlog=1024"]),
        ({"port": 9, "interface": "::1"}, [r"tcp:9:interface=\:\:1:backlog=1024"]),
        ({"interface": "a=b\\c"}, [r"tcp:8008:interface=a\=b\\c:backlog=1024"]),
        ({"listen": ("tcp:1",), "port": 9}, ["tcp:1:backlog=1024"]),
        ({"listen": ("tcp6:1", "tcp:2")}, ["tcp6:1:backlog=1024", "tcp:2:backlog=1024"]),
        ({"listen": ("ssl:1",)}, ["ssl:1:backlog=1024"]),
        ({"listen": ("tcp:1:backlog=7",)}, ["tcp:1:backlog=7"]),
        ({"listen": ("unix:/run/q.sock",)}, ["unix:/run/q.sock"]),
        ({"listen": ("systemd:domain=INET:index=0",)}, ["systemd:domain=INET:index=0"]),
    ],
)
def test_endpoints_are_what_was_asked_with_a_deep_backlog(fields, endpoints):
    assert Config(**fields).endpoints() == tuple(endpoints)
