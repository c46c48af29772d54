"""What a process checks and sets up before it serves: certificates, files, limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet import reactor

from pushservice.config.config import Config
from pushservice.limits import Limits
from pushservice.server.connection_limits import PENDING_BURST
from pushservice.service import startup
from pushservice.service.daemon import Daemon
from pushservice.service.startup import raise_file_limit


def limits_of(monkeypatch, files: int, **values: Any) -> Limits:
    """The limits of a daemon that may open so many files."""
    monkeypatch.setattr(startup, "raise_file_limit", lambda: files)
    daemon = Daemon(reactor, Config(plain=True, **values))
    assert daemon.connections.limits == daemon.connections.limiter._limits
    return daemon.connections.limits


@pytest.mark.parametrize(
    ("room", "asked", "handshakes", "connections"),
    [
        (100_000, 1000, 1000, 99_000),
        (4000, 1000, 1000, 3000),
        (3999, 1000, 999, 3000),
        (400, 1000, 100, 300),
        (400, 20, 20, 380),
        (4, 16, 1, 3),
        (2, 16, 1, 1),
        (-1000, 16, 1, 1),
    ],
)
def test_the_files_are_split_with_a_quarter_at_most_for_those_that_are_no_clients(
    monkeypatch, room, asked, handshakes, connections
):
    files = startup.RESERVED_FILES + room
    limits = limits_of(monkeypatch, files, limits=Limits(handshakes=asked))
    assert (limits.handshakes, limits.connections) == (handshakes, connections)


def test_what_is_reserved_has_room_for_those_that_are_dropped_unheard():
    assert startup.RESERVED_FILES >= PENDING_BURST + 32


def test_more_connections_than_files_are_cut_down_in_words(logged, monkeypatch):
    files = startup.RESERVED_FILES + 4000
    limits = limits_of(monkeypatch, files, max_connections=3001)
    assert limits.connections == 3000
    assert (
        f"--max-connections 3001 is more than the file limit {files} allows: using 3000" in logged
    )


@pytest.mark.parametrize("asked", [1, 7, 3000])
def test_as_many_connections_as_there_are_files_for_are_taken_without_a_word(
    logged, monkeypatch, asked
):
    files = startup.RESERVED_FILES + 4000
    assert limits_of(monkeypatch, files, max_connections=asked).connections == asked
    assert "--max-connections" not in logged


def test_all_other_limits_are_those_of_the_configuration(monkeypatch):
    asked = Limits(symbols=3, raw_budget=2000, ping_interval=0, handshakes=16)
    limits = limits_of(monkeypatch, 100_000, limits=asked, max_connections=5)
    assert limits == replace(asked, connections=5)


def test_the_file_limit_is_the_soft_one_where_it_can_not_be_raised(monkeypatch):
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not permitted")

    monkeypatch.setattr(startup.resource, "getrlimit", lambda which: (256, 4096))
    monkeypatch.setattr(startup.resource, "setrlimit", refuse)
    assert raise_file_limit() == 256


def test_a_development_certificate_is_made_once_and_said(tmp_path, logged):
    for _ in range(2):
        Daemon(reactor, Config(certs=tmp_path / "certs"))
    lines = [line for line in logged.lines if "development certificate" in line]
    assert len(lines) == 1
    assert str(tmp_path / "certs" / "dev.crt") in lines[0]
