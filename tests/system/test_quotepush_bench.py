"""`quotepush bench` on a real daemon: what it counts, what it refuses, and that it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from free_ports import free_port
from shell import Command
from system_harness import Daemon

pytestmark = pytest.mark.alone


@pytest.fixture
def bench(tmp_path) -> Iterator:
    """bench(*words): a Command that puts a load on a daemon, ended at the end."""
    commands: list[Command] = []

    def start(*words: str) -> Command:
        commands.append(Command("bench", *words, directory=tmp_path))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
        command.wait()
        assert "Traceback" not in command.err, command.err


@pytest.fixture
def fed(own_redis, daemon, tmp_path) -> Iterator[Daemon]:
    """A daemon with 200 quotes a second of four symbols."""
    redis = own_redis()
    started = daemon("--plain", redis=redis.url)
    words = ["--redis", redis.url, "--rate", "200", "--symbols", "A,B,C,D"]
    feed = Command("feed", *words, directory=tmp_path)
    feed.wait_for("to 1 receiver")
    yield started
    assert feed.interrupt() == 0


def test_every_client_gets_every_quote_of_what_it_watches(fed, bench):
    words = ["--clients", "8", "--seconds", "2", "--symbols-each", "2", "--json"]
    command = bench(fed.url, "A", "B", "C", "D", *words)
    assert command.wait(60) == 0
    told = json.loads(command.out)
    assert (told["clients"], told["connected"], told["lost"], told["gaps"]) == (8, 8, 0, 0)
    assert told["errors"] == {}
    # 8 clients get half of 200 quotes a second each; the machine may be slow.
    assert 100 < told["quotes_per_second"] < 1600
    assert told["payload_bytes"] > 50 * told["quotes"]
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p99"] <= told["latency_ms"]["max"]
    assert told["connect_ms"]["max"] > 0
    assert "of 8 clients connected" in command.err


def test_it_prints_a_table_and_takes_what_was_quoted_last(fed, bench):
    command = bench(fed.url, "--clients", "3", "--seconds", "1")
    assert command.wait(60) == 0
    text = command.out.decode()
    assert re.search(r"^clients +3 of 3 connected$", text, re.MULTILINE)
    assert re.search(r"^quotes +[1-9][\d,]* \([\d,]+/s\)$", text, re.MULTILINE)
    assert re.search(r"^latency +p50 .*p90 .*p99 .*max ", text, re.MULTILINE)
    assert "no SYMBOL is named: taking the 4" in command.err


def test_an_interrupt_ends_it_with_what_came_so_far(fed, bench):
    command = bench(fed.url, "A", "--clients", "2", "--seconds", "500")
    command.wait_for(" quotes/s, 2 of 2 clients connected")
    assert command.interrupt() == 0
    assert b"2 of 2 connected" in command.out


@pytest.mark.parametrize("host", ["192.0.2.1", "nobody.invalid", "0.0.0.0"])
def test_another_machine_is_left_alone(bench, host):
    command = bench(f"ws://{host}", "A")
    assert command.wait() == 1
    assert "--yes-this-is-mine" in command.err


@pytest.mark.parametrize(
    "words", [["--clients", "5001"], ["--clients", "0"], ["--seconds", "601"], ["--seconds", "0"]]
)
def test_loads_are_bounded(bench, words):
    command = bench("ws://localhost", "A", *words)
    assert command.wait() == 2
    assert words[0] in command.err


def test_a_daemon_that_refuses_is_status_1_with_what_to_type(daemon, bench):
    started = daemon(fed=False)
    command = bench(started.url, "A", "--clients", "2")
    assert command.wait() == 1
    assert "--insecure" in command.err


def test_a_daemon_that_is_not_there_is_status_1(bench):
    command = bench(f"ws://127.0.0.1:{free_port()}", "A", "--clients", "2")
    assert command.wait(60) == 1
    assert "Connection refused" in command.err
    assert command.err.endswith("Error: no client connected\n")
