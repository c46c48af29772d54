"""The daemon's options on other commands: the same environment, the same file, the same errors."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from pushservice.cli.daemon_options import redis_config, redis_options
from pushservice.config.config import Config


def configured(*words: str, **environment: str) -> tuple[Config | None, str]:
    """What a command with these options finds, and what it says."""
    found: list[Config] = []

    @click.command()
    @redis_options("where")
    def command(**given):
        found.append(redis_config(given))
        assert given == {}

    kept = {"QUOTEPUSH_REDIS": "", "QUOTEPUSH_CHANNELS": ""} | environment
    done = CliRunner().invoke(command, words, env=kept)
    return (found[0] if found else None), done.stderr


def test_the_default_is_the_redis_of_this_machine():
    config, said = configured()
    assert [str(address) for address in config.redis] == ["redis://localhost:6379"]
    assert config.channels == ("quote.*",)
    assert said == ""


def test_what_is_typed_goes_before_the_environment_and_that_before_the_file(tmp_path):
    file = tmp_path / "q.toml"
    file.write_text('[feed]\nchannels = ["file.*"]\nredis = ["redis://file"]\n')
    words = ("--config", str(file))
    assert str(configured(*words)[0].redis[0]) == "redis://file:6379"
    config, _ = configured(*words, QUOTEPUSH_REDIS="redis://environment")
    assert str(config.redis[0]) == "redis://environment:6379"
    assert config.channels == ("file.*",)
    config, _ = configured(
        *words, "--redis", "redis://typed", QUOTEPUSH_REDIS="redis://environment"
    )
    assert str(config.redis[0]) == "redis://typed:6379"


def test_secrets_come_from_files_too(tmp_path):
    secret = tmp_path / "redis"
    secret.write_text("rediss://:geheim@host\n")
    config, _ = configured("--redis-file", str(secret), "--redis-ca", "ca.pem")
    assert config.redis[0].password == "geheim"
    assert config.redis_tls.ca.name == "ca.pem"


def test_all_errors_are_reported_and_warnings_are_printed():
    config, said = configured(
        "--redis", "x://", "--channels", "a", QUOTEPUSH_RDIS="1", QUOTEPUSH_TOKEN="geheim"
    )
    assert config is None
    assert "QUOTEPUSH_RDIS in the environment is not the variable of an option" in said
    assert "--redis: 'x://' is not understood" in said
    assert "--channels: 'a' has 0 *" in said
    assert "TOKEN" not in said


@pytest.mark.parametrize(
    "name", ["--redis", "--redis-file", "--redis-ca", "--channels", "--config"]
)
def test_each_is_in_the_help(name):
    @click.command()
    @redis_options("where quotes go")
    def command(**given):
        pass

    text = CliRunner().invoke(command, ["--help"]).stdout
    assert name in text
    assert "where quotes go" in text
