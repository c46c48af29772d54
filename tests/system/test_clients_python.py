"""The programs of docs/clients_python.rst, run as they stand, but for addresses and paths."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from authenticated_clients import Issuer
from docutils import nodes
from docutils.core import publish_doctree
from redis_process import RedisServer, start_redis
from system_harness import Daemon, Publish, StartDaemon

import pushservice.client
from pushservice.client.events import Event, Quote
from pushservice.client.options import Options, Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients_python.rst"


@pytest.fixture(scope="module")
def described() -> nodes.document:
    return publish_doctree(DOCUMENT.read_text("utf-8"))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = start_redis(str(tmp_path_factory.mktemp("redis")))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def served(module_daemon: StartDaemon, redis: RedisServer) -> Daemon:
    return module_daemon(redis=redis.url)


class Program:
    """An example that runs, and what it has printed."""

    def __init__(self, text: str, daemon: Daemon, directory: Path) -> None:
        text = text.replace("localhost:8008", f"localhost:{daemon.port}")
        text = text.replace("certs/dev.crt", str(daemon.certs / "dev.crt"))
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", text],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()

    def prints(self, line: str, doing: Callable[[], None] = lambda: None) -> None:
        """Wait for a line that matches, doing something again and again until it comes."""

        def came() -> bool:
            return any(re.fullmatch(line, each) for each in self.lines)

        for _ in range(100):
            doing()
            with self._news:
                if self._news.wait_for(came, 0.2):
                    return
        raise AssertionError(f"{line!r} is not in {self.lines}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(20)
        self._reading.join(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert "Traceback" not in "\n".join(self.lines)


@pytest.fixture
def example(described: nodes.document, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Runs one by its name: example("asyncio", daemon)."""
    blocks = {
        name: block.astext()
        for block in described.findall(nodes.literal_block)
        for name in block["names"]
    }
    programs: list[Program] = []

    def run(name: str, daemon: Daemon) -> Program:
        programs.append(Program(blocks[name], daemon, tmp_path))
        return programs[-1]

    yield run
    for program in programs:
        program.end()


@pytest.mark.parametrize("name", ["asyncio", "twisted"])
def test_from_nothing_to_quotes(name, example, served, publish: Publish, redis):
    program = example(name, served)
    quotes = [("quote.AAPL", '{"last": 189.5}'), ("quote.600519.SH", '{"last": 1.25}')]
    program.prints(r"AAPL \d+ 189.5", lambda: publish(redis, quotes))
    program.prints(r"600519.SH \d+ 1.25")


def test_prices_are_exact(example, served, publish: Publish, redis):
    program = example("exact", served)
    program.prints(
        "AAPL 10.500000000000000000001",
        lambda: publish(redis, [("quote.AAPL", '{"last": 10.500000000000000000001}')]),
    )


def test_gaps_and_what_is_current_are_told(
    example, daemon: StartDaemon, publish: Publish, own_redis
):
    redis = own_redis()
    served = daemon("--heartbeat", "200", redis=redis.url)
    program = example("gaps", served)
    program.prints("AAPL: 1", lambda: publish(redis, [("quote.AAPL", "1")]))
    redis.stop()
    program.prints("nothing is current any more: feed")
    own_redis(port=redis.port)
    program.prints("AAPL: some may be missing here, for the feed was lost")
    program.prints("all is current again")
    served.stop()
    program.prints("nothing is current any more: link")
    daemon("--port", str(served.port), redis=redis.url)
    program.prints("AAPL: some may be missing here, for the link was lost")


def test_tokens_are_shown(example, module_daemon, tmp_path, publish: Publish, redis):
    issuer = Issuer(tmp_path)
    guarded = module_daemon(*issuer.options, redis=redis.url)
    (tmp_path / "token.txt").write_text(issuer.token("ann", symbols=["AAPL"]) + "\n")
    program = example("tokens", guarded)
    program.prints("served as ann")
    program.prints("TSLA: your token does not cover this symbol")
    program.prints("AAPL 7", lambda: publish(redis, [("quote.AAPL", "7")]))


# -- tables --------------------------------------------------------------------------------------


def table(described: nodes.document, name: str) -> list[list[str]]:
    (found,) = (each for each in described.findall(nodes.table) if name in each["names"])
    body = next(iter(found.findall(nodes.tbody)))
    return [[entry.astext() for entry in row.findall(nodes.entry)] for row in body.children]


def test_the_options_and_their_defaults_are_those_of_the_code(described):
    fields = [field for field in dataclasses.fields(Options) if field.name != "url"]
    expected = [
        [
            field.name,
            f'"{field.default}"' if isinstance(field.default, str) else repr(field.default),
        ]
        for field in fields
    ]
    assert [row[:2] for row in table(described, "python-options")] == expected
    assert list(Settings.__annotations__) == [field.name for field in fields]


def test_the_events_and_their_attributes_are_those_of_the_code(described):
    rows = {row[0]: row[1].split(", ") for row in table(described, "python-events")}
    assert set(rows) == {kind.__name__ for kind in Event.__args__}
    for name, attributes in rows.items():
        kind = getattr(pushservice.client, name)
        if kind is Quote:
            known = [field for field in Quote.__struct_fields__ if field[0] != "_"] + ["data"]
        else:
            known = [field.name for field in dataclasses.fields(kind)]
        assert attributes == known, name
