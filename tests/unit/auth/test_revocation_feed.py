"""Revocations out of a real Redis: messages, and the hash where messages were lost."""

from __future__ import annotations

import os
import re
import signal

import pytest
import pytest_twisted
from core_doubles import FixedClock
from redis_client import RedisClient
from twisted.internet import defer, reactor
from twisted.logger import capturedLogs, formatEvent
from waiting import until

from pushservice.auth import revocation_feed as module
from pushservice.auth.identity import Identity
from pushservice.auth.revocation_feed import RevocationFeed
from pushservice.auth.revocations import Revocations
from pushservice.redis.url import RedisAddress, redis_address

PREFIX = "test_revoking:"
CHANNEL = f"{PREFIX}revoke"
HASH = f"{PREFIX}revoked"


class Watch:
    """A feed of revocations from a Redis, and what it told."""

    def __init__(self, url: str) -> None:
        self.revocations = Revocations(reactor)
        self.told: list[tuple[str, str]] = []
        self.known_when_told: list[bool] = []
        #: whether it was said to be of this moment
        self.just_now: list[bool] = []
        address = redis_address(url)
        assert address is not None
        self.feed = RevocationFeed(reactor, address, self.revocations, self.take, prefix=PREFIX)
        self.feed.start()

    def take(self, kind: str, name: str, just_now: bool) -> None:
        self.told.append((kind, name))
        self.just_now.append(just_now)
        self.known_when_told.append(self.refuses(kind, name))

    def refuses(self, kind: str, name: str) -> bool:
        who = Identity(name) if kind == "user" else Identity(None, name)
        return self.revocations.revoked(who)

    async def current(self) -> Watch:
        await until(lambda: self.feed.current, "the feed")
        return self


@pytest.fixture
def watch_at():
    """watch_at(url): started, and stopped at the end."""
    made = []

    def start(url: str) -> Watch:
        made.append(Watch(url))
        return made[-1]

    yield start
    for watch in made:
        pytest_twisted.blockon(defer.ensureDeferred(watch.feed.stop()))


@pytest.fixture
def redis(redis_server):
    with RedisClient(redis_server.path, PREFIX) as client:
        yield client
        client.ask("DEL", HASH)


def now() -> str:
    return f"{reactor.seconds():.3f}"


@pytest_twisted.ensureDeferred
async def test_a_message_revokes_and_is_told_once_it_is_remembered(redis_server, redis, watch_at):
    watch = await watch_at(redis_server.url).current()
    assert redis.ask("PUBLISH", CHANNEL, '{"user":"ann"}') == 1
    redis.ask("PUBLISH", CHANNEL, '{"token":"7","reason":"lost"}')
    await until(lambda: len(watch.told) == 2, "the news")
    assert watch.told == [("user", "ann"), ("token", "7")]
    assert watch.known_when_told == watch.just_now == [True, True]
    assert not watch.refuses("user", "bob")


@pytest_twisted.ensureDeferred
async def test_a_message_is_told_even_where_the_clock_says_that_it_is_no_news(
    redis_server, redis, watch_at, monkeypatch
):
    watch = await watch_at(redis_server.url).current()
    clock = FixedClock(1_763_800_000.0)
    monkeypatch.setattr(watch.revocations, "_clock", clock)
    redis.ask("PUBLISH", CHANNEL, '{"user":"ann"}')
    await until(lambda: watch.told, "the first")
    clock.rightNow -= 3600
    redis.ask("PUBLISH", CHANNEL, '{"user":"ann"}')
    await until(lambda: len(watch.told) == 2, "the second")
    assert watch.just_now == [True, True]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"ann",
        b"\xff",
        b"5",
        b"[]",
        b"{}",
        b"[" * 5000,
        b'{"user":""}',
        b'{"user":5}',
        b'{"user":null}',
        b'{"user":"a\\nb"}',
        b'{"user":"' + b"a" * 129 + b'"}',
        b'{"user":"secret-ann","token":"7"}',
        b'{"users":["secret-ann"]}',
        b'{"user":"ann","reason":"' + b"a" * 70_000 + b'"}',
    ],
)
@pytest_twisted.ensureDeferred
async def test_any_other_message_is_ignored_and_said_once_without_it(
    redis_server, redis, watch_at, payload
):
    watch = await watch_at(redis_server.url).current()
    with capturedLogs() as events:
        for _ in range(3):
            redis.ask("PUBLISH", CHANNEL, payload)
        redis.ask("PUBLISH", CHANNEL, '{"user":"last"}')
        await until(lambda: watch.told, "the news")
    assert watch.told == [("user", "last")]
    lines = [formatEvent(event) for event in events]
    assert len(lines) == 2
    assert 'revokes nothing: it is neither {"user":"..."} nor' in lines[0]
    assert not any("secret" in line or "aaa" in line for line in lines)


