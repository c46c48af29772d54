"""The examples of docs/clients_javascript.rst and of the npm package, for Node, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from docutils.nodes import document, literal_block, table, tbody
from npm_packages import CLIENT, node_with_websocket
from redis_process import RedisServer, start_redis
from system_harness import DEADLINE, Daemon, Publisher, StartDaemon

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients_javascript.rst"
TYPES = (CLIENT / "quotepush.d.ts").read_text("utf-8")
#: of each symbol, so that its last has a number that an example may wait for
QUOTES = 101


@pytest.fixture(scope="module")
def described() -> document:
    return publish_doctree(DOCUMENT.read_text("utf-8"))


@pytest.fixture(scope="module")
def blocks(described: document) -> dict[str, str]:
    """The code blocks by their names; those of the npm package are "js 0", "js 1" and so on."""
    found = {
        name: block.astext()
        for block in described.findall(literal_block)
        for name in block["names"]
    }
    readme = (CLIENT / "README.md").read_text("utf-8")
    for at, (language, text) in enumerate(re.findall(r"```(\w+)\n(.*?)```", readme, re.DOTALL)):
        found[f"{language} {at}"] = text
    return found


@pytest.fixture(scope="module")
def served(
    module_daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon that knows quotes of the symbols of the examples."""
    redis: RedisServer = start_redis(tmp_path_factory.mktemp("redis"))
    publisher = Publisher(redis)
    started = module_daemon(redis=redis.url)
    for symbol in ("AAPL", "600519.SH"):
        publisher.publish([(f"quote.{symbol}", '{"last":189.50}')] * QUOTES)
    yield started
    publisher.close()
    redis.stop()


class Program:
    """An example that runs in Node."""

    def __init__(self, project: Path, text: str, served: Daemon, name: str = "program.mjs") -> None:
        text = text.replace("localhost:8008", f"localhost:{served.port}")
        text = text.replace("certs/dev.crt", str(served.certs / "dev.crt"))
        file = project / name
        file.write_text(text)
        self._process = subprocess.Popen(
            [*node_with_websocket(), str(file)],
            cwd=project,
            env=os.environ | {"NODE_EXTRA_CA_CERTS": str(served.certs / "dev.crt")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self, count: int) -> list[str]:
        """The first lines that it prints; then it is ended."""
        patience = threading.Timer(DEADLINE, self._process.kill)
        patience.start()
        assert self._process.stdout is not None
        found = [self._process.stdout.readline().rstrip("\n") for _ in range(count)]
        self._process.kill()
        _, errors = self._process.communicate()
        patience.cancel()
        assert all(found), f"{found}: {errors}"
        return found

    def output(self) -> str:
        """All that it prints, until it ends by itself."""
        output, errors = self._process.communicate(timeout=DEADLINE)
        assert self._process.returncode == 0, errors
        return output


def test_every_example_is_run_by_some_test(blocks: dict[str, str]) -> None:
    in_node = {"node", "node-ws", "loop", "holes", "exact", "typescript", "bundle"}
    in_chromium = {"page", "tokens", "react"}
    of_the_package = {"js 0", "js 1", "ts 2", "js 3"}
    assert set(blocks) == in_node | in_chromium | of_the_package | {"install-client"}


@pytest.mark.parametrize(
    ("name", "symbols"), [("node", 2), ("node-ws", 1), ("js 0", 2), ("js 3", 1)]
)
def test_quotes_are_received(
    name: str, symbols: int, blocks: dict[str, str], client_project: Path, served: Daemon
) -> None:
    program = Program(client_project, blocks[name], served)
    wanted = ["AAPL 189.5", "600519.SH 189.5"][:symbols]
    assert program.lines(symbols) == wanted


def test_a_loop_ends_and_so_does_node(
    blocks: dict[str, str], client_project: Path, served: Daemon
) -> None:
    program = Program(client_project, blocks["loop"], served)
    assert program.output() == "AAPL 189.5 0 merged\n600519.SH 189.5 0 merged\n"
    assert Program(client_project, blocks["js 1"], served).output() == "AAPL 189.5\n"


def test_what_is_missing_and_old_is_told(
    blocks: dict[str, str], client_project: Path, served: Daemon
) -> None:
    program = Program(client_project, blocks["holes"], served)
    # A heartbeat, which says that all is current, may come before the first quote.
    assert sorted(program.lines(2)) == ["current", "go on with AAPL 189.5"]


def test_prices_are_exact_where_the_engine_allows_it(
    blocks: dict[str, str], client_project: Path, served: Daemon
) -> None:
    price, twice = Program(client_project, blocks["exact"], served).lines(1)[0].split()
    assert price in ("189.50", "189.5")
    assert twice == "379"


@pytest.mark.parametrize(
    ("name", "line"), [("typescript", "AAPL 189.50 –"), ("ts 2", "AAPL 189.50")]
)
def test_typescript_is_checked_bundled_and_run(
    name: str, line: str, blocks: dict[str, str], client_project: Path, served: Daemon
) -> None:
    (client_project / "app.ts").write_text(blocks[name])
    strict = "npx tsc --strict --noEmit --module nodenext --target es2022 app.ts"
    for command in (strict, blocks["bundle"]):
        done = subprocess.run(
            command.replace("npx ", "npx --no-install "),
            shell=True,
            cwd=client_project,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    bundled = (client_project / "app.js").read_text()
    assert "class Quotepush" in bundled or "Quotepush = class" in bundled
    assert Program(client_project, bundled, served, "bundled.mjs").lines(1) == [line]


def test_the_package_is_where_the_document_says(blocks: dict[str, str]) -> None:
    assert blocks["install-client"].split()[:2] == ["npm", "install"]
    assert CLIENT.as_posix().endswith(blocks["install-client"].partition("quotepush/")[2])


# -- the tables ----------------------------------------------------------------------------------


def first_column(described: document, name: str) -> set[str]:
    (found,) = (each for each in described.findall(table) if name in each["names"])
    return {row.children[0].astext() for row in next(iter(found.findall(tbody))).children}


def keys_of(interface: str) -> set[str]:
    (body,) = re.findall(
        rf"^export interface {interface} \{{(.*?)^\}}", TYPES, re.DOTALL | re.MULTILINE
    )
    return set(re.findall(r"^  (\w+)\??: ", body, re.MULTILINE))


def test_the_tables_name_every_option_and_every_event(described: document) -> None:
    assert first_column(described, "javascript-options") == keys_of("QuotepushOptions")
    assert first_column(described, "javascript-events") == keys_of("QuotepushEvents")
