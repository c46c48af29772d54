"""Subscriptions of a client: kept, asked for in messages that fit, refused, retried, counted."""

from __future__ import annotations

import json

import pytest
from client_doubles import Dialogue, quote, snapshot

from pushservice.client.events import Gap, Quote, QuoteError, Refused
from pushservice.protocol.symbols import MAX_SYMBOL_BYTES


def test_calls_of_one_turn_are_one_message():
    talk = Dialogue()
    talk.served()
    for name in ("A", "B", "C"):
        talk.core.subscribe(talk.now, [name], lambda _: None)
    talk.turn()
    assert talk.sent == []
    talk.advance(0)
    assert talk.ops("subscribe") == [["A", "B", "C"]]


def test_a_subscribed_symbol_is_not_asked_for_twice():
    talk = Dialogue()
    talk.served("A")
    talk.subscribe("A", "A", name="again")
    assert talk.outcomes["again"] == {}
    assert talk.ops("subscribe") == [["A"]]


def test_calls_for_what_is_asked_for_already_end_with_its_answer():
    talk = Dialogue()
    talk.open()
    talk.welcome()
    talk.subscribe("A", name="first")
    talk.subscribe("A", "B", name="second")
    assert talk.outcomes == {}
    talk.grant()
    assert talk.outcomes == {"first": {}, "second": {}}
    assert talk.ops("subscribe") == [["A"], ["B"]]


def test_a_call_waits_over_links_until_it_is_answered():
    talk = Dialogue()
    talk.subscribe("A")
    talk.open()
    talk.welcome()
    talk.lose()
    talk.advance(1)
    assert talk.outcomes == {}
    talk.welcome()
    talk.grant()
    assert talk.outcomes == {"subscribe": {}}


def test_errors_of_some_symbols_are_returned_and_told():
    talk = Dialogue()
    talk.open()
    talk.welcome()
    talk.subscribe("A", "B")
    talk.take()
    talk.grant(B=(405, "too many"))
    errors = talk.outcomes["subscribe"]
    assert list(errors) == ["B"]
    assert (errors["B"].code, errors["B"].message) == (405, "too many")
    assert talk.take() == [Refused("B", 405, "too many")]
    talk.say(quote("A", 1), quote("B", 1))
    assert [quoted.symbol for quoted in talk.take(Quote)] == ["A"]


def test_where_all_are_refused_the_call_fails():
    talk = Dialogue()
    talk.open()
    talk.welcome()
    talk.subscribe("A", "B")
    talk.grant(A=(405, "too many"), B=(405, "too many"))
    error = talk.outcomes["subscribe"]
    assert isinstance(error, QuoteError)
    assert (error.code, error.message) == (405, "A, and 1 more: too many")


@pytest.mark.parametrize("symbol", ["", "a b", "*", "\ud800", "x" * (MAX_SYMBOL_BYTES + 1)])
def test_what_is_no_symbol_is_refused_without_a_word_to_the_server(symbol):
    talk = Dialogue()
    talk.served("A")
    talk.take()
    talk.subscribe(symbol, name="bad")
    assert talk.outcomes["bad"].code == 411
    assert [(told.symbol, told.code) for told in talk.take(Refused)] == [(symbol, 411)]
    assert talk.ops("subscribe") == [["A"]]
    assert talk.core.wanted == ["A"]


def test_messages_stay_under_the_servers_limit():
    talk = Dialogue(interval=1)
    names = [f"{'é' * 20}{n}" for n in range(500)]
    talk.subscribe(*names)
    talk.open()
    talk.welcome(message=2000)
    batches = talk.ops("subscribe")
    assert [name for batch in batches for name in batch] == names
    sizes = [
        len(json.dumps(m, ensure_ascii=False, separators=(",", ":")).encode()) for m in talk.sent
    ]
    assert max(sizes) <= 2000
    assert min(sizes[:-1]) > 1900, "each is about as full as it may be"


def test_a_symbol_that_fits_into_no_message_is_refused_here():
    talk = Dialogue()
    talk.subscribe("A", "B" * 60)
    talk.open()
    talk.welcome(message=90)
    assert talk.ops("subscribe") == [["A"]]
    talk.grant()
    assert talk.outcomes["subscribe"]["B" * 60].code == 411


