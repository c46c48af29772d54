"""Last values that the feed did not bring: learnt, taken over, and forgotten."""

from __future__ import annotations

from core_doubles import Client, FixedClock, make_hub, publish

from pushservice.fanout.hub import Hub
from pushservice.limits import Limits
from pushservice.protocol.codecs import RAW


def quotes_of(client: Client) -> list[tuple[str, int, object]]:
    return [(event["s"], event["n"], event["d"]) for event in client.events()]


def watching(hub: Hub, *symbols: str, **values: object) -> Client:
    client = Client(hub, **values)
    client.say({"op": "subscribe", "symbols": symbols})
    client.frames()
    return client


def learning_hub() -> Hub:
    hub = make_hub()
    hub.values.can_be_learnt = True
    return hub


def test_a_first_value_that_is_learnt_goes_to_those_who_wait_for_a_snapshot():
    hub = learning_hub()
    waiting, other, raw = watching(hub, "A"), watching(hub), watching(hub, "A", codec=RAW)
    other.say({"op": "subscribe", "symbols": ["A"], "snapshot": False})
    other.frames()
    hub.values.learn("A", b"10.50", 0, False)
    [event] = waiting.events()
    assert (event["ev"], event["n"], event["d"]) == ("snapshot", 0, 10.5)
    assert other.events() == []
    assert raw.texts() == [b"10.50"]
    publish(hub, ("A", b"11"))
    assert quotes_of(waiting) == quotes_of(other) == [("A", 1, 11)]
    assert waiting.outbox.merged == other.outbox.merged == 0
    hub.values.learn("A", b"12", 1, False)
    assert waiting.events() == [], "nobody waits any more"


def test_who_waited_for_a_first_value_and_watches_no_more_does_not_get_it():
    hub = learning_hub()
    gone, behind, other = watching(hub, "A"), watching(hub, "A"), watching(hub, "A")
    behind.outbox.blocked()
    for client in (gone, behind):
        client.say({"op": "unsubscribe", "symbols": ["A"]})
        client.frames()
    hub.values.learn("A", b"10.50", 0, False)
    assert [event["ev"] for event in other.events()] == ["snapshot"]
    assert gone.events() == []
    behind.outbox.drained()
    assert "snapshot" not in [event["ev"] for event in behind.events()]


def test_what_the_feed_brought_meanwhile_is_newer_than_what_is_learnt():
    hub = learning_hub()
    client = watching(hub, "A")
    publish(hub, ("A", b"1"))
    client.frames()
    hub.values.learn("A", b"old", 0, False)
    assert client.events() == []
    assert hub.topic("A").payload == b"1"


def test_a_value_learnt_after_an_outage_goes_to_everybody_with_the_number_they_have():
    hub = learning_hub()
    clients = [watching(hub, "A"), watching(hub)]
    clients[1].say({"op": "subscribe", "symbols": ["A"], "interval": 1000})
    clients[1].frames()
    publish(hub, ("A", b"1"))
    clients[0].frames()
    hub.values.learn("A", b"5", 1, True)
    for client in clients:
        [event] = client.events()
        assert (event["ev"], event["n"], event["d"]) == ("snapshot", 1, 5)
        client.session.close()


def test_a_client_behind_gets_the_learnt_value_when_it_drains():
    hub = learning_hub()
    client = watching(hub, "A")
    client.outbox.blocked()
    hub.values.learn("A", b"5", 0, False)
    client.outbox.drained()
    [event] = client.events()
    assert (event["ev"], event["n"], event["d"]) == ("snapshot", 0, 5)


def test_nothing_is_learnt_of_what_nobody_watches():
    hub = learning_hub()
    hub.values.learn("A", b"5", 0, True)
    assert hub.topic("A") is None
    client = watching(hub, "A")
    client.say({"op": "unsubscribe"})
    client.frames()
    hub.values.learn("A", b"5", 0, False)
    assert client.events() == []


def test_without_a_source_of_values_nobody_is_kept_waiting():
    hub = make_hub()
    client = watching(hub, "A")
    hub.values.learn("A", b"5", 0, False)
    assert client.events() == []


