"""Reports of a process, made a step at a turn of the reactor."""

from __future__ import annotations

from core_doubles import Client, FixedClock, make_hub, publish
from twisted.internet.defer import Deferred

from pushservice.monitoring.client_queries import ClientQueries
from pushservice.server import client_reports
from pushservice.server.client_reports import About


def test_reports_are_made_a_step_at_a_time(monkeypatch):
    monkeypatch.setattr(client_reports, "_LOOKED_AT", 2)
    clock = FixedClock(1000.0)
    hub = make_hub(clock)
    for at in range(5):
        Client(hub, str(at)).say({"op": "subscribe", "symbols": [f"S{at}"]})
        publish(hub, (f"S{at}", b"1"))
    client_queries = ClientQueries(clock, hub, lambda _: About(None, None, 1.0), worker=4)
    clients = Deferred.fromCoroutine(client_queries.clients(2))
    symbols = Deferred.fromCoroutine(client_queries.symbols(2))
    turns = 0
    while not (clients.called and symbols.called):
        assert not clients.called or turns >= 3
        clock.advance(0.01)
        turns += 1
    assert turns >= 6, "each step of each has a turn of its own"
    assert [row["worker"] for row in clients.result["clients"]] == [4, 4]
    assert [row["symbol"] for row in symbols.result["symbols"]] == ["S4", "S3"]
    assert client_queries.named_symbols(["S1"])["symbols"][0]["watchers"] == 1
    assert clock.getDelayedCalls() == []
