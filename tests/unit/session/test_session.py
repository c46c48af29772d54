"""The session: every command against the protocol's answers, limits, and both subprotocols."""

from __future__ import annotations

import json

import pytest
from authentication_doubles import DELAY, LEEWAY, TIMEOUT, AuthenticatedHub, AuthenticatingClient
from core_doubles import Client, FixedClock, make_hub, publish

from pushservice.auth.identity import Identity, Refused
from pushservice.fanout.hub import TurnHooks
from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON, RAW, Codec


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
    assert Client(make_hub(), codec=RAW).frames() == []


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
    client = greeted(hub, codec=RAW)
    client.say(b"A, B")
    publish(hub, ("B", b"text"))
    assert client.texts() == [b"10.50", b"text"]


def test_a_raw_client_may_use_json_commands_and_is_not_answered():
    hub = make_hub()
    client = greeted(hub, codec=RAW)
    client.say({"op": "subscribe", "symbols": ["A", "B"]})
    client.say({"op": "unsubscribe", "symbols": ["B"]})
    publish(hub, ("A", b"1"), ("B", b"2"))
    assert client.texts() == [b"1"]


@pytest.mark.parametrize("op", ["list", "ping"])
def test_a_raw_client_that_asks_for_an_answer_is_told_that_there_is_none(op):
    client = greeted(make_hub(), codec=RAW)
    client.say({"op": op, "id": 1})
    [text] = client.texts()
    error = json.loads(text)["error"]
    assert (error["id"], error["code"]) == (1, 400)


def test_a_raw_clients_errors_are_json_objects_one_a_symbol():
    hub = make_hub()
    client = greeted(hub, codec=RAW)
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


def talker(counters: Counters | None = None, codec: Codec = JSON) -> Talker:
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
    client = talker(codec=RAW)
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


# -- who it is -------------------------------------------------------------------------------------


@pytest.fixture
def served() -> AuthenticatedHub:
    return AuthenticatedHub()


def known(served: AuthenticatedHub, token: str = "ann") -> AuthenticatingClient:
    """A client that said who it is, and read the answer."""
    client = served.client()
    client.authenticate(token)
    client.frames()
    return client


def kinds(client: Client) -> list[tuple[str, object]]:
    return [(event["ev"], event.get("code")) for event in client.events()]


def test_an_unauthenticated_client_may_only_authenticate(served):
    publish(served.hub, ("A", b"1"))
    client = served.client()
    assert client.events()[0]["auth"] == "required"
    for op in ("subscribe", "unsubscribe", "list"):
        client.say({"op": op, "id": 1, "symbols": ["A"]})
        [event] = client.events()
        assert (event["ev"], event["code"], event["id"]) == ("error", 401, 1)
        assert event["msg"].startswith("authenticate first")
    client.say({"op": "ping", "id": 2})
    assert client.events() == [{"ev": "pong", "id": 2}]
    publish(served.hub, ("A", b"2"))
    assert client.frames() == []
    client.session.close()


def test_without_access_control_a_token_is_refused_and_changes_nothing():
    client = greeted(make_hub())
    client.say({"op": "auth", "id": 1, "token": "ann"})
    [event] = client.events()
    assert (event["code"], event["id"]) == (403, 1)
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert client.events()[0]["ev"] == "subscribed"


def test_who_shows_a_token_is_told_who_it_is_and_served(served):
    served.accept_token("t", "*.SH", expires_at=1_763_803_600.0, delay_s=900.0)
    client = served.client()
    client.frames()
    client.authenticate("t", id=3)
    assert client.events() == [
        {
            "ev": "authenticated",
            "id": 3,
            "user": "ann",
            "expires": 1_763_803_600_000,
            "delay": 900.0,
        }
    ]
    client.say({"op": "subscribe", "symbols": ["1.SH", "AAPL"]})
    [event] = client.events()
    assert event["symbols"] == ["1.SH"]
    assert event["errors"]["AAPL"]["code"] == 409
    publish(served.hub, ("1.SH", b"1"))
    assert client.frames() == [], "that is not late enough"
    publish(served.late, ("1.SH", b"1"))
    assert len(client.events()) == 1
    client.session.close()
    assert served.clock.calls == []


