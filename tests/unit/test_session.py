"""The session: every command against the protocol's answers, limits, and both subprotocols."""

from __future__ import annotations

import json

import pytest
from core_doubles import Client, make_hub, publish

from pushservice import wire
from pushservice.metrics import Counters
from pushservice.session import Limits


def greeted(*args: object, **values: object) -> Client:
    client = Client(*args, **values)
    client.frames()
    return client


def test_a_client_is_welcomed_with_its_id_the_epoch_and_the_limits():
    client = Client(make_hub(), "a1-17", limits=Limits(500, 16384, 5000))
    assert client.events() == [
        {
            "ev": "welcome",
            "v": 1,
            "conn": "a1-17",
            "epoch": "k7f3",
            "hb": 5000,
            "limits": {"symbols": 500, "message": 16384},
        }
    ]


def test_a_raw_client_is_not_welcomed():
    assert Client(make_hub(), codec=wire.RAW).frames() == []


def test_a_subscription_is_acknowledged_then_brings_the_snapshot_then_updates():
    hub = make_hub()
    publish(hub, ("AAPL", b"10.50"))
    client = greeted(hub)
    client.say({"op": "subscribe", "id": 1, "symbols": ["AAPL", "NEW"]})
    publish(hub, ("AAPL", b"10.60"))
    acknowledgement, snapshot, quote = client.texts()
    assert json.loads(acknowledgement) == [
        {"ev": "subscribed", "id": 1, "symbols": ["AAPL", "NEW"], "total": 2}
    ]
    assert snapshot == b'[{"ev":"snapshot","s":"AAPL","n":1,"t":1763799999123,"d":10.50}]'
    assert json.loads(quote)[0]["n"] == 2


def test_a_subscription_without_snapshot_brings_none():
    hub = make_hub()
    publish(hub, ("AAPL", b"1"))
    client = greeted(hub)
    client.say({"op": "subscribe", "symbols": ["AAPL"], "snapshot": False})
    assert [event["ev"] for event in client.events()] == ["subscribed"]


def test_bad_symbols_are_named_one_by_one_and_the_good_ones_are_served():
    hub = make_hub()
    client = greeted(hub)
    client.say({"op": "subscribe", "id": 2, "symbols": ["A", "6005 19", 5, None, "B*", "B"]})
    [event] = client.events()
    assert event["symbols"] == ["A", "B"]
    assert event["total"] == 2
    assert {symbol: error["code"] for symbol, error in event["errors"].items()} == {
        "6005 19": 411,
        "5": 411,
        "null": 411,
        "B*": 411,
    }
    assert "U+0020" in event["errors"]["6005 19"]["msg"]
    publish(hub, ("A", b"1"), ("B", b"1"))
    assert len(client.events()) == 2


def test_symbols_past_the_limit_are_refused_one_by_one():
    hub = make_hub()
    client = greeted(hub, limits=Limits(symbols=2))
    client.say({"op": "subscribe", "symbols": ["A", "B", "C", "A"]})
    [event] = client.events()
    assert event["symbols"] == ["A", "B"]
    assert event["errors"]["C"]["code"] == 405
    assert "2" in event["errors"]["C"]["msg"]
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    client.say({"op": "subscribe", "symbols": ["C"]})
    assert client.events()[-1]["symbols"] == ["C"]


def test_a_refused_symbol_leaves_nothing_in_the_hub():
    hub = make_hub()
    client = greeted(hub, limits=Limits(symbols=1))
    client.say({"op": "subscribe", "symbols": ["A", "B"]})
    assert hub.count_topics() == 1


def test_subscribing_again_is_acknowledged_repeats_the_snapshot_and_doubles_nothing():
    hub = make_hub()
    publish(hub, ("A", b"1"))
    client = greeted(hub)
    for _ in range(2):
        client.say({"op": "subscribe", "symbols": ["A", "A"]})
        events = client.events()
        assert [event["ev"] for event in events] == ["subscribed", "snapshot"]
        assert events[0]["total"] == 1
    publish(hub, ("A", b"2"))
    assert len(client.events()) == 1


