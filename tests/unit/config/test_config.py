"""Config: which fields contradict each other, what it derives, and that passwords stay secret."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pushservice.auth.revocation_feed import revoke_channel
from pushservice.config.config import Config
from pushservice.config.from_options import config_from_options
from pushservice.feed.symbol_reader import IGNORED
from pushservice.redis.url import RedisAddress, RedisTLS


def refusal(call, *arguments: object, **values: object) -> str:
    """The text of the ValueError that the call must raise."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        call(*arguments, **values)
    return str(caught.value)


def test_a_config_shows_no_password():
    address = RedisAddress("host", user="bot", password="secret")
    assert "secret" not in repr(Config(redis=(address,)))


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_a_config_is_frozen(field):
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field.name, getattr(config, field.name))
    hash(config)


# -- conflicts --------------------------------------------------------------------------------

CERT, KEY = (Path("a.crt"),), (Path("a.key"),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cert": CERT}, "--cert needs --key too"),
        ({"key": KEY}, "--key needs --cert too"),
        (
            {"cert": CERT + CERT, "key": KEY},
            "--cert needs --key too, one for each: of --cert there are 2, of --key 1",
        ),
        ({"cert": CERT, "key": KEY, "plain": True}, "--plain serves without TLS, so --cert and"),
        ({"channels": ()}, "at least one channel pattern"),
        ({"channels": ("quote",)}, "'quote' has 0 *"),
        ({"symbol_regex": "x"}, "--symbol-regex: 'x' has no group named symbol"),
        ({"symbol_regex": "(", "channels": ("quote",)}, "--symbol-regex: '(' is no regular"),
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
        ({"demo": True, "symbol_field": "s"}, "--demo publishes the symbol in the field symbol"),
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


def test_all_conflicts_are_reported_at_once_with_a_line_each():
    lines = refusal(
        Config,
        cert=CERT,
        plain=True,
        channels=("quote", "a?", "b.*"),
        symbol_field="s",
        subscribe="demand",
        demo=True,
        redis_tls=RedisTLS(Path("ca")),
    ).split("\n")
    assert [line.split(",")[0][:44] for line in lines] == [
        "--cert needs --key too",
        "--plain serves without TLS",
        "--redis-ca",
        "--subscribe demand derives channels from sym",
        "--subscribe demand needs patterns with one *",
        "--subscribe demand needs patterns with one *",
        "--demo publishes to the first pattern of --c",
        "--demo publishes the symbol in the field sym",
    ]


def test_every_pattern_that_can_not_be_read_is_named():
    lines = refusal(Config, channels=("quote", "a.*", "other")).split("\n")
    assert [line.split(" has")[0] for line in lines] == [
        "--channels: 'quote'",
        "--channels: 'other'",
    ]


def test_a_bad_regex_is_not_reported_again_as_a_conflict_with_demo():
    assert "\n" not in refusal(Config, symbol_regex="(", demo=True)


def test_the_reader_of_a_config_reads_by_its_channels_regex_and_field():
    assert Config(channels=("a.*",)).symbol_reader().read(b"a.*", b"a.X", b"") == "X"
    by_regex = Config(symbol_regex="(?P<symbol>.)$").symbol_reader()
    assert by_regex.read(b"quote.*", b"quote.XY", b"") == "Y"
    by_field = Config(symbol_field="s").symbol_reader()
    assert by_field.read(b"quote.*", b"quote.X", b'{"s":"Z"}') == "Z"


def test_the_demonstration_publishes_by_the_first_pattern():
    assert Config(channels=("a.*.b", "*")).demo_channel("AAPL") == "a.AAPL.b"
    assert Config(channels=("a?.*",)).demo_channel("AAPL") is None


def test_what_the_registry_tells_publishers_is_never_taken_for_a_quote():
    config = Config(channels=("*",), registry_prefix="mine:")
    assert config.symbol_reader().read(b"*", b"mine:demand", b"+A") is IGNORED
    without = Config(channels=("*",), registry_prefix=None)
    assert without.symbol_reader().read(b"*", b"mine:demand", b"+A") == "mine:demand"


@pytest.mark.parametrize("registry", [None, "mine:", "quotepush:"])
def test_a_revocation_is_never_taken_for_a_quote(registry):
    reader = Config(channels=("quotepush:*",), registry_prefix=registry).symbol_reader()
    message = b'{"user":"ann"}'
    assert reader.read(b"quotepush:*", revoke_channel().encode(), message) is IGNORED
    assert reader.read(b"quotepush:*", b"quotepush:revoker", message) == "revoker"


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
        ({"listen": ("unix:/q:mode=660",)}, ["unix:/q:mode=660:backlog=1024"]),
        ({"listen": ("systemd:domain=INET:index=0",)}, ["systemd:domain=INET:index=0"]),
    ],
)
def test_endpoints_are_what_was_asked_with_a_deep_backlog(fields, endpoints):
    assert Config(**fields).endpoints() == tuple(endpoints)


# -- who may connect -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"auth": "token"}, "--auth token needs --token-key or --token-jwks"),
        ({"token-key": "k"}, "--token-key needs --auth token"),
        ({"auth": "none", "token-jwks": "k"}, "--token-jwks needs --auth token"),
        ({"auth": "redis", "token-issuer": "i"}, "--token-issuer needs --auth token"),
        ({"delays": [60.0]}, "--delays needs --auth token or --auth redis"),
        ({"auth": "none", "delays": [60.0]}, "--delays needs --auth token or --auth redis"),
        ({"client-ca": "ca", "plain": 1}, "--client-ca needs TLS, which --plain turns off"),
        (
            {"client-ca": "ca", "listen": ["tcp:1", "ssl:2:privateKey=k:certKey=c"]},
            "--client-ca does not apply to an ssl: endpoint of --listen",
        ),
    ],
)
def test_conflicting_options_of_authentication_are_refused(options, text):
    assert text in refusal(config_from_options, options)


@pytest.mark.parametrize(
    "options",
    [
        {"auth": "none"},
        {"auth": "token", "token-key": "k"},
        {"auth": "token", "token-jwks": "k", "delays": [60.0]},
        {"auth": "redis", "delays": [60.0], "token-leeway": 1.0},
        {"client-ca": "ca"},
        {"auth": "redis", "client-ca": "ca"},
    ],
)
def test_these_options_of_authentication_are_accepted(options):
    assert config_from_options(options)


def test_all_files_that_certificates_are_made_of_are_known():
    config = Config(cert=(Path("a.crt"), Path("b.crt")), key=(Path("a.key"), Path("b.key")))
    assert config.certificate_files == (*config.cert, *config.key)
    with_authority = dataclasses.replace(config, client_ca=Path("ca.crt"))
    assert with_authority.certificate_files == (*config.certificate_files, Path("ca.crt"))
