"""The commands and programs of the setup page and the quickstart, on ports of the test."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from code_blocks import ROOT, code_blocks
from free_ports import free_port
from redis_process import RedisServer
from system_harness import Daemon, StartDaemon, for_two_threads, poll
from waiting import wait_for_line
from websockets.sync.client import ClientConnection, connect

from pushservice.redis.embedded import find_redis_server

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """The code blocks of the setup page by their names."""
    return code_blocks("docs/setup.rst")


@pytest.fixture
def served(daemon: StartDaemon, own_redis: Callable[..., RedisServer]) -> tuple[Daemon, int]:
    """A daemon with default options except for addresses, and the port of its Redis."""
    redis = own_redis()
    return daemon(redis=redis.url), redis.port


@pytest.fixture
def receiver(
    served: tuple[Daemon, int], blocks: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The setup page's Python client, with AAPL subscribed."""
    started, _ = served
    program = blocks["client-python"].replace("localhost:8008", f"localhost:{started.port}")
    program = program.replace("certs/dev.crt", str(started.certs / "dev.crt"))
    process = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate(timeout=10)


def tools(directory: Path, redis_port: int) -> dict[str, str]:
    """An environment whose PATH has our environment's programs and a redis-cli for our Redis."""
    cli = Path(find_redis_server()).with_name("redis-cli")
    wrapper = directory / "redis-cli"
    wrapper.write_text(f'#!/bin/sh\nexec {cli} -p {redis_port} "$@"\n')
    wrapper.chmod(0o755)
    return os.environ | {"PATH": f"{directory}:{BIN}:{os.environ['PATH']}"}


def publish_until_received(publish: Callable[[], None], receiver: subprocess.Popen[bytes]) -> bytes:
    """Publish again and again until the receiver printed a line; returns the line."""
    lines: list[bytes] = []
    assert receiver.stdout is not None
    reading = threading.Thread(target=lambda: lines.append(receiver.stdout.readline()))
    reading.start()
    for _ in range(100):
        publish()
        reading.join(0.2)
        if lines:
            return lines[0]
    raise AssertionError("nothing was received")


def test_redis_cli_publishes_and_the_python_client_receives(served, receiver, blocks, tmp_path):
    environment = tools(tmp_path, served[1])

    def publish() -> None:
        subprocess.run(blocks["publish-redis-cli"], shell=True, check=True, env=environment)

    line = publish_until_received(publish, receiver)
    assert line.startswith(b"AAPL ")
    assert b"{'last': 189.5, 'bid': 189.49, 'ask': 189.51}" in line


@pytest.mark.parametrize(
    ("block", "command", "symbol", "payload"),
    [
        ("publish-python", [sys.executable, "-c"], "600519.SH", b"'volume': 1200"),
        ("publish-php", ["php", "-r"], "BTC/USDT", b"91250.1"),
    ],
)
def test_the_publishing_programs_work(block, command, symbol, payload, served, blocks):
    started, redis_port = served
    assert shutil.which(command[0]), "php is needed: apt-get install php-cli php-redis"
    program = blocks[block].replace("6379", str(redis_port)).removeprefix("<?php")
    receiving = blocks["client-python"].replace("localhost:8008", f"localhost:{started.port}")
    receiving = receiving.replace("certs/dev.crt", str(started.certs / "dev.crt"))
    receiving = receiving.replace('"AAPL"', f'"{symbol}"')
    with subprocess.Popen(
        [sys.executable, "-u", "-c", receiving], stdout=subprocess.PIPE
    ) as receiver:
        line = publish_until_received(
            lambda: subprocess.run([*command, program], check=True) and None, receiver
        )
        receiver.kill()
    assert line.startswith(symbol.encode())
    assert payload in line


def test_twistd_starts_as_the_setup_page_says(blocks, tmp_path):
    install, start = blocks["install"].splitlines()
    assert install == "pip install .", "which the packaging tests do"
    port = free_port()
    command = start.replace("8008", str(port)) + " --interface 127.0.0.1 --admin off"
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
    ) as process:
        seen = wait_for_line(process.stdout, b"connected for the feed")
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
    assert f"wss://localhost:{port}/ is served; the page is at https://localhost:{port}/" in (
        seen.decode()
    )
    assert b"redis-cli -s " in seen
    assert b"Traceback" not in rest
    assert (tmp_path / "certs" / "dev.crt").exists()


def test_the_daemon_starts_and_ends_as_the_setup_page_says(
    blocks, tmp_path, certs_directory, daemon, own_redis
):
    redis = own_redis()
    daemon(redis=redis.url)
    shutil.copy(certs_directory / "dev.crt", tmp_path / "fullchain.pem")
    shutil.copy(certs_directory / "dev.key", tmp_path / "privkey.pem")
    command = blocks["daemon"].replace("6379", str(redis.port))
    command += f" --interface 127.0.0.1 --admin off --port {free_port()}"
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment, timeout=30)
    log = tmp_path / "quotepush.log"
    pid = int((tmp_path / "quotepush.pid").read_text())
    poll(lambda: "is served" in log.read_text(), "that it is served")
    ended = os.pidfd_open(pid)
    subprocess.run("kill $(cat quotepush.pid)", shell=True, check=True, cwd=tmp_path)
    assert select.select([ended], [], [], 20)[0], "the daemon ends in time"
    os.close(ended)
    assert not (tmp_path / "quotepush.pid").exists()


