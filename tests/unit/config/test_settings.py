"""Settings: every option by every layer, which layer goes before which, and all errors at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushservice.config.config import Config
from pushservice.config.layers import SECTIONS
from pushservice.config.option import Option
from pushservice.config.options import OPTIONS
from pushservice.config.settings import DEFAULT, Settings, config_from_texts, resolve

BY_NAME = {option.name: option for option in OPTIONS}
HERE = Path("/here")
FILE = Path("/etc/q.toml")

#: the content of the files that tests name
FILES = {
    "/here/secret": "rediss://:one@one\n",
    "/etc/secret": "# the first\nredis://:one@one\r\n\n  \nredis://:two@two\n",
    "/here/empty": "# nothing\n\n",
    "/here/bare": "hunter2 \n",
    "/here/bad": "redis://one\nredis://:s3same@host:0\n",
}


def read(path: Path) -> str:
    if str(path) not in FILES:
        raise ValueError(f"can't read {path}: No such file or directory")
    return FILES[str(path)]


def resolved(
    typed: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    table: dict[str, Any] | None = None,
) -> Settings:
    return resolve(typed or {}, environment or {}, table, file=FILE, directory=HERE, read=read)


def of_file(name: str, value: Any) -> dict[str, Any]:
    """The table of a file that sets one option."""
    section = BY_NAME[name].section
    return {section: {name: value}} if section else {name: value}


# -- every option, on every layer ------------------------------------------------------------------

#: for each option a value, how TOML has it, and what else is needed for it
SAMPLES: dict[str, Any] = {
    "port": 9,
    "interface": "::1",
    "listen": ["tcp:1", "tcp:2"],
    "cert": ["/b.crt"],
    "key": ["/b.key"],
    "certs": "/elsewhere",
    "cert-watch": True,
    "plain": True,
    "redis": ["redis://host", "redis://:pass@other"],
    "redis-file": "/here/secret",
    "redis-ca": "/ca.crt",
    "redis-cert": "/b.crt",
    "redis-key": "/b.key",
    "channels": ["a.*", "b.*"],
    "subscribe": "demand",
    "snapshot-hash": "latest",
    "stale-after": 10.5,
    "feed-stale-after": 11,
    "registry": "redis://registry",
    "registry-file": "/here/secret",
    "no-registry": True,
    "registry-prefix": "q:",
    "node": "n1",
    "symbol-regex": "(?P<symbol>.+)",
    "symbol-field": "s",
    "compression": "off",
    "max-connections": 9,
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
    "ping-interval": 35.125,
    "ping-timeout": 15.5,
    "heartbeat": 370,
    "trusted-proxies": ["10.0.0.0/8", "unix"],
    "admin": "off",
    "no-page": True,
    "demo": True,
    "demo-rate": 9,
    "workers": 3,
    "affinity": True,
    "max-worker-age": 90.5,
    "drain-timeout": 91.5,
    "drain-delay": 92,
    "log-format": "json",
    "log-level": "warn",
    "log-max-size": 0,
    "log-keep": 3,
    "client-log-rate": 0,
    "auth": "redis",
    "token-key": "/t.pem",
    "token-jwks": "/t.json",
    "token-algorithms": ["HS256", "EdDSA"],
    "token-audience": "quotes",
    "token-issuer": "shop",
    "token-leeway": 3.5,
    "token-in-url": True,
    "auth-timeout": 4.5,
    "delays": [900, 60.5],
    "delay-buffer": 65_536,
    "origins": ["https://a.example", "*"],
    "require-origin": True,
    "client-ca": "/ca.pem",
}
PAIR = {"cert": ["/a.crt"], "key": ["/a.key"]}
TOKENS: dict[str, list[str]] = {
    "auth": ["token"],
    "token-key": ["/a.pem"],
    "token-jwks": ["/a.json"],
    "token-algorithms": ["ES256"],
    "token-audience": ["a"],
    "token-issuer": ["a"],
    "delays": ["1"],
}
REDIS_TLS = {"redis": ["rediss://tls"], "redis-cert": ["/a.crt"], "redis-key": ["/a.key"]}


def needed(name: str) -> dict[str, list[str]]:
    """What must be given for an option to make sense, with another value of itself."""
    if name.startswith("redis-"):
        return REDIS_TLS
    if name in PAIR:
        return PAIR
    return TOKENS if name in TOKENS.keys() - {"auth"} else {}


def beside(name: str) -> dict[str, list[str]]:
    """What must be typed beside an option that is given elsewhere."""
    own = {name, BY_NAME[name].content_of}
    return {other: value for other, value in needed(name).items() if other not in own}


def as_texts(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def test_there_is_a_sample_of_every_option():
    assert set(SAMPLES) == set(BY_NAME)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_option_has_the_same_effect_from_each_layer(name):
    option, value = BY_NAME[name], SAMPLES[name]
    others = beside(name)
    by_line = resolved(others | {name: True if option.flag else as_texts(value)})
    by_environment = resolved(
        others, {option.variable: "1" if option.flag else " ".join(as_texts(value))}
    )
    by_file = resolved(others, {}, of_file(name, value))
    for settings, origin in (
        (by_line, "command line"),
        (by_environment, f"{option.variable} in the environment"),
        (by_file, f"{FILE}: {option.key}"),
    ):
        assert settings.errors == settings.warnings == ()
        assert settings[name].origin == origin
    assert by_line.config == by_environment.config == by_file.config
    assert by_line.config != resolved(needed(name)).config


def test_without_anything_all_is_default_but_paths_are_absolute():
    settings = resolved()
    assert settings.config == Config(certs=HERE / "certs")
    assert {setting.origin for setting in settings.settings} == {DEFAULT}
    assert [setting.option for setting in settings.settings] == list(OPTIONS)


# -- which layer goes before which -----------------------------------------------------------------

TYPED = {"port": ["1"], "channels": ["typed.*"], "demo": True, "redis": ["redis://typed"]}
ENVIRONMENT = {
    "QUOTEPUSH_PORT": "2",
    "QUOTEPUSH_CHANNELS": "one.*\ttwo.*",
    "QUOTEPUSH_DEMO": "no",
    "QUOTEPUSH_REDIS": "redis://environment",
}
TABLE = {
    "port": 3,
    "demo": True,
    "feed": {"channels": ["a.*", "b.*", "c.*"], "redis": "redis://file"},
}
LAYERS = [(TYPED, {}, None), ({}, ENVIRONMENT, None), ({}, {}, TABLE), ({}, {}, None)]


@pytest.mark.parametrize(
    ("higher", "lower"), [(a, b) for a in range(4) for b in range(a + 1, 4)], ids=str
)
def test_a_higher_layer_goes_before_a_lower_one_and_replaces_whole_lists(higher, lower):
    (typed, environment, table), below = LAYERS[higher], LAYERS[lower]
    both = resolved(typed | below[0], environment | below[1], table or below[2])
    alone = resolved(*LAYERS[higher])
    assert both.errors == ()
    assert both.config == alone.config
    assert [each.origin for each in both.settings] == [each.origin for each in alone.settings]


def test_the_environment_unsets_a_flag_that_the_file_sets():
    settings = resolved({}, {"QUOTEPUSH_DEMO": "off"}, {"demo": True})
    assert settings.config.demo is False
    assert settings["demo"].origin == "QUOTEPUSH_DEMO in the environment"


def test_a_flag_that_is_false_in_the_file_is_not_given():
    assert resolved({}, {}, {"demo": False})["demo"].origin == DEFAULT


@pytest.mark.parametrize("word", ["1", "true", "yes", "on", "True", "YES", " on "])
def test_these_words_set_a_flag(word):
    assert resolved({}, {"QUOTEPUSH_DEMO": word}).config.demo is True


@pytest.mark.parametrize("word", ["0", "false", "no", "off", "False", "", " "])
def test_these_words_set_no_flag(word):
    assert resolved({}, {"QUOTEPUSH_DEMO": word}).config.demo is False


def test_another_word_for_a_flag_is_refused_with_all_that_are_right():
    (said,) = resolved({}, {"QUOTEPUSH_DEMO": "maybe"}).errors
    where, _, wrong = said.partition(": ")
    assert where == "QUOTEPUSH_DEMO in the environment"
    assert wrong == "'maybe' is none of: 1, true, yes, on, 0, false, no, off"


def test_an_empty_variable_is_not_given():
    environment = {option.variable: "" for option in OPTIONS}
    assert resolved({}, environment, TABLE).config == resolved({}, {}, TABLE).config


def test_what_may_be_repeated_is_one_string_or_several_in_a_file():
    one, several = (resolved({}, {}, {"feed": {"channels": c}}) for c in ("a.*", ["a.*"]))
    assert one.config.channels == several.config.channels == ("a.*",)
    assert resolved({}, {}, {"feed": {"channels": []}})["channels"].origin == DEFAULT


# -- names that are none ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ({"prot": 1}, "prot is not an option; did you mean port?"),
        ({"max-symbols": 1}, "max-symbols: it belongs in [limits]"),
        ({"tls": {"port": 1}}, "[tls] port: it belongs at the top, before the first section"),
        (
            {"limits": {"max_symbols": 1}},
            "[limits] max_symbols is not an option; did you mean max-symbols?",
        ),
        (
            {"max_symbols": 1},
            "max_symbols is not an option; did you mean max-symbols, in [limits]?",
        ),
        (
            {"tls": {"prot": 1}},
            "[tls] prot is not an option; did you mean port, at the top, before the first section?",
        ),
        ({"xyzzy": 1}, "xyzzy is not an option"),
        ({"limit": {"max-symbols": 1}}, "unknown section [limit]; did you mean [limits]?"),
        (
            {"zzz": {}},
            "unknown section [zzz]; the sections are "
            + ", ".join(f"[{name}]" for name in SECTIONS[1:]),
        ),
        ({"limits": 3}, "limits is a section: write [limits] above its keys"),
        ({"tls": [{}]}, "tls is a section: write [tls] above its keys"),
        ({"port": {"x": 1}}, "port: a table, but a whole number is expected"),
        ({"config": "other.toml"}, "config is not an option"),
    ],
)
def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_known_one(table, error):
    assert resolved({}, {}, table).errors == (f"{FILE}: {error}",)


def test_unknown_variables_are_warned_of_and_those_of_others_are_not():
    settings = resolved(
        {},
        {
            "QUOTEPUSH_PROT": "1",
            "QUOTEPUSH_XYZZY": "1",
            **dict.fromkeys(("QUOTEPUSH_OUTLET", "QUOTEPUSH_PYTHON", "QUOTEPUSH_SOAK"), "x"),
            "QUOTEPUSH_CONFIG": "x",
            "PORT": "1",
        },
    )
    assert settings.errors == ()
    assert settings.warnings == (
        (
            "QUOTEPUSH_PROT in the environment is not the variable of an option;"
            " did you mean QUOTEPUSH_PORT?"
        ),
        "QUOTEPUSH_XYZZY in the environment is not the variable of an option",
    )


# -- types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("port", "9", "a string, but a whole number is expected"),
        ("port", 9.0, "a number, but a whole number is expected"),
        ("port", True, "a boolean, but a whole number is expected"),
        ("port", [9], "an array, but a whole number is expected"),
        ("stale-after", "9", "a string, but a number is expected"),
        ("stale-after", True, "a boolean, but a number is expected"),
        ("interface", 9, "a whole number, but a string is expected"),
        ("node", ["n"], "an array, but a string is expected"),
        ("workers", 2.0, "a number, but a whole number or a string is expected"),
        ("demo", "yes", "a string, but true or false is expected"),
        ("demo", 1, "a whole number, but true or false is expected"),
        ("channels", 1, "a whole number, but a string, or an array of them, is expected"),
        (
            "channels",
            ["a.*", 1],
            "an array with a whole number, but an array of strings is expected",
        ),
        ("channels", [["a.*"]], "an array with an array, but an array of strings is expected"),
        ("redis", True, "a boolean, but a string, or an array of them, is expected"),
        ("port", 0, "'0' is not a whole number from 1 to 65535"),
        ("stale-after", -1.5, "'-1.5' is not a number of seconds from 0.1 to 86400"),
        ("stale-after", float("nan"), "'nan' is not a number of seconds from 0.1 to 86400"),
        ("stale-after", float("inf"), "'inf' is not a number of seconds from 0.1 to 86400"),
        ("interface", "", "the value is empty"),
        ("cert", "", "the value is empty"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(name, value, error):
    settings = resolved({}, {}, of_file(name, value))
    assert settings.errors == (f"{FILE}: {BY_NAME[name].key}: {error}",)
    with pytest.raises(ValueError, match="is"):
        _ = settings.config


def test_numbers_may_have_decimals_where_they_may():
    table = {"feed": {"stale-after": 30.0, "feed-stale-after": 7}, "workers": {"workers": "auto"}}
    config = resolved({}, {}, table).config
    assert (config.stale_after, config.feed_stale_after, config.workers) == (30, 7, "auto")


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.path], ids=lambda o: o.name)
def test_relative_paths_are_made_absolute_by_where_they_stand(option: Option):
    name, variable = option.name, option.variable
    typed = resolved({name: ["x"]})[name]
    assert typed.texts == resolved({}, {variable: "x"})[name].texts == ("/here/x",)
    assert resolved({}, {}, of_file(name, "x"))[name].texts == ("/etc/x",)
    assert resolved({}, {}, of_file(name, "/x"))[name].texts == ("/x",)


# -- secrets ---------------------------------------------------------------------------------------


def test_a_secret_may_be_the_content_of_a_file():
    settings = resolved({"redis-file": ["/etc/secret"], "registry-file": ["secret"]})
    assert [address.password for address in settings.config.redis] == ["one", "two"]
    assert settings.config.registry is not None
    assert settings.config.registry.password == "one"
    assert settings["redis"].origin == "/etc/secret, which --redis-file names"
    assert settings["redis-file"].shown() == "/etc/secret"


def test_the_origin_of_a_secret_says_who_named_its_file():
    by_environment = resolved({}, {"QUOTEPUSH_REDIS_FILE": "secret"})
    named = "/here/secret, which QUOTEPUSH_REDIS_FILE in the environment names"
    assert by_environment["redis"].origin == named
    by_file = resolved({}, {}, {"feed": {"redis-file": "secret"}})
    assert by_file["redis"].origin == f"/etc/secret, which {FILE}: [feed] redis-file names"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (({"redis": ["redis://a"], "redis-file": ["secret"]},), ("--redis", "--redis-file")),
        (
            ({}, {"QUOTEPUSH_REDIS": "redis://a", "QUOTEPUSH_REDIS_FILE": "secret"}),
            ("QUOTEPUSH_REDIS in the environment", "QUOTEPUSH_REDIS_FILE in the environment"),
        ),
        (
            ({}, {}, {"feed": {"redis": "redis://a", "redis-file": "secret"}}),
            (f"{FILE}: [feed] redis", f"{FILE}: [feed] redis-file"),
        ),
    ],
)
def test_a_secret_and_its_file_in_one_place_are_refused(settings, names):
    one, other = names
    assert resolved(*settings).errors == (f"{one} and {other} exclude each other: give one",)


def test_in_different_places_the_higher_one_counts_and_no_other_file_is_read():
    above = resolved({"redis": ["redis://a"]}, {"QUOTEPUSH_REDIS_FILE": "gone"})
    assert above["redis"].origin == "command line"
    assert above["redis-file"].origin == DEFAULT
    assert above.errors == ()
    below = resolved({"redis-file": ["secret"]}, {"QUOTEPUSH_REDIS": "redis://a"})
    assert str(below.config.redis[0]) == "rediss://:***@one:6379"
    assert below["redis-file"].origin == "command line"


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        ({"redis-file": ["gone"]}, "can't read /here/gone: No such file or directory"),
        (
            {"redis-file": ["empty"]},
            "/here/empty has no value, but one or more lines are expected",
        ),
        (
            {"registry-file": ["/etc/secret"]},
            "/etc/secret has 2 lines with values, but one line is expected",
        ),
        ({"redis-file": ["bare"]}, "/here/bare, line 1: it is not understood; use redis://"),
        (
            {"redis-file": ["bad"]},
            "/here/bad, line 2: 'redis://***@host:0' has port 0; use 1 to 65535",
        ),
        ({"redis-file": [""]}, "the value is empty"),
    ],
)
def test_a_secret_that_can_not_be_had_from_its_file_is_an_error(typed, error):
    (said,) = resolved(typed).errors
    (name,) = typed
    assert said.startswith(f"--{name}: {error}")
    assert "s3same" not in said
    assert "hunter2" not in said


def test_a_secret_is_shown_without_its_password():
    typed = {"redis": ["redis://bot:s3same@host", "embedded"]}
    assert resolved(typed)["redis"].shown() == "redis://bot:***@host:6379 embedded"
    assert resolved()["redis"].shown() == "embedded"
    assert resolved()["registry"].shown() == ""
    assert resolved({"port": ["9"]})["port"].shown() == "9"
    assert resolved({"demo": True})["demo"].shown() == "yes"


PASSWORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=6).map(
    lambda text: f"Zq7{text}7qZ"
)
LOGINS = st.sampled_from(
    ["redis://:{}@", "rediss://bot:{}@", "redis+sentinel://:{}@", "unix://:{}@"]
)
BROKEN = st.sampled_from(
    ["host:0", "host:x", "host/3/4", "host?x", "[::1", "", "run/x/0", "a,b:x/y"]
)


def pieces(password: str) -> set[str]:
    """What would give the password away: it, and each long enough part that white space leaves."""
    return {part for part in (password, *password.split()) if "Zq7" in part or "7qZ" in part}


@given(password=PASSWORDS, login=LOGINS, place=BROKEN)
def test_no_error_no_warning_and_no_value_shows_a_password(password, login, place):
    text = login.format(password) + place
    for settings in (
        resolved({"redis": [text], "registry": [text]}),
        resolved({}, {"QUOTEPUSH_REDIS": text, "QUOTEPUSH_REGISTRY": text}),
        resolved({}, {}, {"feed": {"redis": [text]}, "registry": {"registry": text}}),
        resolved({}, {}, {"redis": text, "feed": {"rediss": text, "registry": [text]}}),
        resolved({}, {"QUOTEPUSH_REDISS": text}, {"feed": {"redis": {"url": text}}}),
        resolve({"redis-file": ["f"]}, {}, directory=HERE, read=lambda _: text),
    ):
        assert settings.errors or settings.warnings
        shown = [setting.shown() for setting in settings.settings]
        said = "\n".join((*settings.errors, *settings.warnings, *shown, repr(settings)))
        assert not [piece for piece in pieces(password) if piece in said]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:s3same", "redis://:***"),
        ("redis://bot:s3same", "redis://bot:***"),
        ("redis://bot:s3same/3", "redis://bot:***"),
        ("redis://host?password=s3same", "redis://host?***"),
        ("redis://host#s3same", "redis://host#***"),
        ("redis+sentinel://a,b:s3same/x", "redis+sentinel://a,b:***"),
        ("bot:s3same", "bot:***"),
        ("redis://host:0", "redis://host:0"),
        ("redis://[::1]:0", "redis://[::1]:0"),
        ("unix:redis.sock", "unix:redis.sock"),
    ],
)
def test_a_password_is_not_shown_where_the_at_was_forgotten(text, shown):
    (said,) = resolved({"redis": [text]}).errors
    assert said.startswith(f"--redis: '{shown}' ")
    assert "s3same" not in said


def test_a_password_alone_is_not_shown_where_secrets_are_kept():
    (said,) = resolved({}, {"QUOTEPUSH_REDIS": "hunter2"}).errors
    assert said.startswith("QUOTEPUSH_REDIS in the environment: it is not understood; use redis://")
    (said,) = resolved({}, {}, {"feed": {"redis": "hunter2"}}).errors
    assert said.startswith(f"{FILE}: [feed] redis: it is not understood; use redis://")


def test_a_password_with_a_space_is_not_shown_by_its_words():
    (said,) = resolved({}, {"QUOTEPUSH_REDIS": "redis://:hunter 2hunter @host"}).errors
    assert said == (
        "QUOTEPUSH_REDIS in the environment: not each of the 3 words is a URL;"
        " write a space within one as %20"
    )


# -- all at once -----------------------------------------------------------------------------------


def test_all_errors_of_all_layers_are_reported_at_once():
    settings = resolved(
        {"port": ["0"], "redis-file": ["gone"]},
        {"QUOTEPUSH_HEARTBEAT": "fast", "QUOTEPUSH_DEMO": "maybe"},
        {"port": "9", "limits": {"max-symbol": 1, "max-message": 1}},
    )
    assert sorted(error.partition(": ")[0] for error in settings.errors) == [
        "--port",
        "--redis-file",
        *[str(FILE)] * 3,
        "QUOTEPUSH_DEMO in the environment",
        "QUOTEPUSH_HEARTBEAT in the environment",
    ]
    with pytest.raises(ValueError, match=r"(?s)--port: .*\n.*--redis-file: "):
        _ = settings.config


def test_an_error_on_a_layer_is_reported_also_where_a_higher_one_replaces_the_value():
    assert resolved({"port": ["9"]}, {"QUOTEPUSH_PORT": "0"}).errors == (
        "QUOTEPUSH_PORT in the environment: '0' is not a whole number from 1 to 65535",
    )


def test_a_conflict_says_where_the_options_were_given():
    needs_key, without_tls = resolved({"cert": ["a"]}, {}, {"tls": {"plain": True}}).errors
    assert needs_key == "--cert needs --key too"
    assert without_tls == (
        "--plain serves without TLS, so --cert and --key can't be used with it"
        f" (--plain: {FILE}: [tls] plain)"
    )


def test_conflicts_that_may_follow_from_other_errors_are_not_reported():
    assert len(resolved({"cert": ["a"], "key": [""]}).errors) == 1
    assert len(resolved({"cert": ["a"]}, {}, {"tls": {"kye": "b"}}).errors) == 1
    assert len(resolved({"redis": ["x"], "redis-ca": ["a"]}).errors) == 1
    # But of what does not.
    assert len(resolved({"cert": ["a"], "port": ["0"]}).errors) == 2
    early = resolve({"cert": ["a"]}, {}, read=read, errors=["the file is not there"])
    assert early.errors == ("the file is not there",)


def test_a_typed_name_that_is_no_option_is_refused():
    assert resolved({"prot": ["1"]}).errors == ("--prot is not an option; did you mean --port?",)
    assert resolved({"port": True}).errors == ("--port: takes a value",)
    assert resolved({"demo": ["1"]}).errors == ("--demo: takes no value",)


# -- for other processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_the_texts_make_the_same_config_elsewhere(name):
    option, value = BY_NAME[name], SAMPLES[name]
    settings = resolved(beside(name) | {name: True if option.flag else as_texts(value)})
    texts = json.loads(json.dumps(settings.texts()))
    assert config_from_texts(texts) == settings.config
    assert not [given for given in texts if BY_NAME[given].content_of]


def test_the_texts_are_what_is_not_default_and_paths():
    assert resolved().texts() == {"certs": "/here/certs"}
    settings = resolved({}, {"QUOTEPUSH_DEMO": "no", "QUOTEPUSH_REDIS_FILE": "secret"}, TABLE)
    assert settings.texts() == {
        "port": "3",
        "certs": "/here/certs",
        "redis": ["rediss://:one@one"],
        "channels": ["a.*", "b.*", "c.*"],
    }


def test_texts_that_make_no_config_are_refused_with_a_line_each():
    with pytest.raises(ValueError, match=r"^--x is not an option\n--port: '0' is not a whole"):
        config_from_texts({"port": "0", "x": "1"})
