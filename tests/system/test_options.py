"""Options that are wrong: one clear message, exit status 1, and no traceback."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest
from system_harness import TWISTD, environment

#: what is typed, and the words that the message must have
BAD: Final[dict[str, tuple[list[str], list[str]]]] = {
    "a port that is no number": (["--port", "https"], ["--port", "'https'", "1 to 65535"]),
    "a port that is too high": (["--port", "65536"], ["--port", "'65536'", "1 to 65535"]),
    "a Redis URL of another kind": (
        ["--redis", "http://someone:s3same@host"],
        ["--redis", "***@host", "redis://", "unix://"],
    ),
    "a Redis URL with a bad port": (
        ["--redis", "redis://:s3same@host:port"],
        ["--redis", "***@host:port"],
    ),
    "a Redis URL with a database": (["--redis", "redis://:s3same@host/1"], ["database", "***"]),
    "a certificate without a key": (["--cert", "a.crt"], ["--cert needs --key"]),
    "a key without a certificate": (["--key", "a.key"], ["--key needs --cert"]),
    "a certificate that is not there": (
        ["--cert", "a.crt", "--key", "a.key"],
        ["a.crt", "No such file"],
    ),
    "TLS and none": (["--plain", "--cert", "a", "--key", "b"], ["--plain", "--cert"]),
    "an unknown option": (["--colour", "red"], ["--colour", "not recognized"]),
    "a word too many": (["please"], ["Wrong number of arguments"]),
    "two sources of the symbol": (
        ["--symbol-regex", "(?P<symbol>.+)", "--symbol-field", "s"],
        ["--symbol-regex and --symbol-field exclude each other"],
    ),
    "a regex without its group": (["--symbol-regex", "(.+)"], ["(.+)", "group named symbol"]),
    "a regex that is none": (["--symbol-regex", "("], ["no regular expression"]),
    "channels without a star": (["--channels", "quote"], ["'quote' has 0 *"]),
    "channels with two stars": (["--channels", "*.*"], ["'*.*' has 2 *"]),
    "an option almost right": (["--prot", "9"], ["--prot not recognized", "did you mean --port?"]),
    "a file that is not there": (["--config", "q.toml"], ["--config: can't read", "q.toml"]),
    "a secret's file that is not there": (["--redis-file", "s"], ["--redis-file: can't read"]),
    "a heartbeat too fast": (["--heartbeat", "0"], ["--heartbeat", "100 to 600000"]),
}


def run(directory: Path, *options: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [TWISTD, "-n", "--pidfile=pid", "quotepush", "--interface", "127.0.0.1", *options],
        cwd=directory,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("what", BAD)
def test_bad_options_are_refused_in_one_line_with_exit_status_1(tmp_path: Path, what: str) -> None:
    options, words = BAD[what]
    status, out, err = run(tmp_path, *options)
    assert status == 1
    everything = out + err
    assert "Traceback" not in everything
    assert "s3same" not in everything
    # twistd prints its usage before the message of a usage error, all of it to standard output.
    message = (err or out).rstrip().splitlines()[-1]
    for word in words:
        assert word in message, message
    assert everything.count(message) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bad_value_in_the_environment_is_refused_like_a_typed_one(tmp_path: Path) -> None:
    status, out, err = run(tmp_path, env={"QUOTEPUSH_REDIS": "http://:s3same@host"})
    assert status == 1
    message = (err or out).rstrip().splitlines()[-1]
    assert "QUOTEPUSH_REDIS in the environment: 'http://***@host' is not" in message
    assert "s3same" not in out + err
    assert "Traceback" not in out + err


def test_all_that_is_wrong_is_told_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text("[limits]\nmax-symbol = 1\n")
    status, out, err = run(
        tmp_path,
        *("--config", "q.toml", "--port", "0", "--redis", "redis://:s3same@host:0"),
        env={"QUOTEPUSH_HEARTBEAT": "fast"},
    )
    assert status == 1
    assert "s3same" not in out + err
    port, redis, heartbeat, symbols = (err or out).rstrip().splitlines()[-4:]
    assert "--port: '0' is not a whole number" in port
    assert redis == "--redis: 'redis://***@host:0' has port 0; use 1 to 65535"
    assert heartbeat.startswith(
        "QUOTEPUSH_HEARTBEAT in the environment: 'fast' is not a whole number"
    )
    assert symbols == f"{file}: [limits] max-symbol is not an option; did you mean max-symbols?"


def test_help_names_every_option_and_version_the_version(tmp_path: Path) -> None:
    status, out, _ = run(tmp_path, "--help")
    assert status == 0
    for option in ("--port", "--listen", "--redis", "--channels", "--max-connections", "--demo"):
        assert option in out
    status, out, _ = run(tmp_path, "--version")
    assert (status, out.split()[0]) == (0, "quotepush")