def test_unsubscribing_ends_quotes_at_once_and_the_call_when_it_is_answered():
    talk = Dialogue()
    talk.served("A", "B")
    talk.take()
    talk.unsubscribe("A")
    talk.say(quote("A", 1), quote("B", 1))
    assert [quoted.symbol for quoted in talk.take(Quote)] == ["B"]
    assert talk.outcomes == {"subscribe": {}}
    assert talk.ops("unsubscribe") == [["A"]]
    talk.grant()
    assert talk.outcomes["unsubscribe"] == {}
    assert talk.core.wanted == ["B"]


def test_unsubscribing_without_names_ends_all():
    talk = Dialogue()
    talk.served("A", "B")
    talk.unsubscribe()
    assert talk.ops("unsubscribe") == [["A", "B"]]
    assert talk.core.wanted == []


def test_what_is_unsubscribed_without_a_link_is_not_asked_for_on_the_next():
    talk = Dialogue()
    talk.served("A", "B")
    talk.lose()
    talk.unsubscribe("A")
    assert talk.outcomes["unsubscribe"] == {}
    talk.advance(1)
    talk.welcome()
    assert talk.ops("subscribe") == [["B"]]


def test_an_unsubscribe_ends_with_the_link_on_which_it_was_asked():
    talk = Dialogue()
    talk.served("A")
    talk.unsubscribe("A")
    talk.lose()
    assert talk.outcomes["unsubscribe"] == {}


def test_unsubscribing_ends_a_subscribe_that_waits():
    talk = Dialogue()
    talk.subscribe("A")
    talk.unsubscribe("A")
    assert talk.outcomes["subscribe"].code == 0
    assert "unsubscribed" in talk.outcomes["subscribe"].message


def test_unsubscribing_and_subscribing_in_one_turn_says_nothing_and_goes_on():
    talk = Dialogue()
    talk.served("A")
    talk.core.unsubscribe(talk.now, ["A"], talk._hears("unsubscribe"))
    talk.core.subscribe(talk.now, ["A"], talk._hears("again"))
    talk.turn()
    talk.advance(0)
    assert len(talk.sent) == 1
    assert talk.outcomes == {"subscribe": {}, "unsubscribe": {}, "again": {}}
    talk.take()
    talk.say(quote("A", 1))
    assert talk.take(Quote)


def test_subscribing_anew_before_the_old_answers_came_counts_from_the_new_answer():
    talk = Dialogue()
    talk.open()
    talk.welcome()
    talk.subscribe("A")
    talk.unsubscribe("A")
    talk.subscribe("A", name="again")
    first, end, second = talk.sent
    talk.say({"ev": "subscribed", "id": first["id"], "symbols": ["A"]}, snapshot("A", 3))
    assert talk.take(Quote) == []
    talk.say({"ev": "unsubscribed", "id": end["id"], "symbols": ["A"]})
    talk.say({"ev": "subscribed", "id": second["id"], "symbols": ["A"]}, snapshot("A", 4))
    assert [quoted.n for quoted in talk.take(Quote)] == [4]
    assert talk.outcomes["again"] == {}


# -- refused for the time being ----------------------------------------


def test_what_came_too_fast_is_asked_again_after_a_while():
    talk = Dialogue(random=0.5)
    talk.open()
    talk.welcome(hb=0)
    talk.subscribe("A", "B")
    talk.say({"ev": "error", "id": talk.sent[0]["id"], "code": 429, "msg": "too many"})
    assert [told.retry for told in talk.take(Refused) if told.symbol] == [1.5, 1.5]
    talk.advance(1.4)
    assert len(talk.sent) == 1
    talk.advance(0.2)
    assert talk.ops("subscribe") == [["A", "B"], ["A", "B"]]
    assert talk.outcomes == {}
    talk.grant()
    assert talk.outcomes == {"subscribe": {}}


