"""A whole demonstration for the browser: daemon, embedded Redis, certificate, simulated market."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis_process import free_port
from waiting import wait_for_line


@dataclass(frozen=True)
class DemoDaemon:
    """A running daemon; `url` is where its page is."""

    url: str


@pytest.fixture(scope="session")
def demo_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoDaemon]:
    """The daemon as a newcomer starts it, on a loopback port."""
    directory = tmp_path_factory.mktemp("demo")
    port = free_port()
    twistd = Path(sys.executable).with_name("twistd")
    options = ["--interface", "127.0.0.1", "--port", str(port), "--demo"]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(twistd), "-n", "--pidfile=", "quotepush", *options],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        output.write(wait_for_line(process.stdout, b"connected for the simulated market"))
    yield DemoDaemon(f"https://localhost:{port}/")
    process.terminate()
    rest, _ = process.communicate(timeout=20)
    assert b"Traceback" not in log.read_bytes() + rest