def test_who_came_with_a_token_is_welcomed_as_known_and_with_its_own_limit(served):
    client = served.client(served.accept_token("t", max_symbols=2))
    welcome, authenticated = client.events()
    assert (welcome["auth"], welcome["limits"]["symbols"]) == ("done", 2)
    assert authenticated == {"ev": "authenticated", "user": "ann"}
    client.say({"op": "subscribe", "symbols": ["A", "B", "C"]})
    assert client.events()[0]["errors"]["C"]["code"] == 405


def test_a_bad_token_is_refused_in_words_and_the_third_closes(served):
    client = served.client()
    client.frames()
    for tries in (1, 2, 3):
        assert client.outlet.closed_with is None
        client.authenticate("secret", id=tries)
        events = client.events()
        assert (events[0]["code"], events[0]["id"]) == (402, tries)
        assert events[0]["msg"] == "the token is refused: nobody knows it"
    assert events[1] == {"ev": "bye", "code": 4001}
    assert client.outlet.closed_with is CloseCode.AUTHENTICATION_FAILED
    assert served.counters.auth_failures == 3
    assert served.clock.calls == []


def test_what_is_refused_for_now_alone_may_be_tried_for_ever(served):
    served.authenticator.known["t"] = Refused("try again", temporary=True)
    client = served.client()
    for _ in range(5):
        client.authenticate("t")
    assert client.outlet.closed_with is None
    served.accept_token("t")
    client.authenticate("t")
    assert client.session.identity is not None


def test_a_good_token_makes_bad_ones_forgotten(served):
    client = served.client()
    for token in ("bad", "bad", "ann", "bad", "bad"):
        client.authenticate(token)
    assert client.outlet.closed_with is None


def test_a_client_that_does_not_authenticate_in_time_is_closed_with_4004(served):
    client = served.client()
    client.frames()
    served.clock.pass_time(TIMEOUT + 0.25)
    assert kinds(client) == [("error", 404), ("bye", 4004)]
    assert client.outlet.closed_with is CloseCode.AUTHENTICATION_TOO_LATE
    assert served.counters.auth_too_late == 1


def test_an_unauthenticated_client_that_is_behind_is_told_why_it_is_closed_too(served):
    client = served.client()
    client.frames()
    client.outbox.blocked()
    served.clock.pass_time(TIMEOUT + 0.25)
    assert kinds(client) == [("error", 404), ("bye", 4004)]


def test_what_is_said_while_a_token_is_looked_at_waits_and_is_carried_out_in_order(served):
    served.authenticator.later = True
    client = served.client()
    client.frames()
    client.authenticate("ann", id=1)
    assert not client.outlet.reading
    client.say({"op": "subscribe", "id": 2, "symbols": ["A"]})
    client.say(b"nonsense")
    client.authenticate("ann", id=3)
    client.say({"op": "ping", "id": 4})
    assert client.frames() == []
    served.authenticator.answer()
    assert [(event["ev"], event.get("id")) for event in client.events()] == [
        ("authenticated", 1),
        ("subscribed", 2),
        ("error", None),
    ]
    assert not client.outlet.reading
    served.authenticator.answer()
    assert [event["ev"] for event in client.events()] == ["authenticated", "pong"]
    assert client.outlet.reading


def test_what_waits_behind_a_refused_token_is_refused_too(served):
    served.authenticator.later = True
    client = served.client()
    client.frames()
    client.authenticate("bad")
    client.say({"op": "subscribe", "symbols": ["A"]})
    served.authenticator.answer()
    assert kinds(client) == [("error", 402), ("error", 401)]


@pytest.mark.parametrize("end", ["leaves", "too late", "revoked", "expires"])
def test_a_verdict_on_who_is_gone_does_nothing(served, end):
    served.accept_token("t", token_id="7", expires_at=served.clock.seconds() + 1)
    client = served.client() if end in ("leaves", "too late") else known(served, "t")
    served.authenticator.later = True
    client.authenticate("ann")
    client.say({"op": "subscribe", "symbols": ["A"]})
    if end == "leaves":
        client.session.close()
    elif end == "revoked":
        served.revoke(token="7")
    else:
        served.clock.pass_time(TIMEOUT + 1)
    assert client.session.closed
    client.frames()
    served.authenticator.answer()
    assert client.frames() == []
    assert served.hub.count_topics() == 0
    served.revoke(user="ann")
    assert client.frames() == []
    assert served.clock.calls == []


def test_who_is_revoked_while_looked_at_does_not_come_in(served):
    served.accept_token("t", token_id="7")
    served.authenticator.later = True
    client = served.client()
    client.frames()
    client.authenticate("t")
    served.revoke(token="7")
    served.authenticator.answer()
    [event] = client.events()
    assert event["msg"] == "the token is refused: it was revoked"
    assert client.session.identity is None
    client.session.close()


