"""Lines about clients: what they say, how many there are, and what is left when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from core_doubles import FixedClock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from pushservice.limits import BURST_SECONDS
from pushservice.server.client_log import CLIENT, LOST, SERVER, ClientLog


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    with capturedLogs() as events:
        yield events


@pytest.fixture
def clock() -> Iterator[FixedClock]:
    clock = FixedClock()
    yield clock
    assert not clock.calls


def said(events: list[LogEvent]) -> list[str]:
    lines = [formatEvent(event) for event in events]
    events.clear()
    return lines


def goes(log: ClientLog, **changed: Any) -> None:
    how: dict[str, Any] = {
        "seconds": 12.34,
        "quotes": 1201,
        "merged": 37,
        "sent": 90112,
        "by": CLIENT,
        "code": 1000,
    }
    log.disconnected("a1-17", "203.0.113.7", "quotepush.v1.json", **how | changed)


def test_a_client_that_comes_is_one_line(clock, events):
    ClientLog(clock, 1).connected("a1-17", "203.0.113.7", "quotepush.v1.json")
    [event] = events
    assert event["log_namespace"] == "pushservice.server.client_log.ClientLog"
    assert {name: event[name] for name in ("conn", "address", "user", "subprotocol")} == {
        "conn": "a1-17",
        "address": "203.0.113.7",
        "user": None,
        "subprotocol": "quotepush.v1.json",
    }
    assert said(events) == ["a1-17 connected from 203.0.113.7 (quotepush.v1.json)"]


def test_a_user_and_a_unix_socket_are_named(clock, events):
    log = ClientLog(clock, 1)
    log.connected("a1-18", None, "quotepush.raw", user="anna {conn}")
    assert said(events) == ["a1-18 connected from unix as anna {conn} (quotepush.raw)"]


def test_a_client_that_goes_is_one_line(clock, events):
    goes(ClientLog(clock, 1))
    [event] = events
    assert event["address"] == "203.0.113.7"
    assert (event["seconds"], event["bytes"], event["by"], event["code"]) == (
        12.3,
        90112,
        "client",
        1000,
    )
    assert said(events) == [
        (
            "a1-17 disconnected after 12.3 s: 1201 quotes, 37 merged, 90112 bytes,"
            " closed by client with 1000"
        )
    ]


@pytest.mark.parametrize(
    ("how", "ending"),
    [
        ({"by": SERVER, "code": 4008}, "90112 bytes, closed by server with 4008"),
        ({"by": CLIENT, "code": None}, "90112 bytes, closed by client without a code"),
        ({"by": LOST, "code": None}, "90112 bytes, lost"),
        ({"sent": None}, "37 merged, closed by client with 1000"),
        ({"sent": 0}, "37 merged, 0 bytes, closed by client with 1000"),
        (
            {"user": "a {n}"},
            " s as a {n}: 1201 quotes, 37 merged, 90112 bytes, closed by client with 1000",
        ),
    ],
)
def test_what_ended_it_and_what_is_not_known(clock, events, how, ending):
    goes(ClientLog(clock, 1), **how)
    assert ("bytes" in events[0]) == (how.get("sent", 1) is not None)
    [line] = said(events)
    assert line.endswith(ending)


def test_a_rate_of_zero_writes_nothing(clock, events):
    log = ClientLog(clock, 0)
    log.connected("a", None, "x")
    goes(log)
    log.stop()
    assert not events


def test_so_many_may_come_at_once_and_the_others_are_counted(clock, events):
    log = ClientLog(clock, 2)
    for n in range(100):
        log.connected(f"a-{n}", None, "x")
    for _ in range(50):
        goes(log)
    assert len(said(events)) == 2 * BURST_SECONDS
    clock.pass_time(BURST_SECONDS - 0.1)
    assert said(events) == []
    clock.pass_time(0.1)
    assert said(events) == ["80 more connected, 50 more disconnected: their lines are left out"]


def test_a_flood_that_lasts_is_told_every_so_often(clock, events):
    log = ClientLog(clock, 2)
    for n in range(10 * 60):
        log.connected(f"a-{n}", None, "x")
        clock.pass_time(0.1)
    lines = said(events)
    left_out = [line for line in lines if "more connected" in line]
    assert 4 <= len(left_out) <= 6
    # A minute's worth, and what may come at once.
    assert 120 <= len(lines) - len(left_out) <= 140
    log.stop()
    left_out += said(events)
    assert sum(int(line.split()[0]) for line in left_out) == 600 - (len(lines) - len(left_out) + 1)


def test_after_a_flood_all_is_as_before(clock, events):
    log = ClientLog(clock, 1)
    for n in range(30):
        log.connected(f"a-{n}", None, "x")
    clock.pass_time(BURST_SECONDS)
    said(events)
    for n in range(BURST_SECONDS):
        log.connected(f"b-{n}", None, "x")
    assert len(said(events)) == BURST_SECONDS


def test_a_quiet_time_saves_no_more_lines_than_may_come_at_once(clock, events):
    log = ClientLog(clock, 1)
    clock.pass_time(3600)
    for n in range(100):
        log.connected(f"a-{n}", None, "x")
    assert len(said(events)) == BURST_SECONDS
    log.stop()


def test_stopping_tells_what_was_left_out_and_leaves_no_call(clock, events):
    log = ClientLog(clock, 1)
    for n in range(12):
        log.connected(f"a-{n}", None, "x")
    said(events)
    log.stop()
    log.stop()
    assert said(events) == ["2 more connected, 0 more disconnected: their lines are left out"]


def test_a_clock_that_goes_back_gives_no_lines_away(clock, events):
    log = ClientLog(clock, 1)
    for n in range(10):
        log.connected(f"a-{n}", None, "x")
    clock.rightNow -= 3600
    log.connected("b", None, "x")
    assert len(said(events)) == 10
    log.stop()
