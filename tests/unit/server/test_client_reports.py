"""The slowest clients and the busiest symbols: which they are, in which order, and what is said."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest
from core_doubles import Client, FixedClock, make_hub, publish

from pushservice.fanout.interfaces import Progress
from pushservice.server import client_reports
from pushservice.server.client_reports import About, Symbols, merged_clients, merged_symbols


def made(steps: Generator[None, None, dict[str, Any]]) -> dict[str, Any]:
    """What the steps make, as it goes over the wire."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return json.loads(json.dumps(end.value))


class Setting:
    """A hub with clients that are found by their ids."""

    def __init__(self) -> None:
        self.clock = FixedClock(1000.0)
        self.hub = make_hub(self.clock)
        self.clients: dict[str, Client] = {}

    def client(self, conn: str, *symbols: str, **how: object) -> Client:
        client = self.clients[conn] = Client(self.hub, conn)
        if symbols:
            client.say({"op": "subscribe", "symbols": symbols} | how)
        return client

    def about(self, conn: str) -> About | None:
        return About("192.0.2.7", "ann", 12.34) if conn in self.clients else None

    def slowest(self, most: int = 20) -> dict[str, Any]:
        return made(client_reports.clients(self.hub, self.about, self.clock.seconds(), most, 3))

    def order(self, most: int = 20) -> list[str]:
        return [row["conn"] for row in self.slowest(most)["clients"]]


@pytest.fixture
def setting():
    return Setting()


# -- clients ---------------------------------------------------------------------------------------


def test_all_that_is_known_of_a_client_is_in_its_row(setting):
    client = setting.client("c-1", "A", "B")
    client.outbox.blocked()
    client.outlet.now_taken = Progress(0, 700)
    setting.clock.advance(2.5)
    client.say({"op": "ping", "id": 1})
    waiting = client.outbox.queued() - 700
    assert waiting > 0, "the answer waits here"
    assert setting.slowest() == {
        "clients": [
            {
                "conn": "c-1",
                "worker": 3,
                "address": "192.0.2.7",
                "user": "ann",
                "protocol": "quotepush.v1.json",
                "seconds": 12.3,
                "behind": 2.5,
                "merged": 0,
                "queued": 700 + waiting,
                "symbols": 2,
            }
        ],
        "total": 1,
    }


def test_who_is_behind_longest_comes_first_then_who_had_most_merged(setting):
    for conn in ("flows", "merged", "late", "later"):
        setting.client(conn, "A")
    setting.clients["merged"].outbox.merged = 5
    setting.clients["late"].outbox.blocked()
    setting.clock.advance(1)
    setting.clients["later"].outbox.blocked()
    assert setting.order() == ["late", "later", "merged", "flows"]
    assert setting.order(2) == ["late", "later"]
    assert setting.slowest(2)["total"] == 4
    setting.clients["late"].outbox.drained()
    assert setting.order(2) == ["later", "merged"]
    assert [row["behind"] for row in setting.slowest(2)["clients"]] == [0.0, None]


def test_what_is_being_merged_for_a_client_counts_before_it_catches_up(setting):
    client = setting.client("c", "A", "B")
    client.say({"op": "subscribe", "symbols": ["C"], "mode": "raw"})
    client.outbox.merged = 5
    quote(setting, "A")
    client.outbox.blocked()
    quote(setting, "A", 3)
    quote(setting, "B")
    quote(setting, "C", 2)
    # Its first snapshot has yet to come: nothing is merged into that.
    quote(setting, "D")
    client.say({"op": "subscribe", "symbols": ["D"]})
    quote(setting, "D", 2)
    assert setting.slowest()["clients"][0]["merged"] == 7
    client.outbox.drained()
    assert client.outbox.merged == 7
    assert setting.slowest()["clients"][0]["merged"] == 7


def test_how_long_it_is_behind_begins_anew_each_time(setting):
    client = setting.client("c", "A")
    client.outbox.blocked()
    setting.clock.advance(5)
    client.outbox.drained()
    setting.clock.advance(5)
    client.outbox.blocked()
    setting.clock.advance(1)
    assert setting.slowest()["clients"][0]["behind"] == 1.0


def test_who_leaves_while_it_is_looked_at_is_left_out(setting):
    setting.client("stays")
    steps = client_reports.clients(setting.hub, setting.about, setting.clock.seconds(), 20, 1)
    leaves = setting.client("leaves")
    next(steps)
    leaves.session.close()
    del setting.clients["leaves"]
    assert [row["conn"] for row in made(steps)["clients"]] == ["stays"]


def test_many_are_looked_at_in_steps(setting, monkeypatch):
    monkeypatch.setattr(client_reports, "_LOOKED_AT", 10)
    monkeypatch.setattr(client_reports, "_MADE", 10)
    for at in range(95):
        setting.client(f"c-{at}").outbox.merged = at
    steps = client_reports.clients(setting.hub, setting.about, 0.0, 50, 1)
    assert len(list(steps)) == 10 + 5
    assert setting.order(50) == [f"c-{at}" for at in range(94, 44, -1)]


def test_reports_of_several_processes_are_one(setting):
    rows = [{"conn": str(at), "behind": at or None, "merged": 9 - at} for at in range(4)]
    one = {"clients": rows[::2], "total": 5}
    other = {"clients": rows[1::2], "total": 7}
    merged = merged_clients([one, other], 3)
    assert [row["conn"] for row in merged["clients"]] == ["3", "2", "1"]
    assert merged["total"] == 12
    assert merged_clients([], 3) == {"clients": [], "total": 0}