def test_who_catches_up_while_a_token_is_looked_at_is_not_read_on_and_on(served):
    served.authenticator.later = True
    client = served.client()
    client.outbox.blocked()
    client.authenticate("ann")
    client.outbox.drained()
    client.say({"op": "ping"})
    assert not client.outlet.reading
    served.authenticator.answer()
    assert client.outlet.reading
    assert kinds(client)[-1] == ("pong", None)


def test_reading_is_not_resumed_for_who_fell_behind_meanwhile(served):
    served.authenticator.later = True
    client = served.client()
    client.authenticate("ann")
    client.outbox.blocked()
    served.authenticator.answer()
    assert not client.outlet.reading
    client.outbox.drained()
    assert client.outlet.reading


def test_the_end_of_a_token_is_told_and_then_it_is_closed_and_told_why(served):
    client = served.client(served.accept_token("t", expires_at=served.clock.seconds() + 60))
    client.say({"op": "subscribe", "symbols": ["A"]})
    client.frames()
    served.clock.pass_time(0)
    assert client.events() == [{"ev": "expiring", "in": 60_000}]
    served.clock.pass_time(60 + LEEWAY + 0.25)
    error, bye = client.events()
    assert (error["code"], error["msg"]) == (401, "the token has expired")
    assert bye == {"ev": "bye", "code": 4001}
    assert client.outlet.closed_with is CloseCode.AUTHENTICATION_FAILED
    assert served.hub.count_outboxes() == served.hub.count_topics() == 0
    assert served.counters.shut_out == 1


def test_a_new_token_in_time_keeps_it_open(served):
    client = served.client(served.accept_token("t", expires_at=served.clock.seconds() + 60))
    served.accept_token("u", expires_at=served.clock.seconds() + 3600)
    client.authenticate("u")
    served.clock.pass_time(600)
    assert client.outlet.closed_with is None
    client.session.close()


def test_another_users_token_is_refused_and_changes_nothing(served):
    served.authenticator.known["bob"] = Identity("bob")
    client = known(served)
    client.authenticate("bob", id=5)
    [event] = client.events()
    assert (event["code"], event["id"]) == (403, 5)
    assert client.session.identity == Identity("ann")


def test_a_new_token_that_gives_less_ends_what_it_does_not_cover(served):
    served.accept_token("less", "A", max_symbols=1)
    client = known(served)
    client.say({"op": "subscribe", "symbols": ["B", "A"]})
    client.frames()
    client.authenticate("less", id=1)
    authenticated, unsubscribed = client.events()
    assert authenticated["ev"] == "authenticated"
    assert (unsubscribed["ev"], unsubscribed["symbols"]) == ("unsubscribed", ["B"])
    assert unsubscribed["errors"]["B"]["code"] == 409
    assert (unsubscribed["total"], "id" in unsubscribed) == (1, False)
    publish(served.hub, ("A", b"1"), ("B", b"1"))
    assert [event["s"] for event in client.events()] == ["A"]


@pytest.mark.parametrize("how", [{}, {"mode": "raw"}, {"interval": 100}])
def test_what_waited_for_who_is_behind_is_not_sent_once_its_right_is_gone(served, how):
    served.accept_token("less", "A")
    client = known(served)
    client.say({"op": "subscribe", "symbols": ["A", "B"]} | how)
    client.frames()
    client.outbox.blocked()
    publish(served.hub, ("A", b"1"), ("B", b"1"))
    client.authenticate("less")
    served.clock.pass_time(1)
    client.outbox.drained()
    served.clock.pass_time(1)
    assert {event["s"] for event in client.events() if event["ev"] == "quote"} == {"A"}
    client.session.close()


def test_who_may_see_sooner_moves_there_without_what_it_may_not_see(served):
    served.accept_token("late", delay_s=DELAY)
    served.accept_token("now", "A")
    for hub, payload in ((served.late, b"0"), (served.hub, b"0"), (served.hub, b"1")):
        publish(hub, ("A", payload), ("B", payload))
    client = known(served, "late")
    client.say({"op": "subscribe", "symbols": ["A", "B"]})
    client.frames()
    client.authenticate("now")
    events = client.events()
    assert [event["ev"] for event in events] == [
        *("authenticated", "unsubscribed", "gap", "snapshot"),
    ]
    assert {event["s"] for event in events[2:]} == {"A"}
    publish(served.hub, ("A", b"2"), ("B", b"2"))
    publish(served.late, ("A", b"1"), ("B", b"1"))
    assert [(event["s"], event["d"]) for event in client.events()] == [("A", 2)]
    client.session.close()
    assert served.hub.count_outboxes() == 0


