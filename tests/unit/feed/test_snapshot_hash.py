"""The snapshot hash: who gets which payload when, in batches, requested again after faults."""

from __future__ import annotations

import pytest
import pytest_twisted
from core_doubles import Client, FixedClock, make_hub, publish
from twisted.internet import defer, reactor
from twisted.logger import capturedLogs, formatEvent
from waiting import until

from pushservice.fanout.hub import Hub
from pushservice.feed import snapshot_hash
from pushservice.feed.snapshot_hash import SnapshotHash
from pushservice.metrics import Counters
from pushservice.redis.url import RedisAddress, redis_address
from pushservice.service.sources import Interests

NAME = "test_snapshots"


class Transport:
    """Records whether its connection was aborted."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Connection:
    """A Redis that answers when the test tells it to."""

    #: as on each connection of a link: why it was lost
    loss = None

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.waiting: list[defer.Deferred[list[bytes | None]]] = []
        self.transport = Transport()

    def execute_command(self, command: str, name: str, *fields: str) -> defer.Deferred:
        assert (command, name) == ("HMGET", NAME)
        self.asked.append(list(fields))
        self.waiting.append(defer.Deferred())
        return self.waiting[-1]

    def answer(self, **values: bytes) -> None:
        """Answer the oldest question from `values`."""
        self.waiting.pop(0).callback([values.get(symbol) for symbol in self.asked[-1]])

    def refuse(self, words: str) -> None:
        self.waiting.pop(0).errback(ArithmeticError(words))


class HashTest:
    """A hub with clients, and a snapshot hash whose connections are the test's."""

    def __init__(self, redises: int = 1) -> None:
        self.time = FixedClock()
        self.counters = Counters()
        interests = Interests()
        self.hub = make_hub(self.time, interest=interests)
        self.hub.values.can_be_learnt = True
        addresses = [RedisAddress(path=f"/nowhere/{at}") for at in range(redises)]
        self.snapshots = SnapshotHash(self.time, addresses, NAME, self.hub, self.counters)
        interests.listeners.append(self.snapshots)
        self.redis = [Connection() for _ in range(redises)]
        self.turn(True)

    def turn(self, up: bool, at: int = 0) -> None:
        """Redis `at`, or at the very first all of them, comes or goes."""
        links = self.snapshots._links
        for number, (link, connection) in enumerate(zip(links, self.redis, strict=True)):
            if number == at or (up and link.up is None and at == 0):
                link.up = connection if up else None
        self.snapshots._changed(up)
        self.soon()

    def soon(self) -> None:
        """The end of the reactor's turn."""
        self.time.pass_time(0.0)

    def client(self, *symbols: str, **more: object) -> Client:
        """One that has subscribed and been acknowledged."""
        client = Client(self.hub)
        client.say({"op": "subscribe", "symbols": symbols} | more)
        assert [event["ev"] for event in client.events()][:2] == ["welcome", "subscribed"]
        return client

    @property
    def asked(self) -> list[list[str]]:
        return self.redis[0].asked


def got(client: Client) -> list[tuple[str, str, int, object]]:
    return [(event["ev"], event["s"], event["n"], event["d"]) for event in client.events()]


def test_a_first_subscriber_gets_the_value_that_publishers_keep_with_the_number_0():
    hash_test = HashTest()
    client = hash_test.client("A")
    hash_test.soon()
    assert hash_test.asked == [["A"]]
    hash_test.redis[0].answer(A=b"1.5")
    assert got(client) == [("snapshot", "A", 0, 1.5)]
    publish(hash_test.hub, ("A", b"2.5"))
    assert got(client) == [("quote", "A", 1, 2.5)]
    assert hash_test.counters.snapshots_learnt == 1
    assert hash_test.time.getDelayedCalls() == []


def test_a_symbol_with_a_value_here_is_not_requested():
    hash_test = HashTest()
    first = hash_test.client("A")
    hash_test.soon()
    publish(hash_test.hub, ("A", b"1"))
    hash_test.redis[0].answer()
    assert got(first) == [("quote", "A", 1, 1)]
    client = Client(hash_test.hub)
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert client.events()[2]["d"] == 1
    hash_test.soon()
    assert len(hash_test.asked) == 1


