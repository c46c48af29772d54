"""The client's conversation: every state, and what leads from one to the next."""

from __future__ import annotations

import pytest
from client_doubles import Dialogue, quote, snapshot

from pushservice.client.events import (
    Feed,
    Fresh,
    Gap,
    Heartbeat,
    Quote,
    QuoteError,
    Refused,
    Stale,
    State,
    Welcome,
)
from pushservice.protocol.close_codes import RECONNECT_AFTER, CloseCode

FINAL = sorted(set(CloseCode) - RECONNECT_AFTER - {4001, 4004})


# -- a link's life ----------------------------------------


def test_it_connects_is_welcomed_and_asks_for_what_is_wanted():
    talk = Dialogue()
    talk.subscribe("AAPL", "MSFT")
    talk.open()
    assert talk.states == ["connecting"]
    assert talk.sent == []
    talk.welcome()
    assert talk.states == ["connecting", "open"]
    assert talk.ops("subscribe") == [["AAPL", "MSFT"]]
    assert talk.take(Welcome) == [Welcome("e1-1", "e1", 5.0, 1000, 16384, None)]
    talk.grant()
    assert talk.outcomes == {"subscribe": {}}


def test_options_of_delivery_go_with_every_subscribe():
    talk = Dialogue(interval=0.25, snapshot=False)
    talk.served("A")
    assert talk.sent[0]["interval"] == 250
    assert talk.sent[0]["snapshot"] is False
    raw = Dialogue(mode="raw")
    raw.served("A")
    assert raw.sent[0]["mode"] == "raw"
    assert {"interval", "snapshot"} & set(raw.sent[0]) == set()


def test_opening_an_open_connection_does_nothing():
    talk = Dialogue()
    talk.served("A")
    talk.open()
    assert talk.links == 1


def test_closing_hangs_up_politely_and_is_the_last_word():
    talk = Dialogue()
    talk.served("A")
    talk.take()
    talk.close()
    talk.close()
    assert talk.hangups == [True]
    assert talk.take(State) == [State("closed", None, 1000, "closed by the client")]
    talk.advance(1000)
    talk.say(quote("A", 1))
    talk.lose()
    assert talk.take() == []
    assert talk.core.deadline is None


def test_closing_while_waiting_hangs_up_nothing():
    talk = Dialogue()
    talk.open()
    talk.lose()
    talk.close()
    assert talk.hangups == [False]
    assert talk.states[-1] == "closed"


def test_it_can_be_opened_again_with_what_it_had():
    talk = Dialogue()
    talk.served("A")
    talk.close()
    talk.open()
    talk.welcome("e2")
    assert talk.ops("subscribe") == [["A"]]


@pytest.mark.parametrize("code", sorted(RECONNECT_AFTER))
def test_after_a_close_that_passes_it_connects_again(code):
    talk = Dialogue()
    talk.served("A")
    talk.lose(code, "why")
    assert talk.last_state() == State("waiting", 0.5, code, "why")
    talk.advance(0.5)
    assert talk.links == 2


@pytest.mark.parametrize("code", [*FINAL, 3000, 4000, 4999])
def test_after_a_close_that_does_not_pass_it_is_closed(code):
    talk = Dialogue()
    talk.served("A")
    talk.lose(code, "why")
    assert talk.last_state() == State("closed", None, code, "why")
    talk.advance(1000)
    assert talk.links == 1


def test_a_close_without_a_code_is_a_link_that_broke():
    talk = Dialogue()
    talk.served("A")
    talk.lose(None)
    assert talk.last_state().code == 1006


@pytest.mark.parametrize("code", [4001, 4004])
def test_being_locked_out_is_final_without_a_token_function(code):
    for token in (None, "words"):
        talk = Dialogue(token=token)
        talk.open()
        talk.welcome()
        talk.say({"ev": "error", "code": 401, "msg": "the token was revoked"})
        talk.lose(code, "authentication failed")
        assert talk.last_state() == State("closed", None, code, "the token was revoked")


def test_a_missing_welcome_is_not_waited_for_longer_than_allowed():
    talk = Dialogue(connect_timeout=7)
    talk.open()
    talk.advance(6.9)
    assert talk.hangups == []
    talk.advance(0.2)
    assert talk.hangups == [False]
    assert talk.last_state().reason == "no welcome in time"


# -- refused handshakes and connections that can't be made ----------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_a_refusal_that_passes_is_waited_out(status):
    talk = Dialogue(random=0.5)
    talk.open()
    talk.refuse(status, "too many", 8.0)
    assert talk.last_state() == State("waiting", 8.25, status, f"HTTP {status}: too many")
    talk.advance(8.25)
    assert talk.links == 2


def test_a_refusal_that_does_not_say_how_long_is_waited_out_with_backoff():
    talk = Dialogue()
    talk.open()
    talk.refuse(503)
    assert talk.last_state() == State("waiting", 0.5, 503, "HTTP 503")


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 426, 431, 505])
def test_a_refusal_that_does_not_pass_ends_it_if_the_server_was_never_reached(status):
    talk = Dialogue()
    talk.subscribe("A")
    talk.open()
    talk.refuse(status, "no")
    assert talk.last_state() == State("closed", None, status, f"HTTP {status}: no")
    error = talk.outcomes["subscribe"]
    assert isinstance(error, QuoteError)
    assert (error.code, error.message) == (status, f"HTTP {status}: no")