def test_who_may_only_see_later_has_to_come_again(served):
    served.accept_token("late", delay_s=DELAY)
    client = known(served)
    client.say({"op": "subscribe", "symbols": ["A"]})
    client.frames()
    client.authenticate("late")
    assert client.events()[1:] == [{"ev": "bye", "code": 1012, "retry": 0}]
    assert client.outlet.closed_with is CloseCode.RESTARTING
    publish(served.hub, ("A", b"1"))
    assert client.frames() == []


def test_an_unauthenticated_client_that_is_behind_may_get_a_delay(served):
    served.accept_token("late", delay_s=DELAY)
    client = served.client()
    client.outbox.blocked()
    client.authenticate("late")
    client.outbox.drained()
    assert client.outlet.closed_with is None
    client.say({"op": "subscribe", "symbols": ["A"]})
    client.frames()
    publish(served.hub, ("A", b"1"))
    assert client.frames() == []


def test_a_raw_client_authenticates_with_the_json_command_and_hears_of_errors_alone(served):
    publish(served.hub, ("A", b"1"))
    client = served.client(codec=RAW)
    client.say(b"A")
    client.authenticate("bad")
    client.authenticate("ann")
    client.say(b"A")
    *errors, payload = client.texts()
    assert [json.loads(text)["error"]["code"] for text in errors] == [401, 402]
    assert payload == b"1"
    served.revoke(user="ann")
    [error] = client.texts()
    assert json.loads(error)["error"]["code"] == 401
    assert client.outlet.closed_with is CloseCode.AUTHENTICATION_FAILED


def test_no_word_to_the_client_repeats_its_token(served):
    client = served.client()
    for token in ("s3cr3t", 5, "", ["s3cr3t"]):
        client.say({"op": "auth", "token": token})
    client.say(b'{"op":"auth","token":"s3cr3t"')
    assert b"s3cr3t" not in b"".join(client.outlet.written)


def test_looking_at_tokens_counts_against_what_a_client_may_say():
    served = AuthenticatedHub(Limits(message_rate=1, byte_rate=0))
    served.authenticator.known["t"] = Refused("try again", temporary=True)
    client = served.client()
    client.session.arrived(1)
    codes = []
    for _ in range(20):
        client.session.frame()
        client.authenticate("t")
        codes += [event["code"] for event in client.events() if event["ev"] == "error"]
    assert codes.count(402) < 10
    assert 429 in codes


def test_a_fault_in_a_late_verdict_closes_the_client_and_one_at_once_is_the_edges(monkeypatch):
    served = AuthenticatedHub()
    failures = []
    hooks = TurnHooks(lambda _outbox, failure: failures.append(failure))
    monkeypatch.setattr(served.hub, "_hooks", hooks)
    for later in (False, True):
        served.authenticator.later = later
        client = served.client()
        client.authenticate("ann") if later else None
        client.outlet.broken = True
        if later:
            served.authenticator.answer()
            assert [type(failure) for failure in failures] == [OSError]
        else:
            with pytest.raises(OSError, match="broken"):
                client.authenticate("ann")
            assert failures == []


def test_a_client_that_can_not_be_told_is_no_hindrance_to_access_control(monkeypatch):
    served = AuthenticatedHub()
    failed = []
    hooks = TurnHooks(lambda outbox, _failure: failed.append(outbox))
    monkeypatch.setattr(served.hub, "_hooks", hooks)
    end = served.clock.seconds() + 60
    broken, other = (served.client(served.accept_token("t", expires_at=end)) for _ in range(2))
    other.frames()
    broken.outlet.broken = True
    served.clock.pass_time(0)
    served.clock.pass_time(60 + LEEWAY + 0.25)
    assert failed == [broken.outbox] * 2
    assert kinds(other) == [("expiring", None), ("error", 401), ("bye", 4001)]
    for client in (broken, other):
        client.session.close()
    broken, other = (served.client(served.accept_token("t")) for _ in range(2))
    broken.outlet.broken = True
    served.revoke(user="ann")
    assert other.outlet.closed_with is CloseCode.AUTHENTICATION_FAILED