@pytest_twisted.ensureDeferred
async def test_what_the_hash_holds_was_revoked_when_it_says(redis_server, redis, watch_at):
    at = int(reactor.seconds()) - 100
    redis.ask("HSET", HASH, "user:ann", at, "token:7", f"{at}.5", "user:a:b", at)
    watch = await watch_at(redis_server.url).current()
    assert sorted(watch.told) == [("token", "7"), ("user", "a:b"), ("user", "ann")]
    assert not any(watch.just_now)
    assert watch.revocations.revoked(Identity("ann", issued_at=at))
    assert not watch.revocations.revoked(Identity("ann", issued_at=at + 1))
    assert watch.refuses("token", "7")


@pytest_twisted.ensureDeferred
async def test_a_moment_that_can_not_be_read_counts_as_now_and_other_fields_are_ignored(
    redis_server, redis, watch_at
):
    wrong = ["yesterday", "nan", "-5", "", "1e999"]
    words = [word for at, text in enumerate(wrong) for word in (f"user:u{at}", text)]
    redis.ask("HSET", HASH, *words, "ann", now(), "user:", now(), "users:x", now(), b"\xff", "1")
    with capturedLogs() as events:
        watch = await watch_at(redis_server.url).current()
    assert sorted(watch.told) == [("user", f"u{at}") for at in range(len(wrong))]
    assert all(watch.refuses(*each) for each in watch.told)
    assert not watch.revocations.revoked(Identity("u0", issued_at=reactor.seconds() + 5))
    assert ["4 entries of" in formatEvent(e) for e in events if "entries" in formatEvent(e)] == [
        True
    ]


@pytest_twisted.ensureDeferred
async def test_thousands_of_entries_are_read(redis_server, redis, watch_at):
    for start in range(0, 5000, 1000):
        words = [word for at in range(start, start + 1000) for word in (f"token:{at}", now())]
        redis.ask("HSET", HASH, *words)
    watch = await watch_at(redis_server.url).current()
    assert len(watch.revocations) == len(watch.told) == 5000


@pytest_twisted.ensureDeferred
async def test_what_is_revoked_while_there_is_no_connection_is_found_in_the_hash(
    own_redis, watch_at
):
    server = own_redis()
    watch = await watch_at(server.url).current()
    server.stop()
    await until(lambda: not watch.feed.current, "the loss")
    server = own_redis(port=server.port)
    server.cli("HSET", HASH, "user:ann", now())
    # It may have come back before that was written.
    server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: watch.told, "the news")
    assert watch.told == [("user", "ann")]
    await watch.current()
    server.cli("PUBLISH", CHANNEL, '{"token":"7"}')
    await until(lambda: len(watch.told) == 2, "the message")


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
@pytest_twisted.ensureDeferred
async def test_after_the_loss_of_either_connection_the_hash_is_read_again(
    own_redis, watch_at, kind
):
    server = own_redis()
    watch = await watch_at(server.url).current()
    server.cli("HSET", HASH, "token:7", now())
    assert b"1" in server.cli("CLIENT", "KILL", "TYPE", kind)
    await until(lambda: watch.told, "the news")
    await watch.current()
    assert watch.told == [("token", "7")]
    assert watch.feed._listener.up is not None


