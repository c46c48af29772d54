"""How long a conversation waits before it connects again."""

from __future__ import annotations

from client_doubles import Dialogue

from pushservice.client.events import (
    Bye,
    State,
)
from pushservice.protocol.close_codes import RECONNECT_AFTER, CloseCode

FINAL = sorted(set(CloseCode) - RECONNECT_AFTER - {4001, 4004})


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