# -- symbols ---------------------------------------------------------------------------------------


def quote(setting: Setting, symbol: str, times: int = 1) -> None:
    publish(setting.hub, *[(symbol, b"1")] * times)


def test_before_somebody_asked_the_highest_numbers_come_first(setting):
    setting.client("c", "A", "B", "X")
    setting.client("d", "B", interval=100)
    quote(setting, "A", 3)
    quote(setting, "B", 5)
    setting.clock.advance(0.25)
    symbols = Symbols(setting.hub)
    assert made(symbols.busiest(setting.clock.seconds(), 2)) == {
        "symbols": [
            {"symbol": "B", "n": 5, "watchers": 2, "rate": None, "age": 250, "stale": False},
            {"symbol": "A", "n": 3, "watchers": 1, "rate": None, "age": 250, "stale": False},
        ],
        "total": 3,
    }
    assert made(symbols.busiest(0.0, 3))["symbols"][2]["age"] is None, "X was never quoted"


def rates(setting: Setting, symbols: Symbols) -> dict[str, float | None]:
    report = made(symbols.busiest(setting.clock.seconds(), 10))
    return {row["symbol"]: row["rate"] for row in report["symbols"]}


def test_rates_are_over_the_time_since_it_was_asked_before(setting):
    symbols = Symbols(setting.hub)
    quote(setting, "OLD", 100)
    quote(setting, "BUSY", 1)
    assert rates(setting, symbols) == {"OLD": None, "BUSY": None}
    setting.clock.advance(4)
    quote(setting, "BUSY", 8)
    quote(setting, "NEW", 50)
    assert rates(setting, symbols) == {"BUSY": 2.0, "OLD": 0.0, "NEW": None}
    setting.clock.advance(2)
    quote(setting, "OLD", 3)
    assert list(rates(setting, symbols)) == ["OLD", "NEW", "BUSY"], "the busiest now come first"


def test_two_who_ask_at_the_same_time_both_get_a_rate_over_a_while(setting):
    symbols = Symbols(setting.hub)
    quote(setting, "A")
    rates(setting, symbols)
    setting.clock.advance(10)
    quote(setting, "A", 20)
    assert rates(setting, symbols) == {"A": 2.0}
    setting.clock.advance(0.5)
    quote(setting, "A", 5)
    assert rates(setting, symbols) == {"A": round(25 / 10.5, 3)}, "not over the half second since"
    setting.clock.advance(0.5)
    assert rates(setting, symbols) == {"A": 5.0}
    assert rates(setting, symbols) == {"A": 5.0}, "nor over no time at all"


def test_a_clock_that_is_set_back_gives_no_rate_and_then_right_ones(setting):
    symbols = Symbols(setting.hub)
    quote(setting, "A")
    rates(setting, symbols)
    setting.clock.rightNow -= 100
    assert rates(setting, symbols) == {"A": None}
    setting.clock.advance(1)
    quote(setting, "A", 7)
    assert rates(setting, symbols) == {"A": 7.0}


def test_those_who_watch_late_are_watchers_too(setting):
    late = setting.hub.tier(None)
    watching = setting.client("c", "A")
    other = setting.client("d")
    late.subscribe(other.outbox, "A")
    quote(setting, "A")
    quote(setting, "B")
    symbols = Symbols(setting.hub, [late])
    report = made(symbols.busiest(1000.0, 10))
    assert {row["symbol"]: row["watchers"] for row in report["symbols"]} == {"A": 2, "B": 0}
    late.unsubscribe(other.outbox, late.topic("A"))
    watching.say({"op": "unsubscribe"})
    assert made(symbols.busiest(1000.0, 1))["symbols"][0]["watchers"] == 0


def test_symbols_that_are_named_are_told_without_rates_and_change_none(setting):
    symbols = Symbols(setting.hub)
    quote(setting, "A")
    rates(setting, symbols)
    setting.clock.advance(1)
    quote(setting, "A", 3)
    told = symbols.named(setting.clock.seconds(), ["A", "NONE"])
    assert [(row["symbol"], row["n"], row["rate"]) for row in told["symbols"]] == [("A", 4, None)]
    assert rates(setting, symbols) == {"A": 3.0}


def test_many_symbols_are_looked_at_in_steps(setting, monkeypatch):
    monkeypatch.setattr(client_reports, "_LOOKED_AT", 10)
    for at in range(45):
        quote(setting, f"S{at}", at + 1)
    steps = Symbols(setting.hub).busiest(1000.0, 3)
    for _ in range(3):
        next(steps)
    quote(setting, "NEW")
    assert [row["symbol"] for row in made(steps)["symbols"]] == ["S44", "S43", "S42"]


def row(symbol: str, n: int, rate: float | None, age: int | None = 5) -> dict[str, Any]:
    return {"symbol": symbol, "n": n, "watchers": 2, "rate": rate, "age": age, "stale": False}


def test_one_symbol_of_several_processes_is_one_row():
    one = {"symbols": [row("A", 7, None), row("B", 1, 3.0)], "total": 2}
    other = {"symbols": [row("A", 9, 2.0, None) | {"stale": True}], "total": 3}
    assert merged_symbols([one, other], 5) == {
        "symbols": [
            row("B", 1, 3.0),
            {"symbol": "A", "n": 9, "watchers": 4, "rate": 2.0, "age": 5, "stale": True},
        ],
        "total": 3,
    }
    assert [each["symbol"] for each in merged_symbols([one, other], 1)["symbols"]] == ["B"]