def test_what_would_end_a_first_attempt_is_tried_again_once_the_server_was_reached():
    talk = Dialogue()
    talk.served("A")
    talk.lose()
    talk.advance(0.5)
    talk.refuse(403, "no")
    assert talk.last_state() == State("waiting", 1.0, 403, "HTTP 403: no")
    talk.advance(1)
    talk.core.failed(talk.now, 1015, "the certificate has expired")
    talk.turn()
    assert talk.last_state() == State("waiting", 2.0, 1015, "the certificate has expired")
    talk.advance(2)
    assert talk.links == 4


def test_a_call_after_the_end_fails_at_once_and_says_why():
    talk = Dialogue()
    talk.open()
    talk.core.failed(talk.now, 1015, "not trusted")
    talk.turn()
    talk.subscribe("A")
    talk.ping()
    assert talk.outcomes["subscribe"].code == 1015
    assert talk.outcomes["ping"].message == "not connected"


# -- what the server tells ----------------------------------------


def test_a_quote_has_what_was_sent_and_the_payloads_exact_bytes():
    talk = Dialogue()
    talk.served("A")
    talk.take()
    talk.say_text(b'[{"ev":"quote","s":"A","n":7,"t":5,"d":{"last": 10.50}},{"ev":"new","x":1}]')
    (quoted,) = talk.take(Quote)
    assert quoted == Quote("A", 7, 5, b'{"last": 10.50}', epoch="e1")
    assert quoted.data == {"last": 10.5}


def test_merged_is_what_n_jumped_over_but_for_the_first_and_for_snapshots():
    talk = Dialogue()
    talk.served("A", "B")
    talk.take()
    talk.say(snapshot("A", 5), quote("A", 6), quote("A", 9), quote("B", 4))
    talk.say(snapshot("A", 12), quote("A", 12), quote("A", 14))
    assert [(q.symbol, q.n, q.merged, q.snapshot) for q in talk.take(Quote)] == [
        ("A", 5, 0, True),
        ("A", 6, 0, False),
        ("A", 9, 2, False),
        ("B", 4, 0, False),
        ("A", 12, 0, True),
        ("A", 12, 0, False),
        ("A", 14, 1, False),
    ]


def test_the_feed_and_how_fresh_all_is_are_told_on_change():
    talk = Dialogue()
    talk.served("A")
    assert talk.take(Feed, Fresh, Stale) == []
    talk.say(snapshot("A", 1))
    assert talk.take(Feed, Fresh) == []
    talk.say(quote("A", 2))
    assert talk.take(Feed, Fresh) == [Feed(up=True, t=1002), Fresh(None)]
    talk.say({"ev": "feed", "state": "down", "t": 5})
    assert talk.take(Feed, Stale) == [Feed(up=False, t=5), Stale(None, "feed")]
    talk.say({"ev": "heartbeat", "t": 6, "feed": "down", "age": 1500, "merged": 3}, quote("A", 3))
    assert talk.take(Feed, Stale, Fresh, Heartbeat) == [Heartbeat(6, False, 1.5, 3)]
    talk.say({"ev": "heartbeat", "t": 7, "feed": "up", "age": None, "merged": 3})
    assert talk.take(Feed, Fresh) == [Feed(up=True, t=7), Fresh(None)]
    talk.lose()
    assert talk.take(Stale) == [Stale(None, "link")]


def test_quiet_symbols_and_a_quiet_feed_are_told_apart():
    talk = Dialogue()
    talk.served("A")
    talk.say({"ev": "heartbeat", "t": 1, "feed": "up"})
    talk.take()
    talk.say({"ev": "stale", "symbols": ["A"]}, {"ev": "fresh", "symbols": ["A"]})
    assert talk.take() == [Stale(("A",), "quiet"), Fresh(("A",))]
    talk.say({"ev": "stale", "symbols": [], "all": True})
    talk.say({"ev": "fresh", "symbols": [], "all": True})
    assert talk.take() == [Stale(None, "quiet"), Fresh(None)]
    talk.say({"ev": "feed", "state": "down", "t": 5}, {"ev": "stale", "symbols": [], "all": True})
    assert talk.take(Stale) == [Stale(None, "feed")]


@pytest.mark.parametrize("text", [b"", b"{}", b"[", b"\xff", b"null", b'"a"', b"[" * 5000])
def test_a_message_that_is_no_array_of_events_is_told_and_the_link_lives(text):
    talk = Dialogue()
    talk.served("A")
    talk.take()
    talk.say_text(text)
    (told,) = talk.take()
    assert isinstance(told, Refused)
    assert told.code == 0
    assert told.message.startswith("bad message: ")
    talk.say(quote("A", 1))
    assert talk.take(Quote)


def test_of_a_message_in_part_unreadable_the_rest_counts():
    talk = Dialogue()
    talk.served("A")
    talk.take()
    talk.say_text(
        b'[{"ev":"quote","s":"A","n":"1","t":1,"d":1},{"ev":7},null,{"no":"ev"},"x",'
        b'{"ev":"later"},{"ev":"quote","s":"A","n":2,"t":1,"d":2,"more":{}}]'
    )
    assert [quoted.n for quoted in talk.events if isinstance(quoted, Quote)] == [2]
    assert len(talk.take(Refused)) == 1


def test_the_rest_of_a_message_that_ended_the_link_is_not_heard():
    talk = Dialogue()
    talk.subscribe("A")
    talk.open()
    talk.say({"ev": "welcome", "epoch": "e", "auth": "required"}, {"ev": "gap", "s": "A"})
    assert talk.core.state == "closed"
    assert talk.take(Gap) == []
