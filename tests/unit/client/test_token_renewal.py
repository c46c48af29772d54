"""When a conversation asks for a token, shows it, and gives it up."""

from __future__ import annotations

from client_doubles import Dialogue, quote

from pushservice.client.events import (
    Authenticated,
    Expiring,
    Gap,
    Quote,
    Refused,
    State,
)
from pushservice.protocol.close_codes import RECONNECT_AFTER, CloseCode

FINAL = sorted(set(CloseCode) - RECONNECT_AFTER - {4001, 4004})


def function(why):
    raise AssertionError("adapters call it")


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
