"""Tickets in a real Redis: what they give, used once, and what happens where Redis does not."""

from __future__ import annotations

import json
import os
import signal

import pytest
import pytest_twisted
from core_doubles import FixedClock
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_client import RedisClient
from twisted.internet import defer, reactor
from twisted.logger import capturedLogs, formatEvent
from waiting import until

from pushservice.auth import tickets as module
from pushservice.auth.identity import Identity, Refused, Rights
from pushservice.auth.tickets import TicketAuthenticator, ticket_key
from pushservice.redis.url import redis_address

NOW = 1_763_800_000.25
TICKET = "t-0123456789abcdef"
PREFIX = "test_tickets:"


class Desk:
    """An authenticator on a Redis, at a time that stands still, and a client to write tickets."""

    def __init__(self, url: str, prefix: str = PREFIX) -> None:
        self.clock = FixedClock(NOW)
        self.prefix = prefix
        address = redis_address(url)
        assert address is not None
        self.authenticator = TicketAuthenticator(reactor, address, clock=self.clock, prefix=prefix)
        self.authenticator.start()

    async def connected(self) -> Desk:
        await until(lambda: self.authenticator.up, "the link")
        return self

    def present(self, ticket: str = TICKET) -> list[Identity | Refused]:
        found: list[Identity | Refused] = []
        self.authenticator.verify(ticket, found.append)
        return found

    async def answer(self, ticket: str = TICKET) -> Identity | Refused:
        found = self.present(ticket)
        await until(lambda: found, "an answer")
        assert len(found) == 1
        return found[0]


@pytest.fixture
def desk_at():
    """desk_at(url): started, and stopped at the end."""
    made = []

    def start(url: str) -> Desk:
        made.append(Desk(url))
        return made[-1]

    yield start
    for desk in made:
        pytest_twisted.blockon(defer.ensureDeferred(desk.authenticator.stop()))


@pytest.fixture
def redis(redis_server):
    with RedisClient(redis_server.path, PREFIX) as client:
        yield client
        client.ask("DEL", PREFIX, *map(PREFIX.__add__, client.keys()))


def put(redis: RedisClient, ticket: str = TICKET, **fields: object) -> str:
    key = ticket_key(ticket, PREFIX)
    redis.ask("SET", key, json.dumps(fields))
    return key


@pytest_twisted.ensureDeferred
async def test_a_ticket_gives_what_stands_in_redis(redis_server, redis, desk_at):
    put(
        redis,
        user="ann",
        id="7",
        exp=NOW + 5,
        iat=NOW - 5,
        once=False,
        symbols=["*.SH"],
        max_symbols=3,
        min_interval=250,
        delay=1.5,
    )
    desk = await desk_at(redis_server.url).connected()
    rights = Rights(("*.SH",), 3, 250, 1.5)
    assert await desk.answer() == Identity("ann", "7", NOW + 5, NOW - 5, rights)


def test_the_key_of_a_ticket_does_not_tell_the_ticket():
    assert ticket_key("abc") == (
        "quotepush:ticket:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("once", [{}, {"once": True}])
@pytest_twisted.ensureDeferred
async def test_a_ticket_serves_once_unless_it_says_otherwise(redis_server, redis, desk_at, once):
    key = put(redis, user="ann", **once)
    desk = await desk_at(redis_server.url).connected()
    assert isinstance(await desk.answer(), Identity)
    assert redis.ask("EXISTS", key) == 0
    again = await desk.answer()
    assert isinstance(again, Refused)
    assert "is over, or was used" in str(again)
    assert not again.temporary


@pytest_twisted.ensureDeferred
async def test_of_many_who_come_with_one_ticket_at_once_exactly_one_gets_in(
    redis_server, redis, desk_at
):
    put(redis, user="ann")
    desks = [await desk_at(redis_server.url).connected() for _ in range(4)]
    found = [desk.present() for _ in range(10) for desk in desks]
    await until(lambda: all(found), "the answers")
    assert sum(isinstance(answer, Identity) for [answer] in found) == 1


@pytest_twisted.ensureDeferred
async def test_a_lasting_ticket_serves_until_it_is_over(redis_server, redis, desk_at):
    put(redis, once=False, exp=NOW + 10)
    desk = await desk_at(redis_server.url).connected()
    for _ in range(3):
        assert isinstance(await desk.answer(), Identity)
    desk.clock.advance(10)
    assert "expired 0 s ago" in str(await desk.answer())


@pytest_twisted.ensureDeferred
async def test_a_ticket_that_redis_expired_is_not_known(redis_server, redis, desk_at):
    key = put(redis, once=False)
    desk = await desk_at(redis_server.url).connected()
    redis.ask("PEXPIRE", key, 1)
    await until(lambda: redis.ask("EXISTS", key) == 0, "the end")
    assert "is not known" in str(await desk.answer())


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "can't be read"),
        (b"\xff\x00", "can't be read"),
        (b"ann", "can't be read"),
        (b"[]", "can't be read"),
        (b"5", "can't be read"),
        (b"null", "can't be read"),
        (b"[" * 9000, "can't be read"),
        # Redis's reader of JSON gives up at such a depth, and so would not take it out.
        (b'{"once":true,"quotepush":' + b"[" * 1200 + b"]" * 1200 + b"}", ""),
        (b'{"symbols":[],"id":"' + b"a" * 20_000 + b'"}', "can't be read"),
        (b'{"once":1}', "once is neither"),
        (b'{"once":null}', "once is neither"),
        (b'{"symbol":["A"]}', "holds what is none of user, id, exp"),
        (b'{"symbols":"A"}', "the claim symbols"),
        (b'{"user":5}', "the claim user"),
        (b'{"id":""}', "the claim id"),
        (b'{"exp":true}', "the claim exp"),
        (b'{"exp":1}', "expired"),
        (b'{"max_symbols":1e3}', "the claim max_symbols"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_value_that_is_no_ticket_is_refused(redis_server, redis, desk_at, value, why):
    redis.ask("SET", ticket_key(TICKET, PREFIX), value)
    desk = await desk_at(redis_server.url).connected()
    with capturedLogs() as events:
        found = await desk.answer()
    assert isinstance(found, Refused)
    assert why in str(found)
    assert not found.temporary
    assert not any(value.decode(errors="replace") in formatEvent(e) for e in events if value)


def test_a_ticket_for_one_use_that_redis_did_not_take_out_is_refused():
    assert module._identity({"once": True}, taken=True) == Identity()
    assert module._identity({"once": False}, taken=False) == Identity()
    for claims in ({}, {"once": True}):
        with pytest.raises(Refused, match="can't be read"):
            module._identity(claims, taken=False)


@pytest.mark.parametrize("ticket", ["", "a" * 15, "a" * 513, "é" * 20, "a" * 20 + " ", "a\n" * 20])
@pytest_twisted.ensureDeferred
async def test_what_can_not_be_a_ticket_is_refused_without_asking(redis_server, desk_at, ticket):
    desk = desk_at(redis_server.url)
    [found] = desk.present(ticket)
    assert isinstance(found, Refused)
    assert "16 to 512 characters" in str(found)
    assert not found.temporary
    await desk.connected()


@pytest_twisted.ensureDeferred
async def test_any_text_is_refused_and_raises_nothing(redis_server, desk_at):
    desk = await desk_at(redis_server.url).connected()
    answers: list[list[Identity | Refused]] = []

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.text(max_size=50) | st.text(st.characters(codec="ascii"), min_size=10, max_size=600))
    def present(text: str) -> None:
        answers.append(desk.present(text))

    present()
    await until(lambda: all(answers), "the answers")
    assert len(answers) >= 100
    assert all(isinstance(answer, Refused) for [answer] in answers)