def test_a_value_that_comes_after_an_update_is_older_and_dropped():
    hash_test = HashTest()
    client = hash_test.client("A")
    hash_test.soon()
    publish(hash_test.hub, ("A", b"2"))
    hash_test.redis[0].answer(A=b"1")
    assert got(client) == [("quote", "A", 1, 2)]


def test_a_client_that_wants_no_snapshot_gets_none():
    hash_test = HashTest()
    silent = hash_test.client("A", snapshot=False)
    hash_test.soon()
    waiting = hash_test.client("A")
    hash_test.redis[0].answer(A=b"1")
    assert got(silent) == []
    assert got(waiting) == [("snapshot", "A", 0, 1)]


def test_after_an_outage_everybody_gets_the_value_and_numbers_stay_as_they_are():
    hash_test = HashTest()
    clients = [hash_test.client("A"), hash_test.client("A", snapshot=False), hash_test.client("B")]
    hash_test.soon()
    hash_test.redis[0].answer()
    publish(hash_test.hub, ("A", b"1"), ("A", b"2"))
    for client in clients:
        client.events()
    hash_test.snapshots.refresh(hash_test.hub.watched_topics())
    hash_test.soon()
    hash_test.redis[0].answer(A=b"7", B=b"8")
    assert [got(client) for client in clients] == [
        [("snapshot", "A", 2, 7)],
        [("snapshot", "A", 2, 7)],
        [("snapshot", "B", 0, 8)],
    ]
    publish(hash_test.hub, ("A", b"9"))
    assert got(clients[0]) == [("quote", "A", 3, 9)]


def test_subscriptions_of_one_turn_are_requested_in_batches_of_500():
    hash_test = HashTest()
    symbols = [f"S{at}" for at in range(1001)]
    for at in range(0, len(symbols), 100):
        hash_test.client(*symbols[at : at + 100])
    hash_test.soon()
    for _ in range(3):
        assert len(hash_test.redis[0].waiting) == 1, "one batch at a time"
        hash_test.redis[0].answer()
    assert [len(batch) for batch in hash_test.asked] == [500, 500, 1]
    assert [symbol for batch in hash_test.asked for symbol in batch] == symbols


def test_symbols_wanted_during_a_request_follow_in_the_next():
    hash_test = HashTest()
    hash_test.client("A")
    hash_test.soon()
    hash_test.client("B")
    hash_test.soon()
    assert hash_test.asked == [["A"]]
    hash_test.redis[0].answer()
    hash_test.soon()
    assert hash_test.asked == [["A"], ["B"]]


@pytest.mark.parametrize("words", ["WRONGTYPE Operation against a key", "LOADING Redis is loading"])
def test_an_error_is_logged_once_a_minute_and_retried_after_a_second(words):
    hash_test = HashTest()
    client = hash_test.client("A")
    hash_test.soon()
    with capturedLogs() as events:
        for _ in range(30):
            hash_test.redis[0].refuse(words)
            asked = len(hash_test.asked)
            hash_test.time.pass_time(0.9)
            assert len(hash_test.asked) == asked
            hash_test.time.pass_time(0.1)
            assert len(hash_test.asked) == asked + 1
    [said] = [formatEvent(event) for event in events]
    assert f"the snapshot hash {NAME} can't be read: {words}; trying again" in said
    hash_test.redis[0].answer(A=b"1")
    assert got(client) == [("snapshot", "A", 0, 1)]
    hash_test.time.pass_time(10)
    assert len(hash_test.asked) == 31


def test_symbols_answered_before_an_error_are_not_requested_again():
    hash_test = HashTest()
    hash_test.client(*[f"S{at}" for at in range(501)])
    hash_test.soon()
    hash_test.redis[0].answer()
    hash_test.redis[0].refuse("LOADING")
    hash_test.time.pass_time(1.0)
    assert hash_test.asked[2] == ["S500"]


