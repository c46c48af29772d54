"""The files of the configuration: what is said of bad ones, and that all is read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pushservice.config.files import Sources, read_table, read_text


def refusal(call, path: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        call(path)
    return str(caught.value)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "q.toml"


# -- reading ---------------------------------------------------------------------------------------


def test_a_table_has_the_types_of_toml(file):
    file.write_text('port = 9\n[feed]\nchannels = ["a.*"]\nstale-after = 1.5\n')
    assert read_table(file) == {"port": 9, "feed": {"channels": ["a.*"], "stale-after": 1.5}}


def test_a_byte_order_mark_is_left_out(file):
    file.write_bytes(b"\xef\xbb\xbfport = 9\r\n")
    assert read_table(file) == {"port": 9}


def test_an_empty_file_is_an_empty_table(file):
    file.touch()
    assert read_table(file) == {}


@pytest.mark.parametrize("read", [read_table, read_text])
def test_a_file_that_can_not_be_read_is_named_with_the_reason(read, file, tmp_path):
    assert refusal(read, file) == f"can't read {file}: No such file or directory"
    assert refusal(read, tmp_path) == f"can't read {tmp_path}: Is a directory"


@pytest.mark.parametrize("read", [read_table, read_text])
def test_a_file_in_another_encoding_is_refused_with_the_place(read, file):
    file.write_bytes("port = 'ü'".encode("latin-1"))
    assert refusal(read, file) == f"{file} is not UTF-8: byte 9 is invalid"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 9\nport = 8\n", "(at line 2, column"),
        ("port = 9\n\n[feed\n", "(at line 3, column"),
        ("port: 9\n", "(at line 1, column"),
    ],
)
def test_a_syntax_error_is_reported_with_its_line(file, text, words):
    file.write_text(text)
    said = refusal(read_table, file)
    assert said.startswith(f"{file} is not valid TOML: ")
    assert words in said


def test_a_syntax_error_shows_no_line_of_the_file(file):
    file.write_text('[feed]\nredis = "redis://:s3same@host\nchannels = "a.*"\n')
    assert "s3same" not in refusal(read_table, file)


# -- sources ---------------------------------------------------------------------------------------


def test_what_was_typed_goes_before_the_environment_and_that_before_the_file(file):
    file.write_text("port = 1\ndemo-rate = 1\n[limits]\nmax-symbols = 1\n")
    environment = {"QUOTEPUSH_PORT": "2", "QUOTEPUSH_DEMO_RATE": "2"}
    config = Sources({"port": ["3"]}, str(file), environment=environment).load().config
    assert (config.port, config.demo_rate, config.limits.symbols) == (3, 2, 1)


def test_the_environment_names_the_file_when_none_was_typed(file, tmp_path):
    file.write_text("port = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("port = 2\n")
    environment = {"QUOTEPUSH_CONFIG": str(file)}
    assert Sources({}, environment=environment).load().config.port == 1
    assert Sources({}, str(other), environment=environment).load().config.port == 2
    assert Sources({}, environment={"QUOTEPUSH_CONFIG": ""}).load().config.port == 8008


def test_the_environment_is_that_of_the_process(monkeypatch):
    for name in os.environ:
        if name.startswith("QUOTEPUSH_"):
            monkeypatch.delenv(name)
    sources = Sources({})
    monkeypatch.setenv("QUOTEPUSH_PORT", "9")
    assert sources.load()["port"].value == 9


def test_all_paths_are_relative_to_where_they_stand_whatever_the_directory_is_later(
    tmp_path, monkeypatch
):
    directory = tmp_path / "etc"
    directory.mkdir()
    (directory / "q.toml").write_text('[tls]\ncert = "a.crt"\n[feed]\nredis-file = "secret"\n')
    (directory / "secret").write_text("redis://host")
    monkeypatch.chdir(tmp_path)
    sources = Sources({"key": ["a.key"]}, "etc/q.toml", environment={})
    monkeypatch.chdir("/")
    settings = sources.load()
    assert sources.file == directory / "q.toml"
    assert settings.config.cert == (directory / "a.crt",)
    assert settings.config.key == (tmp_path / "a.key",)
    assert settings.config.certs == tmp_path / "certs"
    assert [address.host for address in settings.config.redis if address] == ["host"]


def test_everything_is_read_again_each_time(file, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("redis://one")
    file.write_text('[feed]\nredis-file = "secret"\nstale-after = 1\n')
    environment: dict[str, str] = {}
    sources = Sources({}, str(file), environment=environment)
    before = sources.load().config
    secret.write_text("redis://two")
    file.write_text('[feed]\nredis-file = "secret"\nstale-after = 2\n')
    environment["QUOTEPUSH_PORT"] = "9"
    after = sources.load().config
    assert [before.redis[0].host, after.redis[0].host] == ["one", "two"]
    assert [before.stale_after, after.stale_after] == [1, 2]
    assert [before.port, after.port] == [8008, 9]


def test_a_file_that_became_bad_is_an_error_until_it_is_repaired(file):
    file.write_text("port = 1\n")
    sources = Sources({"cert": ["a"]}, str(file), environment={})
    file.write_text("port = \n")
    (said,) = sources.load().errors
    assert said.startswith(f"--config: {file} is not valid TOML: ")
    file.unlink()
    gone = sources.load()
    assert gone.errors == (f"--config: can't read {file}: No such file or directory",)
    with pytest.raises(ValueError, match="can't read"):
        _ = gone.config
    file.write_text('[tls]\nkey = "a"\n')
    assert sources.load().errors == ()


def test_the_error_about_a_missing_file_says_who_named_it():
    environment = {"QUOTEPUSH_CONFIG": "/gone", "QUOTEPUSH_PORT": "0"}
    assert Sources({}, environment=environment).load().errors == (
        "QUOTEPUSH_CONFIG in the environment: can't read /gone: No such file or directory",
        "QUOTEPUSH_PORT in the environment: '0' is not a whole number from 1 to 65535",
    )


def test_a_file_without_a_name_is_refused():
    assert Sources({}, "", environment={}).load().errors == ("--config: the value is empty",)
