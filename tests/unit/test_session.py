"""The session: every command against the protocol's answers, limits, and both subprotocols."""

from __future__ import annotations

import json

import pytest
from core_doubles import Client, FixedClock, make_hub, publish

from pushservice import wire
from pushservice.closing import CloseCode
from pushservice.limits import Limits
from pushservice.metrics import Counters


def greeted(*args: object, **values: object) -> Client:
    client = Client(*args, **values)
    client.frames()
    return client


def test_a_client_is_welcomed_with_its_id_the_epoch_and_the_limits():
    client = Client(make_hub(), "a1-17", limits=Limits(symbols=500))
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


# -- mode and interval -----------------------------------------------------------------------------


def three_while_full(hub, client: Client) -> list[int]:
    """The `n` of the updates that a client gets of three that came while its outlet was full."""
    client.frames()
    client.outbox.blocked()
    publish(hub, ("A", b"1"))
    publish(hub, ("A", b"2"))
    publish(hub, ("A", b"3"))
    client.outbox.drained()
    return [event["n"] % 3 or 3 for event in client.events()]


def test_a_raw_subscription_gets_every_update_where_another_gets_the_newest():
    hub = make_hub()
    client = greeted(hub)
    client.say({"op": "subscribe", "symbols": ["A"], "mode": "raw"})
    assert three_while_full(hub, client) == [1, 2, 3]
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert three_while_full(hub, client) == [3]
    client.say({"op": "subscribe", "symbols": ["A"], "mode": "raw"})
    assert three_while_full(hub, client) == [1, 2, 3]


def quotes(client: Client) -> list[int]:
    return [event["n"] for event in client.events() if event["ev"] == "quote"]


def test_a_subscription_with_an_interval_gets_the_newest_update_once_in_it():
    clock = FixedClock()
    hub = make_hub(clock)
    client = greeted(hub)
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 1000})
    for _ in range(4):
        publish(hub, ("A", b"1"))
    assert quotes(client) == []
    clock.pump([0.05] * 21)
    assert quotes(client) == [4]
    client.session.close()
    assert clock.getDelayedCalls() == []


def test_subscribing_again_replaces_the_interval_and_the_mode():
    clock = FixedClock()
    hub = make_hub(clock)
    client = greeted(hub)
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 60_000})
    publish(hub, ("A", b"1"))
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 100, "snapshot": False})
    assert quotes(client) == [1], "what was pending comes first"
    publish(hub, ("A", b"2"))
    assert quotes(client) == []
    clock.pump([0.01] * 11)
    assert quotes(client) == [2]
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert clock.getDelayedCalls() == [], "nobody wants an interval any more"
    publish(hub, ("A", b"3"))
    assert quotes(client) == [3]
    client.say({"op": "subscribe", "symbols": ["A"], "interval": 100})
    publish(hub, ("A", b"4"))
    assert quotes(client) == []
    clock.pump([0.01] * 11)
    assert quotes(client) == [4]
    client.say({"op": "unsubscribe"})
    assert clock.getDelayedCalls() == []


def test_each_symbol_is_watched_in_the_way_it_was_last_asked_for():
    clock = FixedClock()
    hub = make_hub(clock)
    client = greeted(hub)
    client.say({"op": "subscribe", "symbols": ["A", "B"], "interval": 100})
    client.say({"op": "subscribe", "symbols": ["B"]})
    client.frames()
    publish(hub, ("A", b"1"), ("B", b"1"))
    assert [event["s"] for event in client.events()] == ["B"]
    clock.pump([0.01] * 11)
    assert [event["s"] for event in client.events()] == ["A"]
    client.session.close()


def test_raw_with_an_interval_is_refused_and_changes_nothing():
    hub = make_hub()
    client = greeted(hub)
    client.say({"op": "subscribe", "id": 3, "symbols": ["A"], "mode": "raw", "interval": 5})
    [event] = client.events()
    assert (event["ev"], event["code"], event["id"]) == ("error", 400, 3)
    assert hub.count_topics() == 0


# -- room for symbols ------------------------------------------------------------------------------


def test_symbols_beyond_the_room_for_all_clients_are_refused_one_by_one_in_words():
    limits = Limits(total_symbols=2)
    hub = make_hub(limits=limits)
    first, second = greeted(hub, limits=limits), greeted(hub, limits=limits)
    first.say({"op": "subscribe", "symbols": ["A"]})
    second.say({"op": "subscribe", "id": 1, "symbols": ["B", "C", "A", "D"]})
    [event] = second.events()
    assert event["symbols"] == ["B", "A"]
    assert event["total"] == 2
    assert {symbol: error["code"] for symbol, error in event["errors"].items()} == {
        "C": 405,
        "D": 405,
    }
    assert (
        "only those that somebody watches already can be subscribed" in event["errors"]["C"]["msg"]
    )
    assert hub.count_topics() == 2
    first.say({"op": "unsubscribe"})
    second.say({"op": "unsubscribe", "symbols": ["A"]})
    second.say({"op": "subscribe", "symbols": ["C"]})
    assert second.events()[-1]["symbols"] == ["C"]