class SlowConnection:
    """A Redis that takes a command and answers when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[defer.Deferred[object]] = []

    def execute_command(self, *_: object) -> defer.Deferred[object]:
        self.waiting.append(defer.Deferred())
        return self.waiting[-1]


def test_what_was_read_while_a_connection_came_or_went_is_read_again():
    clock = FixedClock()
    feed = RevocationFeed(
        clock, RedisAddress(path="/nowhere"), Revocations(clock), lambda *_: None, prefix=PREFIX
    )
    feed._listener.up, feed._reader.up = SlowConnection(), SlowConnection()
    feed._changed(True)
    [first] = feed._reader.up.waiting
    # The listener was lost and is back: what was revoked between is neither read nor heard.
    feed._changed(False)
    feed._changed(True)
    assert len(feed._reader.up.waiting) == 1
    first.callback([b"0", []])
    assert not feed.current
    clock.advance(0)
    feed._reader.up.waiting[1].callback([b"0", []])
    assert feed.current


@pytest_twisted.ensureDeferred
async def test_what_is_known_already_is_not_told_again(own_redis, watch_at):
    server = own_redis()
    server.cli("HSET", HASH, "token:7", now(), "user:ann", "99999999999999")
    watch = await watch_at(server.url).current()
    server.cli("HSET", HASH, "token:8", now())
    server.cli("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: len(watch.told) == 3, "the news")
    assert sorted(watch.told) == [("token", "7"), ("token", "8"), ("user", "ann")]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_hangs_is_noticed_and_messages_come_again(
    own_redis, watch_at, monkeypatch
):
    monkeypatch.setattr(module, "PING_EVERY", 0.02)
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    server = own_redis()
    watch = await watch_at(server.url).current()
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        await until(lambda: not watch.feed.current, "the loss")
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await watch.current()
    server.cli("PUBLISH", CHANNEL, '{"token":"7"}')
    await until(lambda: watch.told, "the message")


@pytest_twisted.ensureDeferred
async def test_a_link_that_is_pinged_stays_up(own_redis, watch_at, monkeypatch):
    monkeypatch.setattr(module, "PING_EVERY", 0.005)
    server = own_redis()
    watch = await watch_at(server.url).current()
    before = watch.feed._changes

    def pings() -> int:
        return int(re.findall(rb"cmdstat_ping:calls=(\d+)", server.cli("INFO", "commandstats"))[0])

    await until(lambda: pings() >= 20, "pings")
    assert watch.feed._changes == before
    assert watch.feed.current


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_kind_is_said_and_tried_again(own_redis, watch_at, monkeypatch):
    monkeypatch.setattr(module, "RETRY_AFTER", 0.02)
    server = own_redis()
    server.cli("SET", HASH, "no hash")
    with capturedLogs() as events:
        watch = watch_at(server.url)
        await until(lambda: any("WRONGTYPE" in formatEvent(e) for e in events), "the error")
    assert not watch.feed.current
    server.cli("DEL", HASH)
    server.cli("HSET", HASH, "token:7", now())
    await watch.current()
    assert watch.told == [("token", "7")]


@pytest_twisted.ensureDeferred
async def test_the_permissions_that_the_documents_name_are_enough(own_redis, watch_at):
    server = own_redis()
    rules = ["resetkeys", f"~{HASH}", "resetchannels", f"&{CHANNEL}"]
    commands = ["-@all", "+ping", "+subscribe", "+hscan"]
    server.cli("ACL", "SETUSER", "r", "on", ">pw", *rules, *commands)
    server.cli("HSET", HASH, "token:7", now())
    watch = await watch_at(f"redis://r:pw@127.0.0.1:{server.port}").current()
    server.cli("PUBLISH", CHANNEL, '{"token":"8"}')
    await until(lambda: len(watch.told) == 2, "the news")


@pytest_twisted.ensureDeferred
async def test_what_the_one_who_is_told_raises_ends_nothing(
    redis_server, redis, watch_at, logged_failures, monkeypatch
):
    watch = await watch_at(redis_server.url).current()

    def fail(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr(watch.feed, "_tell", fail)
    redis.ask("PUBLISH", CHANNEL, '{"user":"ann"}')
    redis.ask("PUBLISH", CHANNEL, '{"user":"bob"}')
    await until(lambda: watch.refuses("user", "bob"), "the second")
    assert watch.refuses("user", "ann")
    assert watch.feed.current
    assert len(logged_failures.flush(ArithmeticError)) == 2