# -- a Redis that fails ----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_without_a_connection_the_refusal_is_temporary(own_redis, desk_at):
    server = own_redis()
    desk = await desk_at(server.url).connected()
    server.stop()
    await until(lambda: not desk.authenticator.up, "the loss")
    [found] = desk.present()
    assert isinstance(found, Refused)
    assert found.temporary
    assert "try again" in str(found)
    server = own_redis(port=server.port)
    await desk.connected()
    server.cli("SET", ticket_key(TICKET, PREFIX), b'{"user":"ann"}')
    assert await desk.answer() == Identity("ann")


@pytest_twisted.ensureDeferred
async def test_a_redis_that_hangs_is_given_up_and_the_answer_goes_to_nobody_else(
    own_redis, desk_at, monkeypatch
):
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    server = own_redis()
    server.cli("SET", ticket_key(TICKET, PREFIX), b'{"user":"ann","once":false}')
    desk = await desk_at(server.url).connected()
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        with capturedLogs() as events:
            for found in [await desk.answer(), *desk.present()]:
                assert isinstance(found, Refused)
                assert found.temporary
        assert any("a ticket was not looked up" in formatEvent(event) for event in events)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await desk.connected()
    assert "not known" in str(await desk.answer("another-0123456789"))
    assert await desk.answer() == Identity("ann")


@pytest_twisted.ensureDeferred
async def test_an_error_in_redis_is_temporary_and_said_once_a_minute(own_redis, desk_at):
    server = own_redis()
    desk = await desk_at(server.url).connected()
    server.cli("ACL", "SETUSER", "default", "-eval")
    with capturedLogs() as events:
        for _ in range(3):
            found = await desk.answer()
            assert isinstance(found, Refused)
            assert found.temporary
    assert [("NOPERM" in formatEvent(event)) for event in events] == [True]
    assert not any(TICKET in formatEvent(event) for event in events)


@pytest_twisted.ensureDeferred
async def test_the_permissions_that_the_documents_name_are_enough(own_redis, desk_at):
    server = own_redis()
    commands = ("-@all", "+ping", "+eval", "+get", "+del")
    server.cli("ACL", "SETUSER", "t", "on", ">pw", "resetkeys", f"~{PREFIX}ticket:*", *commands)
    server.cli("SET", ticket_key(TICKET, PREFIX), b'{"user":"ann"}')
    desk = await desk_at(f"redis://t:pw@127.0.0.1:{server.port}").connected()
    assert await desk.answer() == Identity("ann")
    assert "not known" in str(await desk.answer())


@pytest_twisted.ensureDeferred
async def test_what_the_taker_of_a_verdict_raises_is_logged_and_ends_nothing(
    redis_server, redis, desk_at, logged_failures
):
    put(redis, user="ann", once=False)
    desk = await desk_at(redis_server.url).connected()

    def fail(_: object) -> None:
        raise ArithmeticError

    desk.authenticator.verify(TICKET, fail)
    assert isinstance(await desk.answer(), Identity)
    assert len(logged_failures.flush(ArithmeticError)) == 1
