"""When a conversation takes its link for dead."""

from __future__ import annotations

from client_doubles import Dialogue

from pushservice.client.events import (
    Stale,
    State,
)
from pushservice.protocol.close_codes import RECONNECT_AFTER, CloseCode

FINAL = sorted(set(CloseCode) - RECONNECT_AFTER - {4001, 4004})


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
