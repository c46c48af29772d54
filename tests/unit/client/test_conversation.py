"""The client's conversation: every state, and what leads from one to the next."""

from __future__ import annotations

import pytest
from client_doubles import Dialogue, quote, snapshot

from pushservice.client.events import (
    Authenticated,
    Bye,
    Expiring,
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


# -- waiting ----------------------------------------


def test_the_wait_doubles_up_to_a_bound_and_is_chosen_by_chance():
    talk = Dialogue(backoff=0.5, backoff_max=4)
    talk.open()
    waits = []
    for talk.random in (1.0, 1.0, 0.5, 1.0, 1.0, 0.25, 0.0):
        talk.lose()
        waits.append(talk.last_state().delay)
        talk.advance(waits[-1])
    assert waits == [0.5, 1.0, 1.0, 4.0, 4.0, 1.0, 0.0]


def test_ten_thousand_attempts_later_the_wait_is_still_its_bound():
    talk = Dialogue(backoff_max=3)
    talk.open()
    for _ in range(2000):
        talk.lose()
        talk.advance(3)
    talk.lose()
    assert talk.last_state().delay == 3


def test_a_link_that_was_served_for_long_starts_the_wait_anew():
    talk = Dialogue(stable_after=10)
    talk.served("A")
    for seconds, delay in ((1, 0.5), (1, 1.0), (10, 0.5)):
        talk.say({"ev": "heartbeat", "t": 1, "feed": "up"})
        talk.advance(seconds)
        talk.lose()
        assert talk.last_state().delay == delay
        talk.advance(delay)
        talk.welcome()


def test_after_a_bye_it_waits_as_long_as_the_server_asked_and_some():
    talk = Dialogue(random=0.5)
    talk.served("A")
    talk.take()
    talk.say({"ev": "bye", "code": 1001, "retry": 3500})
    talk.lose(1001)
    assert talk.take(Bye, State) == [Bye(1001, 3.5), State("waiting", 3.75, 1001)]
    talk.advance(3.75)
    talk.lose()
    assert talk.last_state().delay == 0.5, "a bye counts once"


def test_opening_while_waiting_connects_at_once():
    talk = Dialogue()
    talk.open()
    talk.lose()
    talk.open()
    assert talk.links == 2
    talk.advance(5)
    assert talk.links == 2


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


# -- is it alive ----------------------------------------


def test_a_link_on_which_nothing_is_heard_is_replaced():
    talk = Dialogue()
    talk.served("A")
    talk.advance(14)
    talk.say({"ev": "heartbeat", "t": 1, "feed": "up"})
    talk.advance(14.9)
    assert talk.links == 1
    talk.take()
    talk.advance(1.2)
    assert talk.links == 2
    assert talk.hangups == [False]
    assert talk.take(Stale, State) == [Stale(None, "link"), State("connecting")]


def test_a_program_that_was_held_up_itself_does_not_blame_the_link():
    talk = Dialogue()
    talk.served("A")
    talk.now += 60
    talk.core.tick(talk.now)  # late, and before what waits in the socket is read
    talk.turn()
    talk.say({"ev": "heartbeat", "t": 1, "feed": "up"})
    talk.advance(10)
    assert talk.links == 1


def test_nothing_is_expected_while_nobody_reads():
    talk = Dialogue()
    talk.served("A")
    talk.core.watchdog.listening = False
    talk.advance(100)
    assert talk.links == 1
    talk.core.watchdog.listening = True
    talk.core.heard(talk.now)
    talk.advance(14)
    assert talk.links == 1
    talk.advance(3)
    assert talk.links == 2


def test_without_heartbeats_nothing_is_watched():
    talk = Dialogue()
    talk.open()
    talk.welcome(hb=0)
    talk.advance(10_000)
    assert talk.links == 1


def test_a_ping_takes_the_time_to_its_pong():
    talk = Dialogue()
    talk.ping("early")
    talk.served("A")
    talk.ping()
    talk.advance(0.25)
    talk.say({"ev": "pong", "id": talk.sent[-1]["id"]})
    talk.ping("lost")
    talk.lose()
    assert talk.outcomes["ping"] == 0.25
    assert talk.outcomes["early"].code == talk.outcomes["lost"].code == 0


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


# -- tokens ----------------------------------------


def function(why):
    raise AssertionError("faces call it")


def unauthenticated(**settings) -> Dialogue:
    talk = Dialogue(**settings)
    talk.subscribe("A")
    talk.open()
    talk.welcome(auth="required")
    return talk


def refuse_token(talk: Dialogue, code: int = 402, **more: object) -> None:
    (request,) = [message for message in talk.sent if message["op"] == "auth"][-1:]
    talk.say({"ev": "error", "id": request["id"], "code": code, "msg": "refused"} | more)


def take_token(talk: Dialogue, **more: object) -> None:
    request = [message for message in talk.sent if message["op"] == "auth"][-1]
    talk.say({"ev": "authenticated", "id": request["id"]} | more)


def tokens(talk: Dialogue) -> list[str]:
    return [message["token"] for message in talk.sent if message["op"] == "auth"]


def test_a_token_is_shown_where_it_is_asked_for_before_all_else():
    talk = unauthenticated(token="words")
    assert talk.states == ["connecting", "authenticating"]
    assert [message["op"] for message in talk.sent] == ["auth"]
    take_token(talk, user="ann", expires=5000, delay=900)
    assert talk.states[-1] == "open"
    assert talk.take(Authenticated) == [Authenticated("ann", 5000, 900)]
    assert talk.ops("subscribe") == [["A"]]


def test_a_token_is_not_shown_where_nobody_asks():
    talk = Dialogue(token="words")
    talk.served("A")
    assert tokens(talk) == []


def test_requests_wait_while_authenticating_but_for_pings():
    talk = unauthenticated(token="words")
    talk.ping()
    talk.core.served(talk.now, talk._hears("served"))
    talk.turn()
    assert [message["op"] for message in talk.sent] == ["auth", "ping"]
    take_token(talk)
    assert [message["op"] for message in talk.sent[2:]] == ["list", "subscribe"]
    talk.say({"ev": "list", "id": talk.sent[2]["id"], "symbols": ["A"]})
    assert talk.outcomes["served"] == ["A"]


def test_without_a_token_it_is_closed_and_says_what_is_missing():
    talk = unauthenticated()
    assert talk.hangups == [True]
    state = talk.last_state()
    assert (state.name, state.code) == ("closed", 4001)
    assert "token=" in state.reason
    assert talk.outcomes["subscribe"].code == 4001


def test_a_text_that_is_refused_ends_it():
    talk = unauthenticated(token="words")
    refuse_token(talk)
    assert talk.last_state() == State("closed", None, 4001, "refused")


def test_a_token_that_nobody_could_look_at_is_shown_again():
    for token in ("words", function):
        talk = unauthenticated(token=token)
        if token is function:
            talk.give_token("words")
        refuse_token(talk, retry=1000)
        assert tokens(talk) == ["words"]
        talk.advance(1)
        assert tokens(talk) == ["words", "words"]
        take_token(talk)
        assert talk.states[-1] == "open"


def test_a_function_is_asked_for_each_token_and_told_what_for():
    talk = unauthenticated(token=function)
    assert [asked.why for asked in talk.asked] == ["connect"]
    talk.give_token("first")
    refuse_token(talk)
    talk.advance(0.5)
    assert [asked.why for asked in talk.asked] == ["connect", "refused"]
    talk.give_token("second")
    take_token(talk, expires=9)
    talk.random = 0.5
    talk.say({"ev": "expiring", "in": 60000})
    assert talk.take(Expiring) == [Expiring(60.0)]
    talk.say({"ev": "heartbeat", "t": 1, "feed": "up"})
    talk.advance(14.9)
    assert len(talk.asked) == 2
    talk.advance(0.2)
    assert talk.asked[-1].why == "expiring"
    talk.give_token("third")
    take_token(talk)
    assert tokens(talk) == ["first", "second", "third"]
    assert talk.core.state == "open"


def test_a_function_that_fails_is_called_again_with_backoff():
    talk = unauthenticated(token=function)
    talk.give_token(None)
    talk.advance(0.4)
    assert len(talk.asked) == 1
    talk.advance(0.1)
    talk.give_token(None)
    talk.advance(0.9)
    assert len(talk.asked) == 2
    talk.advance(0.1)
    assert len(talk.asked) == 3


def test_a_token_that_comes_while_there_is_no_link_is_shown_on_the_next():
    talk = unauthenticated(token=function)
    talk.lose()
    talk.give_token("late")
    talk.advance(0.5)
    talk.welcome(auth="required")
    assert tokens(talk) == ["late"]
    assert len(talk.asked) == 1


def test_being_shut_out_it_waits_for_a_new_token_before_it_connects():
    talk = unauthenticated(token=function)
    talk.give_token("first")
    take_token(talk)
    talk.say({"ev": "error", "code": 401, "msg": "the token has ended"})
    talk.lose(4001)
    assert talk.last_state() == State("waiting", 0.5, 4001, "the token has ended")
    talk.advance(100)
    assert talk.links == 1
    assert talk.asked[-1].why == "refused"
    talk.give_token("second")
    assert talk.links == 2
    talk.welcome(auth="required")
    assert tokens(talk) == ["second"]


def test_being_shut_out_three_times_in_a_row_is_final():
    talk = unauthenticated(token=function)
    for token in "abc":
        talk.give_token(token)
        if talk.core.state == "connecting":
            talk.welcome(auth="required")
        talk.lose(4001)
        talk.advance(10)
    assert talk.last_state().name == "closed"


def test_refused_tokens_that_run_into_the_servers_time_out_are_refusals_too():
    talk = unauthenticated(token=function)
    for token in "abc":
        talk.give_token(token)
        if talk.core.state == "connecting":
            talk.welcome(auth="required")
        refuse_token(talk)
        talk.say({"ev": "error", "code": 404, "msg": "the time to authenticate is over"})
        talk.lose(4004, "authentication too late")
        assert talk.last_state().reason == "refused"
        talk.advance(60)
    assert (talk.core.state, talk.last_state().code) == ("closed", 4004)
    assert [asked.why for asked in talk.asked] == ["connect", "refused", "refused"]


def test_a_token_function_that_is_too_slow_is_never_given_up():
    talk = unauthenticated(token=function)
    for _ in range(5):
        talk.say({"ev": "error", "code": 404, "msg": "the time to authenticate is over"})
        talk.lose(4004)
        assert talk.last_state().reason == "the time to authenticate is over"
        talk.open()
        talk.welcome(auth="required")
    talk.give_token("at last")
    take_token(talk)
    assert talk.states[-1] == "open"


def test_a_token_of_another_user_gets_a_connection_of_its_own():
    talk = unauthenticated(token=function)
    talk.give_token("anns")
    take_token(talk)
    talk.say({"ev": "expiring", "in": 0})
    talk.give_token("bobs")
    refuse_token(talk, 403)
    assert talk.links == 2
    talk.welcome(auth="required")
    assert tokens(talk) == ["bobs"]


def test_an_answer_to_a_question_that_is_no_longer_asked_is_dropped():
    talk = unauthenticated(token=function)
    number = talk.asked[-1].number
    talk.close()
    talk.open()
    talk.welcome(auth="required")
    talk.core.token_came(talk.now, number, "old")
    talk.turn()
    assert tokens(talk) == []
    talk.give_token("new")
    assert tokens(talk) == ["new"]


def test_no_token_is_in_what_commands_and_options_say_of_themselves():
    talk = Dialogue(token="s3cret")
    talk.open()
    talk.core.received(talk.now, b'[{"ev":"welcome","epoch":"e","auth":"required"}]')
    assert "s3cret" not in repr(talk.core.take_commands())
    assert "s3cret" not in repr(talk.core._options)


def test_symbols_refused_to_one_token_are_asked_for_with_the_next():
    talk = unauthenticated(token=function)
    talk.give_token("first")
    take_token(talk)
    talk.grant(A=(409, "your token does not cover this symbol"))
    assert talk.outcomes["subscribe"].code == 409
    assert talk.take(Refused) == [Refused("A", 409, "your token does not cover this symbol")]
    talk.say({"ev": "authenticated"})
    assert talk.ops("subscribe") == [["A"], ["A"]]


def test_what_a_new_token_does_not_cover_is_told_and_quotes_of_it_end():
    talk = Dialogue()
    talk.served("A", "B")
    talk.say(quote("A", 1))
    talk.take()
    talk.say({"ev": "unsubscribed", "symbols": ["A"], "errors": {"A": {"code": 409, "msg": "no"}}})
    assert talk.take() == [Refused("A", 409, "no")]
    talk.say({"ev": "authenticated"})
    assert talk.ops("subscribe") == [["A", "B"], ["A"]]
    talk.grant()
    talk.say(quote("A", 9))
    gap, quoted = talk.take(Gap, Quote)
    assert gap == Gap("A", "link")
    assert quoted.merged == 0, "a new count began"


def test_the_rest_of_a_message_that_ended_the_link_is_not_heard():
    talk = Dialogue()
    talk.subscribe("A")
    talk.open()
    talk.say({"ev": "welcome", "epoch": "e", "auth": "required"}, {"ev": "gap", "s": "A"})
    assert talk.core.state == "closed"
    assert talk.take(Gap) == []


def test_a_link_that_held_forgets_how_often_it_was_shut_out():
    talk = unauthenticated(token=function, stable_after=10)
    for token in "abcde":
        talk.give_token(token)
        if talk.core.state == "connecting":
            talk.welcome(auth="required")
        take_token(talk)
        talk.advance(10)
        talk.lose(4001)
        talk.advance(40)
    assert talk.core.state == "waiting"
