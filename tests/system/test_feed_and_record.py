"""`quotepush feed` and `quotepush record` with a real Redis and a real daemon."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from free_ports import free_port
from redis_process import Authority, start_redis
from shell import QUOTEPUSH, Command
from system_clients import client_of
from system_harness import environment, poll

from pushservice.market.recording_files import Recording
from pushservice.market.recording_format import Header, Message, header_line, message_line

ODD = [b'{"last":10.50}', b"plain", b"", b"\xff\x00\n", b'{"a":\r\n1}', '"贵"'.encode(), b" 1 "]


@pytest.fixture
def quotepush(tmp_path) -> Iterator:
    """quotepush(*words): a Command in an empty directory, ended at the end."""
    commands: list[Command] = []

    def start(*words: str, **env: Any) -> Command:
        commands.append(Command(*words, directory=tmp_path, **env))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
        command.wait()
        assert "Traceback" not in command.err, command.err


def messages(path) -> tuple[list[Message], list[str]]:
    with Recording(str(path)) as recording:
        return [each for each in recording if isinstance(each, Message)], recording.warnings


def recorder(quotepush, redis, path, *words: str) -> Command:
    """A recorder of channels that begin with rec. that listens."""
    started = quotepush("record", str(path), "--redis", redis.url, "--channels", "rec.*", *words)
    poll(lambda: listens(redis), "the recorder to listen")
    return started


def listens(redis) -> bool:
    return b":1\r\n" in redis.cli("PUBSUB", "NUMPAT")


def test_what_is_fed_arrives_at_a_client_of_the_daemon(quotepush, own_redis, daemon):
    redis = own_redis()
    served = daemon("--plain", redis=redis.url)
    fed = quotepush("feed", "--redis", redis.url, "--symbols", "AAPL", "--rate", "50")

    async def receive() -> list:
        async with client_of(served, "AAPL") as client:
            return [await client.expect("quote") for _ in range(20)]

    events = asyncio.run(receive())
    assert {event["s"] for event in events} == {"AAPL"}
    assert all(event["d"]["symbol"] == "AAPL" for event in events)
    fed.wait_for("to 1 receiver, ")
    assert fed.interrupt() == 0
    assert re.search(r"quotes published in .* to 1 receiver at most, 0 errors\n$", fed.err)


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst"])
@pytest.mark.parametrize("speed", ["1000", "max"])
def test_what_was_recorded_and_is_played_has_equal_bytes_in_equal_order(
    quotepush, own_redis, tmp_path, publish, name, speed
):
    redis = own_redis()
    path, again = tmp_path / name, tmp_path / f"again-{name}"
    sent = [(f"rec.{n % 5}", ODD[n % len(ODD)] + b"%d" % n) for n in range(700)]
    sent += [("rec.odd", payload) for payload in ODD]
    recording = recorder(quotepush, redis, path, "--count", str(len(sent)))
    publish(redis, sent)
    assert recording.wait() == 0
    found, warnings = messages(path)
    assert [(each.channel, each.payload) for each in found] == sent
    assert warnings == []
    second = recorder(quotepush, redis, again, "--count", str(len(sent)))
    played = quotepush("feed", str(path), "--redis", redis.url, "--speed", speed)
    assert played.wait() == 0
    assert f"{len(sent)} quotes published in" in played.err
    assert second.wait() == 0
    assert [each[1:] for each in messages(again)[0]] == [each[1:] for each in found]


def test_an_abrupt_end_leaves_all_until_the_last_flush(quotepush, own_redis, tmp_path, publish):
    redis = own_redis()
    path = tmp_path / "r.jsonl.zst"
    recording = recorder(quotepush, redis, path)
    publish(redis, [("rec.A", b"%d" % n) for n in range(1000)])
    recording.wait_for("1,000 messages")
    recording.process.kill()
    recording.wait()
    found, [warning] = messages(path)
    assert [each.payload for each in found] == [b"%d" % n for n in range(1000)]
    assert "cut off" in warning
    played = quotepush("feed", str(path), "--redis", redis.url, "--speed", "max")
    assert played.wait() == 0
    assert "cut off" in played.err
    assert "1,000 quotes published" in played.err


def test_a_recording_goes_through_a_pipe(own_redis, tmp_path, publish, quotepush):
    redis = own_redis()
    command = f"{QUOTEPUSH} record - --redis {redis.url} --channels 'rec.*' | head -2"
    with subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as piped:
        poll(lambda: listens(redis), "the recorder to listen")
        publish(redis, [("rec.A", b"1")])
        assert json.loads(piped.stdout.readline())["quotepush"] == "recording"
        assert json.loads(piped.stdout.readline())["d"] == 1

        def ended() -> bool:
            # It notices that nobody reads at its next write.
            publish(redis, [("rec.A", b"2")])
            return piped.poll() is not None

        poll(ended, "the end")
        assert (piped.returncode, b"Traceback" in piped.stderr.read()) == (0, False)


def test_what_comes_through_a_pipe_is_played_as_it_comes_and_ctrl_c_is_heard(
    quotepush, own_redis, tmp_path
):
    redis = own_redis()
    theirs, ours = os.pipe()
    heard = recorder(quotepush, redis, tmp_path / "r.jsonl", "--count", "2")
    words = ("feed", "-", "--speed", "max", "--redis", redis.url)
    with os.fdopen(theirs, "rb") as stdin, os.fdopen(ours, "wb", 0) as pipe:
        played = quotepush(*words, stdin=stdin.fileno())
        pipe.write(header_line(Header(1, ("rec.*",))) + message_line(Message(2, "rec.A", b"1")))
        played.wait_for(", 1 published")
        pipe.write(message_line(Message(3, "rec.A", b"2")))
        assert heard.wait() == 0
        assert played.interrupt() == 0
    assert "2 quotes published" in played.err
    assert [each.payload for each in messages(tmp_path / "r.jsonl")[0]] == [b"1", b"2"]


def test_redis_that_restarts_is_waited_for_by_both(quotepush, own_redis, tmp_path):
    redis = own_redis()
    path = tmp_path / "r.jsonl.gz"
    recording = recorder(quotepush, redis, path)
    fed = quotepush("feed", "--redis", redis.url, "--channels", "rec.*", "--rate", "100")
    fed.wait_for("to 1 receiver")
    redis.stop()
    fed.wait_for("waiting for Redis redis://127.0.0.1")
    recording.wait_for("waiting for Redis redis://127.0.0.1")
    own_redis(port=redis.port)
    before = fed.err.count("to 1 receiver")
    poll(lambda: fed.err.count("to 1 receiver") > before, "quotes to go on")
    assert fed.interrupt() == 0
    assert recording.interrupt(signal.SIGTERM) == 0
    assert "Redis was lost 1 time" in recording.err
    marks = [line for line in gzip.decompress(path.read_bytes()).splitlines() if b'"feed"' in line]
    assert [json.loads(line)["feed"] for line in marks] == ["down", "up"]


@pytest.mark.parametrize("words", [["feed"], ["record", "r.jsonl"]])
def test_a_redis_that_was_never_there_is_status_1(quotepush, words):
    port = free_port()
    command = quotepush(*words, "--redis", f"redis://:geheim@127.0.0.1:{port}", "--seconds", "1.5")
    assert command.wait() == 1
    assert f"warning: Redis redis://:***@127.0.0.1:{port}: no connection" in command.err
    assert f"Error: Redis redis://:***@127.0.0.1:{port} could not be reached" in command.err
    assert "geheim" not in command.err


def test_a_market_ends_by_itself_and_its_seed_gives_the_same_again(quotepush, own_redis, tmp_path):
    redis = own_redis()
    runs = []
    for name in ("a.jsonl", "b.jsonl"):
        recording = recorder(quotepush, redis, tmp_path / name, "--count", "150")
        fed = quotepush(
            *("feed", "--redis", redis.socket_url, "--channels", "rec.*", "--seed", "7"),
            *("--rate", "1000", "--count", "150", "--symbols", "12"),
        )
        assert fed.wait() == 0
        assert recording.wait() == 0
        found, _ = messages(tmp_path / name)
        runs.append([(each.channel, re.sub(rb'"ts":\d+', b"", each.payload)) for each in found])
    assert runs[0] == runs[1]
    assert len({channel for channel, _ in runs[0]}) == 12


def test_redis_may_be_spoken_to_over_tls(quotepush, tmp_path):
    authority = Authority(tmp_path)
    redis = start_redis(tmp_path, tls=authority.issue("redis", "127.0.0.1"))
    try:
        options = ["--redis", redis.url, "--redis-ca", str(authority.ca), "--channels", "rec.*"]
        recording = quotepush("record", "tls.jsonl", *options, "--count", "20")
        fed = quotepush("feed", *options, "--rate", "100")
        assert recording.wait() == 0
        assert fed.interrupt() == 0
        stranger = quotepush("feed", "--redis", redis.url, "--seconds", "1")
        assert stranger.wait() == 1
        assert "authority that is not trusted" in stranger.err
    finally:
        redis.stop()
    assert len(messages(tmp_path / "tls.jsonl")[0]) == 20


def test_a_disk_that_is_full_ends_a_recording_with_status_1(quotepush, own_redis, publish):
    redis = own_redis()
    recording = recorder(quotepush, redis, "/dev/full", "--overwrite")
    publish(redis, [("rec.A", b"1")])
    assert recording.wait() == 1
    assert "Error: can't write /dev/full: No space left on device" in recording.err
