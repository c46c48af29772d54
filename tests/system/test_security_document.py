"""The commands and programs of docs/security.rst: tokens, tickets and revocation."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from authenticated_clients import authenticated_client, refused
from code_blocks import code_blocks
from redis_client import RedisClient
from redis_process import RedisServer
from system_harness import Daemon, StartDaemon, environment

from pushservice.auth.identity import Rights

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    return code_blocks("docs/security.rst")


def typed(commands: str, directory: Path, **env: str) -> list[str]:
    """The lines printed by the commands of a block, each of which must succeed."""
    path = {"PATH": f"{BIN}:{environment()['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=directory,
        env=environment(**path, **env),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


class Connection:
    """As much of the package `redis` as the example uses."""

    def __init__(self, own: RedisServer) -> None:
        self._own = own

    def set(self, key: str, value: str, *, ex: int) -> None:
        with RedisClient(self._own.path) as redis:
            redis.ask("SET", key, value, "EX", ex)


@pytest.fixture
def own(own_redis: Callable[..., RedisServer]) -> RedisServer:
    return own_redis()


@pytest.fixture
def ticketing(daemon: StartDaemon, own: RedisServer) -> Daemon:
    """A daemon that accepts tickets of `own`."""
    found = daemon("--auth", "redis", redis=own.url)
    found.wait_for("connected for the tickets")
    found.wait_for("connected for the revocation messages")
    return found


def test_tokens_are_created_and_shown(blocks, tmp_path):
    said = typed(blocks["make-tokens"], tmp_path)
    assert said[-1] == "verifies: yes"
    assert '  "sub": "ann"' in said
    assert '  "symbols": ["*.SH"]' in said


def test_the_example_claims_match_the_table(blocks):
    claims = json.loads(blocks["claims-example"])
    ann = Rights.from_claims(claims)
    assert (ann.max_symbols, ann.min_interval_ms) == (200, 250)
    symbols = ("600519.SH", "688001.SH", "AAPL")
    assert [symbol for symbol in symbols if ann.allows(symbol)] == ["600519.SH"]


def test_a_ticket_of_the_login_server_works_until_it_is_revoked(blocks, ticketing, own, tmp_path):
    def written() -> str:
        names: dict[str, Any] = {"redis": Connection(own)}
        exec(blocks["write-ticket"], names)
        return str(names["ticket"])

    def in_one_transaction() -> None:
        now = f"{time.time():.3f}"
        with RedisClient(own.path) as redis:
            for line in blocks["revoke-in-redis"].splitlines():
                redis.ask(*re.sub(r"\b\d{10}\b", now, line).split())

    async def run() -> None:
        async with authenticated_client(ticketing, written(), "600519.SH") as ann:
            assert ann.known["user"] == "ann"
            in_one_transaction()
            assert "revoked" in (await ann.expect_token_ended())["msg"]
        unused = written()
        typed(blocks["revoke"], tmp_path, QUOTEPUSH_REDIS=own.url)
        assert "revoked" in (await refused(ticketing, unused))[1]

    asyncio.run(run())


def test_tickets_made_on_the_command_line_work(blocks, ticketing, own, tmp_path):
    once, lasting = typed(blocks["make-tickets"], tmp_path, QUOTEPUSH_REDIS=own.url)

    async def run() -> None:
        async with authenticated_client(ticketing, once) as ann:
            assert ann.known["user"] == "ann"
            # It is valid for a minute, part of which has passed.
            assert (await ann.expect("expiring"))["in"] <= 60_000
            assert (await ann.subscribe("600519.SH", "AAPL"))["symbols"] == ["600519.SH"]
        assert (await refused(ticketing, once))[0] == 401
        for _ in range(2):
            async with authenticated_client(ticketing, lasting) as dashboard:
                assert dashboard.known["user"] == "dashboard"

    asyncio.run(run())
