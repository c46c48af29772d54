"""Fixtures of the system tests: daemons as processes, and quotes for them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from made_once import made_once
from npm_packages import npm_project, project_with
from system_clients import Client, Undisturbed, client_of
from system_harness import TWISTD, Daemon, Publish, Publisher, RedisServer, StartDaemon
from worker_daemon import StartWorkerDaemon, worker_daemons

_watched = itertools.count(1)


@pytest.fixture(scope="session")
def certs_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all daemons find the development certificate that the first of them made."""
    return tmp_path_factory.mktemp("certs")


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a Unix socket's name."""
    directory = tempfile.mkdtemp(prefix="quotepush-test-")
    yield Path(directory)
    shutil.rmtree(directory)


def _starter(redis_server: RedisServer, certs: Path, directory: Path) -> Iterator[StartDaemon]:
    daemons: list[Daemon] = []

    def start(
        *options: str,
        redis: str | None = None,
        env: dict[str, str] | None = None,
        fed: bool = True,
    ) -> Daemon:
        port = free_port()
        command = [TWISTD, "-n", "--pidfile=", "quotepush", "--interface", "127.0.0.1"]
        command += ["--port", str(port), "--certs", str(certs)]
        if redis != "":
            command += ["--redis", redis or redis_server.socket_url]
        if "--workers" not in options:
            # Tests of what one process does look into it; CI runs them with a manager too.
            command += ["--workers", os.environ.get("QUOTEPUSH_TEST_WORKERS", "0")]
        if "--admin" not in options:
            command += ["--admin", "off"]
        command += options
        started = Daemon(
            command,
            port=port,
            directory=directory,
            certs=certs,
            plain="--plain" in options,
            env=env,
        )
        daemons.append(started)
        started.wait_for("is served")
        if fed:
            started.wait_until_fed()
        return started

    yield start
    for started in daemons:
        started.stop()
    for started in daemons:
        if not started.may_log_tracebacks:
            assert "Traceback" not in started.output(), started.output()


@pytest.fixture
def daemon(
    redis_server: RedisServer, certs_directory: Path, tmp_path: Path
) -> Iterator[StartDaemon]:
    """Starts daemons: daemon("--channels", "mine.*", redis=URL, env=..., fed=False).

    Without `redis` it is the shared one, with an empty one the option is not given. Returns when
    clients are served and, unless `fed` is false, quotes come in. A traceback in the output fails
    the test unless it has set `may_log_tracebacks`.
    """
    yield from _starter(redis_server, certs_directory, tmp_path)


@pytest.fixture(scope="module")
def module_daemon(
    redis_server: RedisServer,
    certs_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StartDaemon]:
    """Like `daemon`, for daemons that all tests of a module share."""
    yield from _starter(redis_server, certs_directory, tmp_path_factory.mktemp("daemon"))


@pytest.fixture
def worker_daemon(
    redis_server: RedisServer, certs_directory: Path, short_directory: Path
) -> Iterator[StartWorkerDaemon]:
    """Starts daemons with workers and an admin port, each in a session of its own.

    worker_daemon("--channels", "mine.*", workers=2, logfile=True, tls=True, ...). Returns when all
    workers serve and get quotes, unless `wait` is false. `before` is the command that executes
    twistd. A traceback in the log fails the test unless `may_log_tracebacks` is set.
    """
    yield from worker_daemons(redis_server, certs_directory, short_directory)


@pytest.fixture
def publish() -> Iterator[Publish]:
    """Publishes pipelined: publish(redis_server, [(channel, payload), ...], together=False)."""
    publishers: dict[str, tuple[RedisServer, Publisher]] = {}

    def send(
        redis: RedisServer,
        messages: Iterable[tuple[str, bytes | str]],
        *,
        together: bool = False,
    ) -> None:
        known = publishers.get(redis.path)
        if known is None:
            known = publishers[redis.path] = (redis, Publisher(redis))
        known[1].publish(messages, together=together)

    yield send
    for _, publisher in publishers.values():
        publisher.close()


@pytest.fixture
def undisturbed(publish: Publish, redis_server: RedisServer) -> Undisturbed:
    """Has a client watch an ever quoted symbol, and checks at the end that it got everything."""

    @asynccontextmanager
    async def watch(daemon: Daemon, prefix: str = "bad") -> AsyncIterator[None]:
        symbol = f"CALM{next(_watched)}"
        channel = f"{prefix}.{symbol}"
        stop = asyncio.Event()
        published = 0

        async def quote() -> None:
            nonlocal published
            while not stop.is_set():
                published += 1
                publish(redis_server, [(channel, str(published))])
                # The pace of the quotes; nothing is waited for here.
                await asyncio.sleep(0.002)
            publish(redis_server, [(channel, '"end"')])

        async def receive(client: Client) -> list[tuple[int, Any]]:
            got = []
            while True:
                event = await client.expect("quote")
                if event["d"] == "end":
                    return got
                got.append((event["n"], event["d"]))

        async with client_of(daemon, symbol) as client, asyncio.TaskGroup() as group:
            receiving = group.create_task(receive(client))
            group.create_task(quote())
            try:
                yield
            finally:
                stop.set()
        assert receiving.result() == [(n, n) for n in range(1, published + 1)]
        assert published > 0

    return watch


@pytest.fixture
def publisher(redis_server: RedisServer) -> Iterator[Publisher]:
    """One of the test's own: the client that is not to be disturbed has another, in its thread."""
    with contextlib.closing(Publisher(redis_server)) as own:
        yield own


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in whose node_modules is ws."""
    made = made_once(tmp_path_factory, "node", lambda directory: npm_project(directory, "ws"))
    return project_with(tmp_path_factory.mktemp("node"), made)
