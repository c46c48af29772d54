"""Each command that docs/commands.rst types is run, and prints what stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docutils.core
import pytest
from docutils import nodes
from redis_process import RedisServer
from shell import QUOTEPUSH, Command
from system_harness import Daemon, environment
from terminal import Terminal

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.rst"


def blocks(kind: str) -> list[str]:
    document = docutils.core.publish_doctree(
        DOCUMENT.read_text("utf-8"), settings_overrides={"syntax_highlight": "none"}
    )
    return [
        block.astext()
        for block in document.findall(nodes.literal_block)
        if kind in block["classes"]
    ]


def typed(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that follow it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


def skeleton(line: str) -> str:
    """A line without what differs from time to time: numbers, units of size, and widths."""
    line = re.sub(r"[-+]?\d[\d,.]*", "0", line)
    line = re.sub(r"\b(bytes|kB|MB) of payloads", "of payloads", line)
    line = re.sub(r"\(0 (bytes|kB|MB)\)", "(0)", line)
    return re.sub(r"\s+", " ", line)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The directory in which all commands are typed, one after the other."""
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def redis(tmp_path_factory) -> Iterator[RedisServer]:
    from redis_process import start_redis

    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def served(module_daemon, redis, home) -> Daemon:
    started = module_daemon(redis=redis.url)
    (home / "certs").symlink_to(started.certs)
    return started


@pytest.fixture
def fed(served, redis, home) -> Iterator[None]:
    """Quotes, as if somebody ran quotepush feed in another terminal."""
    feed = Command("feed", "--redis", redis.url, directory=home)
    # Before that, Ctrl-C would end a command that is yet starting.
    feed.wait_for("publishing")
    yield
    assert feed.interrupt() == 0


def here(command: str, served: Daemon) -> str:
    return command.replace("localhost:8008", f"localhost:{served.port}")


def run(command: str, home: Path, redis: RedisServer) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=home,
        env=environment(QUOTEPUSH_REDIS=redis.url, PATH=path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: typed(block)[0][0][:50])
def test_what_is_typed_prints_what_stands_there(block, served, redis, home, request):
    alone = block.startswith("$ quotepush feed")
    if not alone:
        request.getfixturevalue("fed")
    if "sample.jsonl" in block and alone and not (home / "sample.jsonl.zst").exists():
        # Where this test runs without the one before.
        [(record, _)] = [
            each for text in blocks("console") for each in typed(text) if "record sample" in each[0]
        ]
        request.getfixturevalue("fed")
        assert run(record, home, redis).returncode == 0
    for command, expected in typed(block):
        done = run(here(command, served), home, redis)
        assert done.returncode == 0, (command, done.stderr)
        printed = {skeleton(line) for line in (done.stdout + done.stderr).splitlines()}
        for line in expected:
            assert line == "..." or skeleton(line) in printed, (command, line, printed)


@pytest.mark.parametrize("block", blocks("terminal"))
def test_the_picture_of_a_terminal_is_what_is_seen_there(block, served, fed, home):
    [(command, picture)] = typed(block)
    program, *words = shlex.split(here(command, served))
    assert program == "quotepush"
    seen = Terminal([QUOTEPUSH, *words], home, width=80)
    try:
        titles = next(line for line in picture if line.startswith("SYMBOL")).split()
        symbols = [line.split()[0] for line in picture[picture.index("") + 1 :] if "%" in line]
        seen.wait_for("● open", "feed up", "quotes/s", "q quits", *titles, *symbols[1:])
        seen.press(b"q")
        assert seen.wait() == 0
    finally:
        seen.close()


def test_every_command_is_in_the_document():
    from pushservice.cli.main import main

    text = DOCUMENT.read_text("utf-8")
    assert [name for name in main.commands if f"quotepush {name}" not in text] == []