def test_after_an_error_all_watchers_are_still_told():
    hash_test = HashTest()
    old = hash_test.client("A", snapshot=False)
    hash_test.soon()
    hash_test.redis[0].answer()
    hash_test.snapshots.refresh(hash_test.hub.watched_topics())
    hash_test.soon()
    new = hash_test.client("A")
    hash_test.redis[0].refuse("LOADING")
    hash_test.time.pass_time(1.0)
    hash_test.redis[0].answer(A=b"1")
    assert got(old) == got(new) == [("snapshot", "A", 0, 1)]


def test_an_unwatched_symbol_is_not_requested():
    hash_test = HashTest()
    left = hash_test.client("A")
    stayed = hash_test.client("B", "C")
    stayed.say({"op": "unsubscribe", "symbols": ["C"]})
    left.session.close()
    hash_test.soon()
    assert hash_test.asked == [["B"]]
    stayed.say({"op": "unsubscribe", "symbols": ["B"]})
    hash_test.redis[0].refuse("LOADING")
    hash_test.time.pass_time(10.0)
    assert hash_test.asked == [["B"]]


def test_an_unwatched_symbol_is_not_requested_after_an_error():
    hash_test = HashTest()
    client = hash_test.client("A")
    hash_test.soon()
    hash_test.redis[0].answer(A=b"1")
    hash_test.snapshots.refresh(hash_test.hub.watched_topics())
    hash_test.soon()
    client.session.close()
    assert hash_test.hub.topic("A") is not None
    hash_test.redis[0].refuse("LOADING")
    hash_test.time.pass_time(10.0)
    assert hash_test.asked == [["A"], ["A"]]


def test_requests_wait_while_redis_is_down():
    hash_test = HashTest()
    hash_test.turn(False)
    client = hash_test.client("A")
    hash_test.time.pass_time(60.0)
    assert hash_test.asked == []
    hash_test.turn(True)
    assert hash_test.asked == [["A"]]
    hash_test.redis[0].answer(A=b"1")
    assert got(client) == [("snapshot", "A", 0, 1)]


def test_a_redis_that_does_not_answer_is_disconnected_and_the_request_repeated():
    hash_test = HashTest()
    hash_test.client("A")
    hash_test.soon()
    hash_test.time.pass_time(snapshot_hash._ANSWER_TIMEOUT - 0.1)
    assert not hash_test.redis[0].transport.aborted
    hash_test.time.pass_time(0.2)
    assert hash_test.redis[0].transport.aborted
    hash_test.time.pass_time(1.0)
    assert hash_test.asked == [["A"], ["A"]]


def test_any_of_several_redis_may_have_the_value():
    hash_test = HashTest(redises=2)
    client = hash_test.client("A", "B", "C")
    hash_test.soon()
    hash_test.redis[0].answer(A=b"1")
    assert got(client) == []
    hash_test.redis[1].answer(B=b"2")
    assert got(client) == [("snapshot", "A", 0, 1), ("snapshot", "B", 0, 2)]


def test_of_several_values_client_and_hub_have_the_same():
    hash_test = HashTest(redises=2)
    client = hash_test.client("A")
    hash_test.soon()
    hash_test.redis[0].answer(A=b"1")
    hash_test.redis[1].answer(A=b"2")
    assert got(client) == [("snapshot", "A", 0, 1)]
    topic = hash_test.hub.topic("A")
    assert topic is not None
    assert topic.payload == b"1"


def test_requests_wait_until_all_of_several_redis_are_up():
    hash_test = HashTest(redises=2)
    hash_test.turn(False, at=1)
    hash_test.client("A")
    hash_test.time.pass_time(10.0)
    assert hash_test.asked == []
    hash_test.turn(True, at=1)
    assert hash_test.asked == [["A"]]


def test_an_unwatched_value_from_before_an_outage_is_requested_when_watched():
    hash_test = HashTest()
    publish(hash_test.hub, ("A", b"1"))
    hash_test.time.pass_time(10.0)
    hash_test.snapshots.refresh(hash_test.hub.watched_topics())
    client = Client(hash_test.hub)
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert got_of(client, "snapshot") == [(1, 1)]
    hash_test.soon()
    hash_test.redis[0].answer(A=b"2")
    assert got_of(client, "snapshot") == [(1, 2)]
    # From here on it is as good as any other.
    client.session.close()
    hash_test.time.pass_time(10.0)
    Client(hash_test.hub).say({"op": "subscribe", "symbols": ["A"]})
    hash_test.soon()
    assert hash_test.asked == [["A"]]


