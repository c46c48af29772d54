"""Config: which option feeds which field, what contradicts, and that passwords stay secret."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pushservice.auth.origins import ANY
from pushservice.auth.revocation_feed import revoke_channel
from pushservice.config.config import Config, Contradictory
from pushservice.config.options import OPTIONS
from pushservice.feed.symbol_reader import IGNORED
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
        before = fields_of(Config.from_options(base))
        after = fields_of(Config.from_options(base | {name: value}))
        changed = [field for field in before if before[field] != after[field]]
        assert len(changed) == 1, f"--{name} changes {changed}"
        fed += changed
    # That there is no registry is the lack of what its keys begin with.
    fed.remove("registry_prefix")
    # How many clients there may be is known only once the files that may be open are counted.
    assert sorted(fed) == sorted(fields_of(Config()).keys() - {"limits.connections"})


def test_options_become_a_config_with_paths_tuples_and_truth_values():
    without = {"plain": 0, "symbol-field": None, "demo": 0, "subscribe": "all", "no-registry": 0}
    config = Config.from_options(CHANGES | without | {"auth": "token"})
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
    assert Config.from_options({"plain": 1, "demo": 1, "no-page": 0}).plain is True


def test_a_limit_of_nothing_is_a_limit_that_was_given():
    given = {
        "max-per-address": 0,
        "connect-rate": 0,
        "message-rate": 0,
        "byte-rate": 0,
        "send-buffer": 0,
        "ping-interval": 0.0,
    }
    assert Config.from_options(given).limits == Limits(
        per_address=0, connect_rate=0, message_rate=0, byte_rate=0, send_buffer=0, ping_interval=0
    )


def test_a_ping_time_out_longer_than_the_interval_is_refused_naming_both_options():
    words = refusal(Config.from_options, {"ping-timeout": 7.5, "ping-interval": 5.0})
    assert "--ping-timeout 7.5 is longer than --ping-interval 5" in words
    # The other one's default counts as well.
    assert "--ping-timeout 10 is longer" in refusal(Config.from_options, {"ping-interval": 5.0})
    assert "--ping-interval 20:" in refusal(Config.from_options, {"ping-timeout": 21.0})
    Config.from_options({"ping-timeout": 5.0, "ping-interval": 5.0})
    Config.from_options({"ping-timeout": 21.0, "ping-interval": 0.0})


def test_a_config_shows_no_password():
    address = RedisAddress("host", user="bot", password="secret")
    assert "secret" not in repr(Config(redis=(address,)))


def test_no_options_make_the_default_config():
    assert Config.from_options({}) == Config()
    # That of --admin stands for `off`.
    assert Config.from_options(dict.fromkeys(set(BY_NAME) - {"admin"})) == Config()
    assert Config.from_options({"listen": [], "channels": []}) == Config()


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_a_config_is_frozen(field):
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field.name, getattr(config, field.name))
    hash(config)


# -- contradictions --------------------------------------------------------------------------------

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


def test_all_that_contradicts_is_told_at_once_with_a_line_each():
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
        "--subscribe demand makes channels of symbols",
        "--subscribe demand needs patterns with one *",
        "--subscribe demand needs patterns with one *",
        "--demo publishes to the first pattern of --c",
        "the payloads of --demo have their symbol in ",
    ]


def test_every_pattern_that_can_not_be_read_is_named():
    lines = refusal(Config, channels=("quote", "a.*", "other")).split("\n")
    assert [line.split(" has")[0] for line in lines] == [
        "--channels: 'quote'",
        "--channels: 'other'",
    ]


def test_the_demonstration_is_not_held_against_a_regex_that_is_none():
    assert "\n" not in refusal(Config, symbol_regex="(", demo=True)


def test_what_contradicts_says_which_options_are_involved():
    with pytest.raises(Contradictory) as caught:
        Config.from_options(
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
def test_who_is_revoked_is_never_taken_for_a_quote(registry):
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
        ({"token-key": "k"}, "--token-key is for tokens: say --auth token too"),
        ({"auth": "none", "token-jwks": "k"}, "--token-jwks is for tokens: say --auth token too"),
        ({"auth": "redis", "token-issuer": "i"}, "--token-issuer is for tokens"),
        ({"delays": [60.0]}, "--delays are for who has a token that asks for one"),
        ({"auth": "none", "delays": [60.0]}, "say --auth token or redis too"),
        ({"client-ca": "ca", "plain": 1}, "--client-ca asks for certificates, which --plain has"),
        (
            {"client-ca": "ca", "listen": ["tcp:1", "ssl:2:privateKey=k:certKey=c"]},
            "--client-ca asks for certificates, which an ssl: endpoint of --listen does not",
        ),
    ],
)
def test_what_says_nothing_of_who_may_connect_is_refused(options, text):
    assert text in refusal(Config.from_options, options)


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
def test_these_ways_to_say_who_may_connect_are_taken(options):
    assert Config.from_options(options)


def test_all_files_that_certificates_are_made_of_are_known():
    config = Config(cert=(Path("a.crt"), Path("b.crt")), key=(Path("a.key"), Path("b.key")))
    assert config.certificate_files == (*config.cert, *config.key)
    with_authority = dataclasses.replace(config, client_ca=Path("ca.crt"))
    assert with_authority.certificate_files == (*config.certificate_files, Path("ca.crt"))