def test_a_value_that_is_not_kept_up_to_date_is_forgotten_and_its_number_is_not():
    hub = make_hub()
    client = watching(hub, "A", "B")
    publish(hub, ("A", b"1"), ("A", b"2"), ("B", b"1"))
    client.say({"op": "unsubscribe", "symbols": ["A"]})
    hub.values.forget("A")
    hub.values.forget("B")
    assert hub.topic("A") is None
    assert hub.topic("B") is not None, "somebody watches it"
    client.frames()
    client.say({"op": "subscribe", "symbols": ["A"]})
    publish(hub, ("A", b"3"))
    assert [event["ev"] for event in client.events()] == ["subscribed", "quote"]
    assert hub.topic("A").n == 3


def test_a_tier_takes_no_values_that_the_feed_did_not_bring():
    hub = make_hub()
    hub.values.can_be_learnt = True
    tier = hub.tier(None)
    client = watching(tier, "A")
    tier.values.learn("A", b"5", 0, True)
    assert not tier.values.inherit("A", 1, b"5")
    assert client.events() == []
    assert tier.topic("A").payload is None


def test_last_values_are_told_the_newest_first():
    clock = FixedClock()
    hub = make_hub(clock)
    watching(hub, "NEVER")
    for symbol, payload in [("A", b"1"), ("B", b"2"), ("A", b"3")]:
        publish(hub, (symbol, payload))
        clock.advance(1)
    now = hub.now()
    assert list(hub.values.newest_first()) == [("A", now - 1000, b"3"), ("B", now - 2000, b"2")]


def test_what_comes_or_goes_while_values_are_told_is_left_out():
    hub = make_hub()
    publish(hub, ("A", b"1"), ("B", b"2"), ("C", b"3"))
    values = hub.values.newest_first()
    told = [next(values)[0]]
    publish(hub, ("D", b"4"))
    hub.values.forget("C")
    told += [symbol for symbol, _, _ in values]
    assert told == ["A", "B"]


def test_an_inherited_value_is_a_snapshot_without_a_number_and_quotes_count_from_one():
    hub = make_hub()
    assert hub.values.inherit("A", 5000, b"1")
    client = watching(hub, "A")
    publish(hub, ("A", b"2"))
    assert quotes_of(client) == [("A", 1, 2)]
    assert hub.topic("A").n == 1


def test_an_inherited_value_is_sent_to_who_subscribes_with_its_own_time():
    hub = make_hub()
    hub.values.inherit("A", 5000, b"1")
    client = Client(hub)
    client.events()
    client.say({"op": "subscribe", "symbols": ["A"], "snapshot": True})
    [snapshot] = [event for event in client.events() if event["ev"] == "snapshot"]
    assert (snapshot["n"], snapshot["t"], snapshot["d"]) == (0, 5000, 1)


def test_what_the_feed_brought_is_not_inherited_over():
    hub = make_hub()
    publish(hub, ("A", b"own"))
    assert not hub.values.inherit("A", hub.now() + 1000, b"1")
    assert hub.topic("A").payload == b"own"


def test_a_symbol_that_is_watched_and_was_never_quoted_inherits_and_is_kept():
    hub = make_hub(limits=Limits(total_symbols=1))
    client = watching(hub, "A")
    assert hub.values.inherit("A", 5000, b"1")
    assert not hub.values.inherit("B", 6000, b"2")
    client.session.close()
    assert [symbol for symbol, _, _ in hub.values.newest_first()] == ["A"]


def test_an_inherited_value_makes_none_go_and_goes_first_itself():
    hub = make_hub(limits=Limits(total_symbols=3))
    publish(hub, ("OWN", b"1"))
    assert hub.values.inherit("NEW", 2000, b"1")
    assert hub.values.inherit("OLD", 1000, b"1")
    assert not hub.values.inherit("OLDEST", 1, b"1")
    for gone in ("OLD", "NEW", "OWN"):
        assert hub.topic(gone) is not None
        publish(hub, (f"AFTER-{gone}", b"1"))
        assert hub.topic(gone) is None