def got_of(client: Client, kind: str) -> list[tuple[int, object]]:
    return [(event["n"], event["d"]) for event in client.events() if event["ev"] == kind]


@pytest_twisted.ensureDeferred
async def test_stop_during_a_request_leaves_no_timer_and_logs_nothing():
    hash_test = HashTest()
    hash_test.client("A")
    hash_test.soon()
    with capturedLogs() as events:
        await hash_test.snapshots.stop()
        hash_test.redis[0].refuse("lost")
        hash_test.client("B")
    assert events == []
    assert hash_test.time.getDelayedCalls() == []


# -- with a real Redis -----------------------------------------------------------------------------


class RealRedis:
    """A hub, and the hash of a real Redis."""

    def __init__(self, *urls: str) -> None:
        self.counters = Counters()
        interests = Interests()
        self.hub: Hub = make_hub(reactor, interest=interests)
        self.hub.values.can_be_learnt = True
        addresses = [address for url in urls if (address := redis_address(url)) is not None]
        self.snapshots = SnapshotHash(reactor, addresses, NAME, self.hub, self.counters)
        interests.listeners.append(self.snapshots)
        self.snapshots.start()

    def client(self, *symbols: str) -> Client:
        client = Client(self.hub)
        client.say({"op": "subscribe", "symbols": symbols})
        client.events()
        return client


@pytest.fixture
def real():
    """real(url, ...): started, and stopped at the end."""
    made = []

    def start(*urls: str) -> RealRedis:
        made.append(RealRedis(*urls))
        return made[-1]

    yield start
    for each in made:
        pytest_twisted.blockon(defer.ensureDeferred(each.snapshots.stop()))


@pytest_twisted.ensureDeferred
async def test_1200_values_are_read_as_they_were_written(own_redis, real):
    server = own_redis()
    symbols = [f"S{at}" for at in range(1200)]
    for at, symbol in enumerate(symbols[:-1]):
        server.cli("HSET", NAME, symbol, b'{"at":%d,"raw":"\\u00ff"}' % at)
    asked = real(server.socket_url)
    clients = [asked.client(*symbols[at : at + 400]) for at in range(0, 1200, 400)]
    await until(lambda: asked.counters.snapshots_learnt == 1199, "the values")
    events = [event for client in clients for event in client.events()]
    assert [(event["ev"], event["s"], event["d"]["at"]) for event in events] == [
        ("snapshot", f"S{at}", at) for at in range(1199)
    ]


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_type_is_retried_until_it_is_a_hash(own_redis, real, monkeypatch):
    monkeypatch.setattr(snapshot_hash, "_RETRY_AFTER", 0.05)
    server = own_redis()
    server.cli("SET", NAME, "no hash")
    with capturedLogs() as events:
        client = (asked := real(server.socket_url)).client("A")
        await until(lambda: any("WRONGTYPE" in formatEvent(e) for e in events), "the error")
    server.cli("DEL", NAME)
    server.cli("HSET", NAME, "A", "1.5")
    await until(lambda: asked.counters.snapshots_learnt, "the value")
    assert got(client) == [("snapshot", "A", 0, 1.5)]


@pytest_twisted.ensureDeferred
async def test_symbols_wanted_during_an_outage_are_requested_after_it(own_redis, real):
    server = own_redis()
    asked = real(server.url)
    await until(lambda: asked.snapshots._links[0].up is not None, "the link")
    server.stop()
    await until(lambda: asked.snapshots._links[0].up is None, "the loss")
    client = asked.client("A")
    server = own_redis(port=server.port)
    server.cli("HSET", NAME, "A", "1.5")
    # A connection that was made before the value was there may have asked already.
    asked.snapshots.refresh(asked.hub.watched_topics())
    await until(lambda: asked.counters.snapshots_learnt, "the value")
    assert ("snapshot", "A", 0, 1.5) in got(client)