def test_an_empty_list_of_symbols_is_acknowledged():
    client = greeted(make_hub())
    client.say({"op": "subscribe", "symbols": []})
    assert client.events() == [{"ev": "subscribed", "symbols": [], "total": 0}]


def test_unsubscribing_names_what_is_no_longer_served():
    hub = make_hub()
    client = greeted(hub)
    client.say({"op": "subscribe", "symbols": ["A", "B", "C"]})
    client.say({"op": "unsubscribe", "id": 2, "symbols": ["A", "NEVER", "x y"]})
    event = client.events()[-1]
    assert event["symbols"] == ["A", "NEVER"]
    assert event["total"] == 2
    assert event["errors"]["x y"]["code"] == 411
    client.say({"op": "unsubscribe", "id": 3})
    assert client.events() == [{"ev": "unsubscribed", "id": 3, "symbols": ["B", "C"], "total": 0}]


def test_unsubscribing_what_somebody_else_watches_leaves_them_alone():
    hub = make_hub()
    watcher, other = greeted(hub), greeted(hub)
    watcher.say({"op": "subscribe", "symbols": ["A"]})
    watcher.frames()
    other.say({"op": "unsubscribe", "symbols": ["A"]})
    publish(hub, ("A", b"1"))
    assert len(watcher.events()) == 1


def test_list_and_ping_are_answered_with_their_ids():
    client = greeted(make_hub())
    client.say({"op": "subscribe", "symbols": ["B", "A"]})
    client.frames()
    client.say({"op": "list", "id": "x"})
    client.say({"op": "ping", "id": 5})
    client.say({"op": "ping"})
    assert client.events() == [
        {"ev": "list", "id": "x", "symbols": ["B", "A"]},
        {"ev": "pong", "id": 5},
        {"ev": "pong"},
    ]


def test_a_bad_message_is_answered_and_the_connection_goes_on():
    counters = Counters()
    hub = make_hub()
    client = greeted(hub, counters=counters)
    client.say(b"hello")
    client.say({"op": "subscribe", "id": 7, "symbols": 3})
    client.say({"op": "ping", "id": 8})
    first, second, third = client.events()
    assert (first["ev"], first["code"], "id" in first) == ("error", 400, False)
    assert (second["ev"], second["code"], second["id"]) == ("error", 400, 7)
    assert third["ev"] == "pong"
    assert (counters.commands, counters.command_errors) == (3, 2)


def test_messages_after_the_close_are_not_looked_at():
    hub = make_hub()
    client = greeted(hub)
    client.session.close()
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert hub.count_topics() == 0
    assert client.outlet.written == []


def test_a_raw_client_subscribes_by_bare_symbols_and_gets_payloads_alone():
    hub = make_hub()
    publish(hub, ("A", b"10.50"))
    client = greeted(hub, codec=wire.RAW)
    client.say(b"A, B")
    publish(hub, ("B", b"text"))
    assert client.texts() == [b"10.50", b"text"]


def test_a_raw_client_may_use_json_commands_and_is_not_answered():
    hub = make_hub()
    client = greeted(hub, codec=wire.RAW)
    client.say({"op": "subscribe", "symbols": ["A", "B"]})
    client.say({"op": "unsubscribe", "symbols": ["B"]})
    publish(hub, ("A", b"1"), ("B", b"2"))
    assert client.texts() == [b"1"]


@pytest.mark.parametrize("op", ["list", "ping"])
def test_a_raw_client_that_asks_for_an_answer_is_told_that_there_is_none(op):
    client = greeted(make_hub(), codec=wire.RAW)
    client.say({"op": op, "id": 1})
    [text] = client.texts()
    error = json.loads(text)["error"]
    assert (error["id"], error["code"]) == (1, 400)


def test_a_raw_clients_errors_are_json_objects_one_a_symbol():
    hub = make_hub()
    client = greeted(hub, codec=wire.RAW)
    client.say(b"A,b*,c d")
    client.say(b"{")
    errors = [json.loads(text)["error"] for text in client.texts()]
    assert [error["code"] for error in errors] == [411, 411, 400]
    assert errors[0]["msg"].startswith("b*: ")