def test_a_symbol_that_nobody_watches_makes_room_for_one_that_somebody_wants():
    limits = Limits(total_symbols=1)
    hub = make_hub(limits=limits)
    publish(hub, ("OLD", b"1"))
    client = greeted(hub, limits=limits)
    client.say({"op": "subscribe", "symbols": ["NEW"]})
    [event] = client.events()
    assert event["symbols"] == ["NEW"]
    assert hub.topic("OLD") is None


# -- floods ----------------------------------------------------------------------------------------


class Talker(Client):
    """A client whose messages arrive as frames, and which is closed as the edge would close it."""

    def say(self, command: object) -> None:
        text = command if isinstance(command, bytes) else json.dumps(command).encode()
        self.session.arrived(len(text))
        goes_on = self.session.frame()
        if self.outlet.closed_with is not None:
            self.session.close()
        if goes_on:
            self.session.receive(text)


SLOWLY = Limits(message_rate=2, byte_rate=0)


def talker(counters: Counters | None = None, codec: wire.Codec = wire.JSON) -> Talker:
    """A client that has just used up its twenty messages."""
    clock = FixedClock()
    hub = make_hub(clock)
    client = Talker(hub, codec=codec, limits=SLOWLY, counters=counters or Counters())
    for _ in range(20):
        client.say({"op": "unsubscribe"})
    client.frames()
    return client


def test_what_is_over_the_rate_is_refused_with_its_id_and_not_carried_out():
    counters = Counters()
    client = talker(counters)
    client.say({"op": "subscribe", "id": 21, "symbols": ["A"]})
    client.say(b'{"op":"nonsense","id":"x"}')
    first, second = client.events()
    assert (first["ev"], first["code"], first["id"]) == ("error", 429, 21)
    assert (second["ev"], second["code"], second["id"]) == ("error", 429, "x")
    assert "refused, and not carried out" in first["msg"]
    assert "over 10 seconds at most 2 messages a second are" in first["msg"]
    assert len(client.outbox.topics) == 0
    assert (counters.messages_refused, counters.command_errors) == (2, 2)
    assert client.outlet.closed_with is None


def test_a_message_over_the_rate_that_has_no_id_is_refused_without_one():
    client = talker()
    client.say(b"hello")
    [event] = client.events()
    assert event["code"] == 429
    assert "id" not in event


def test_a_raw_client_over_its_rate_is_told_so_too():
    client = talker(codec=wire.RAW)
    client.say(b"A,B")
    [text] = client.texts()
    assert json.loads(text)["error"]["code"] == 429
    assert len(client.outbox.topics) == 0


def test_who_goes_on_is_closed_as_a_flood_once():
    counters = Counters()
    client = talker(counters)
    for _ in range(10):
        client.say({"op": "ping"})
    assert [event["code"] for event in client.events()] == [429, 429]
    assert client.outlet.closed_with == CloseCode.FLOODING
    assert counters.closed_flooding == 1


def test_the_words_name_the_rates_that_there_are():
    for limits, words in (
        (Limits(message_rate=3, byte_rate=0), "at most 3 messages a second are"),
        (Limits(message_rate=0, byte_rate=7, message=128), "at most 7 bytes a second are"),
        (Limits(message_rate=3, byte_rate=9000), "at most 3 messages a second and 9000 bytes a"),
    ):
        client = Talker(make_hub(), limits=limits)
        client.frames()
        events: list[dict] = []
        while not events or events[-1]["ev"] != "error":
            client.say({"op": "ping"})
            events += client.events()
        assert words in events[-1]["msg"]


def test_whatever_arrives_answers_a_ping():
    client = greeted(make_hub())
    client.outbox.unanswered = 7
    client.session.arrived(1)
    assert client.outbox.unanswered is None


@pytest.mark.parametrize("end", [{"op": "unsubscribe"}, "the same symbols"])
def test_a_command_about_many_symbols_counts_as_many_messages(end):
    limits = Limits(message_rate=10, symbols=1000)
    client = greeted(make_hub(limits=limits), limits=limits)
    symbols = [f"S{number}" for number in range(1000)]
    if end == "the same symbols":
        end = {"op": "unsubscribe", "symbols": symbols}
    client.session.arrived(10)
    for command in ({"op": "subscribe", "symbols": symbols}, end, {"op": "ping"}):
        client.session.frame()
        client.say(command)
    assert [event["ev"] for event in client.events()] == ["subscribed", "unsubscribed", "error"]