def test_a_token_authenticates_as_the_setup_page_says(blocks, tmp_path, own_redis):
    make_key, make_token, start = blocks["token"].splitlines()
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for command in (make_key, make_token):
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment, timeout=60)
    assert (tmp_path / "sign.pem").stat().st_mode & 0o077 == 0
    token, port = (tmp_path / "token.txt").read_text().strip(), free_port()
    command = (
        start.replace("8008", str(port))
        + f" --interface 127.0.0.1 --admin off --redis {own_redis().url}"
    )
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
    ) as process:
        seen = wait_for_line(process.stdout, b"connected for the feed")
        trust = for_two_threads(ssl.create_default_context(cafile=tmp_path / "certs" / "dev.crt"))
        url = f"wss://localhost:{port}/"
        with connect(
            url, ssl=trust, additional_headers={"Authorization": f"Bearer {token}"}
        ) as ann:
            assert json.loads(ann.recv(timeout=10))[0]["auth"] == "done"
            assert json.loads(ann.recv(timeout=10))[0]["user"] == "ann"
            ann.send(json.dumps({"op": "subscribe", "symbols": ["AAPL", "TSLA"]}))
            answers: list[dict] = []
            while not any(event["ev"] == "subscribed" for event in answers):
                answers += json.loads(ann.recv(timeout=10))
            assert answers[-1]["symbols"] == ["AAPL"]
        with connect(url, ssl=trust) as anonymous:
            assert json.loads(anonymous.recv(timeout=10))[0]["auth"] == "required"
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
    assert token.encode() not in seen + rest
    assert b"Traceback" not in rest


# -- the quickstart ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps() -> dict[str, str]:
    """The code blocks of the quickstart by their names."""
    return code_blocks("docs/quickstart.rst")


def test_both_ways_to_start_run_the_same_command(steps):
    script, (_, start) = steps["run"], steps["start"].splitlines()
    lines = (ROOT / script).read_text("utf-8").splitlines()
    command = lines[-1].removeprefix("exec .venv/bin/").removesuffix(' "$@"')
    assert command.replace(" --pidfile=", "") == start


def test_the_steps_of_the_quickstart_work(steps, tmp_path):
    install, start = steps["start"].splitlines()
    assert install == "pip install .", "which the packaging tests do"
    port, admin = free_port(), free_port()
    environment = tools(tmp_path, 0)

    def typed(block: str, socket: str, more: str = "") -> str:
        """What a block prints, with our ports and the socket in it, and `more` at its end."""
        command = re.sub(r"(-s )\S+", rf"\g<1>{socket}", steps[block]) + more
        command = command.replace("8008", str(port)).replace("8009", str(admin))
        return subprocess.run(
            ["bash", "-ec", command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=60,
        ).stdout

    command = f"exec {start} --port {port} --admin 127.0.0.1:{admin}"
    with (
        subprocess.Popen(
            ["bash", "-c", command], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        ) as process,
        ending(process),
    ):
        log = b""
        for words in (b"connected for the simulated market", b"is served"):
            if words not in log:
                log += wait_for_line(process.stdout, words)
        seen = log.decode()
        (path,) = re.findall(r"publish with: redis-cli -s (\S+) publish", seen)
        assert (
            f"wss://localhost:{port}/ is served; the page is at https://localhost:{port}/" in seen
        )
        assert f"embedded Redis on {path}; publish with: redis-cli -s {path} publish" in seen
        trust = for_two_threads(ssl.create_default_context(cafile=tmp_path / "certs" / "dev.crt"))
        with connect(f"wss://localhost:{port}/", ssl=trust) as reader:
            reader.send(json.dumps({"op": "subscribe", "symbols": ["AAPL"]}))
            while not any(each["ev"] == "quote" for each in json.loads(reader.recv(timeout=20))):
                pass
            with subprocess.Popen(
                [sys.executable, "-u", "-c", steps["python"].replace("8008", str(port))],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
            ) as receiver:
                line = publish_until_received(lambda: None, receiver)
                receiver.kill()
            assert line.startswith((b"AAPL ", b"600519.SH "))
            # The output is not a terminal here, so it is lines of JSON.
            watched = typed("watch", path, " --count 2").splitlines()
            assert {json.loads(line)["s"] for line in watched} <= {"AAPL", "600519.SH"}
            assert len(watched) == 2
            symbols, ready = (json.loads(each) for each in lines_of_json(typed("curl", path)))
            assert symbols
            assert all(isinstance(symbol, str) for symbol in symbols)
            assert ready["faults"] == []
            assert typed("publish", path).strip() == "1"
            reader.send(json.dumps({"op": "subscribe", "symbols": ["HELLO"]}))
            events = events_until(reader, "HELLO")
            assert [each["d"] for each in events if each.get("s") == "HELLO"] == [{"last": 1.25}]
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
    assert b"Traceback" not in log + rest


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Terminates a process if the test fails, so that the test does not wait for it."""
    try:
        yield
    except BaseException:
        process.terminate()
        raise


def lines_of_json(text: str) -> list[str]:
    """The JSON texts that commands printed, with or without newlines between them."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        _, end = decoder.raw_decode(text)
        found.append(text[:end])
        text = text[end:]
    return found


def events_until(reader: ClientConnection, symbol: str) -> list[dict]:
    """All events up to the first quote or snapshot of `symbol`."""
    events: list[dict] = []
    while not any(each.get("s") == symbol for each in events):
        events += json.loads(reader.recv(timeout=20))
    return events