def test_a_symbol_refused_with_a_retry_is_asked_for_again_then():
    talk = Dialogue(random=0.0)
    talk.open()
    talk.welcome(hb=0)
    talk.subscribe("A", "B")
    errors = {"A": {"code": 405, "msg": "full", "retry": 4000}}
    talk.say({"ev": "subscribed", "id": talk.sent[0]["id"], "symbols": ["B"], "errors": errors})
    talk.subscribe("C", name="other")
    assert talk.ops("subscribe") == [["A", "B"], ["C"]], "not before its time"
    talk.advance(4)
    assert talk.ops("subscribe") == [["A", "B"], ["C"], ["A"]]


def test_an_unsubscribe_that_came_too_fast_is_made_again():
    talk = Dialogue(random=0.0)
    talk.open()
    talk.welcome(hb=0)
    talk.subscribe("A")
    talk.grant()
    talk.unsubscribe("A")
    talk.say({"ev": "error", "id": talk.sent[1]["id"], "code": 429, "msg": "too many"})
    assert "unsubscribe" not in talk.outcomes
    talk.advance(1)
    assert talk.ops("unsubscribe") == [["A"], ["A"]]
    talk.grant()
    assert talk.outcomes["unsubscribe"] == {}


def test_a_request_that_is_wrong_fails_for_all_of_its_symbols():
    talk = Dialogue()
    talk.open()
    talk.welcome()
    talk.subscribe("A", "B")
    talk.say({"ev": "error", "id": talk.sent[0]["id"], "code": 400, "msg": "bad mode"})
    assert talk.outcomes["subscribe"].code == 400


# -- holes ----------------------------------------


def test_a_gap_of_the_feed_is_told():
    talk = Dialogue()
    talk.served("A")
    talk.take()
    talk.say({"ev": "gap", "s": "A"}, quote("A", 5))
    assert talk.take(Gap, Quote)[0] == Gap("A", "feed")


def test_after_another_link_each_symbol_that_was_served_has_a_gap_before_its_next_quote():
    talk = Dialogue()
    talk.served("A", "B")
    talk.say(quote("A", 5))
    talk.take()
    talk.lose()
    talk.advance(1)
    talk.welcome("e1")
    talk.grant()
    talk.say(snapshot("A", 9), quote("A", 10))
    told = talk.take(Gap, Quote)
    assert told[:2] == [Gap("A", "link"), Gap("B", "link")]
    assert [quoted.merged for quoted in told[2:]] == [0, 0]


def test_another_epoch_is_in_its_quotes_and_counts_anew():
    talk = Dialogue()
    talk.served("A")
    talk.say(quote("A", 500))
    talk.lose()
    talk.advance(1)
    talk.welcome("e2")
    talk.take()
    talk.grant()
    talk.say(quote("A", 3), quote("A", 4))
    gap, *quotes = talk.take(Gap, Quote)
    assert gap == Gap("A", "link")
    assert [(q.epoch, q.n, q.merged) for q in quotes] == [("e2", 3, 0), ("e2", 4, 0)]


def test_a_symbol_subscribed_for_the_first_time_has_no_gap():
    talk = Dialogue()
    talk.served("A")
    talk.subscribe("B", name="more")
    talk.grant()
    assert talk.take(Gap) == []
    talk.unsubscribe("B")
    talk.grant()
    talk.subscribe("B", name="anew")
    talk.grant()
    assert talk.take(Gap) == [], "it was given up, and not lost"


def test_quotes_before_the_answer_and_of_other_symbols_are_dropped():
    talk = Dialogue()
    talk.open()
    talk.welcome()
    talk.subscribe("A")
    talk.say(quote("A", 1), quote("Z", 1))
    assert talk.take(Quote) == []


def test_a_snapshot_that_no_update_brought_begins_the_count_at_0():
    talk = Dialogue()
    talk.served("A")
    talk.say(snapshot("A", 0), quote("A", 3))
    assert [(quoted.n, quoted.merged) for quoted in talk.take(Quote)] == [(0, 0), (3, 2)]


def test_a_gap_of_a_symbol_that_was_unsubscribed_is_not_told():
    talk = Dialogue()
    talk.served("A")
    talk.unsubscribe("A")
    talk.take()
    talk.say({"ev": "gap", "s": "A"}, {"ev": "gap", "s": "Z"})
    assert talk.take() == []
