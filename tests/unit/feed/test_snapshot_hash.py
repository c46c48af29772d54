"""The snapshot hash: who gets which value when, in batches, asked again whatever goes wrong."""

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

NAME = "test_snapshots"


class Transport:
    """Says whether its connection was dropped."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Connection:
    """A Redis that answers when the test says so."""

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


class Asking:
    """A hub with clients, and a snapshot hash whose connections are the test's."""

    def __init__(self, redises: int = 1) -> None:
        self.time = FixedClock()
        self.counters = Counters()
        self.hub = make_hub(self.time)
        self.hub.values_can_be_learnt = True
        addresses = [RedisAddress(path=f"/nowhere/{at}") for at in range(redises)]
        self.snapshots = SnapshotHash(self.time, addresses, NAME, self.hub, self.counters)
        self.hub._interest = self.snapshots
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
    asking = Asking()
    client = asking.client("A")
    asking.soon()
    assert asking.asked == [["A"]]
    asking.redis[0].answer(A=b"1.5")
    assert got(client) == [("snapshot", "A", 0, 1.5)]
    publish(asking.hub, ("A", b"2.5"))
    assert got(client) == [("quote", "A", 1, 2.5)]
    assert asking.counters.snapshots_learnt == 1
    assert asking.time.getDelayedCalls() == []


def test_a_symbol_with_a_value_here_is_not_asked_for():
    asking = Asking()
    first = asking.client("A")
    asking.soon()
    publish(asking.hub, ("A", b"1"))
    asking.redis[0].answer()
    assert got(first) == [("quote", "A", 1, 1)]
    client = Client(asking.hub)
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert client.events()[2]["d"] == 1
    asking.soon()
    assert len(asking.asked) == 1


def test_a_value_that_comes_after_an_update_is_older_and_dropped():
    asking = Asking()
    client = asking.client("A")
    asking.soon()
    publish(asking.hub, ("A", b"2"))
    asking.redis[0].answer(A=b"1")
    assert got(client) == [("quote", "A", 1, 2)]


def test_who_did_not_ask_for_a_snapshot_gets_none():
    asking = Asking()
    silent = asking.client("A", snapshot=False)
    asking.soon()
    waiting = asking.client("A")
    asking.redis[0].answer(A=b"1")
    assert got(silent) == []
    assert got(waiting) == [("snapshot", "A", 0, 1)]


def test_after_an_outage_everybody_gets_the_value_and_numbers_stay_as_they_are():
    asking = Asking()
    clients = [asking.client("A"), asking.client("A", snapshot=False), asking.client("B")]
    asking.soon()
    asking.redis[0].answer()
    publish(asking.hub, ("A", b"1"), ("A", b"2"))
    for client in clients:
        client.events()
    asking.snapshots.refresh(asking.hub.watched_topics())
    asking.soon()
    asking.redis[0].answer(A=b"7", B=b"8")
    assert [got(client) for client in clients] == [
        [("snapshot", "A", 2, 7)],
        [("snapshot", "A", 2, 7)],
        [("snapshot", "B", 0, 8)],
    ]
    publish(asking.hub, ("A", b"9"))
    assert got(clients[0]) == [("quote", "A", 3, 9)]


def test_many_subscriptions_of_one_turn_are_asked_for_at_once_in_batches_of_500():
    asking = Asking()
    symbols = [f"S{at}" for at in range(1001)]
    for at in range(0, len(symbols), 100):
        asking.client(*symbols[at : at + 100])
    asking.soon()
    for _ in range(3):
        assert len(asking.redis[0].waiting) == 1, "one batch at a time"
        asking.redis[0].answer()
    assert [len(batch) for batch in asking.asked] == [500, 500, 1]
    assert [symbol for batch in asking.asked for symbol in batch] == symbols


def test_what_is_wanted_while_redis_is_asked_follows_at_once():
    asking = Asking()
    asking.client("A")
    asking.soon()
    asking.client("B")
    asking.soon()
    assert asking.asked == [["A"]]
    asking.redis[0].answer()
    asking.soon()
    assert asking.asked == [["A"], ["B"]]


@pytest.mark.parametrize("words", ["WRONGTYPE Operation against a key", "LOADING Redis is loading"])
def test_an_error_is_said_once_a_minute_and_asked_again_a_second_later(words):
    asking = Asking()
    client = asking.client("A")
    asking.soon()
    with capturedLogs() as events:
        for _ in range(30):
            asking.redis[0].refuse(words)
            asked = len(asking.asked)
            asking.time.pass_time(0.9)
            assert len(asking.asked) == asked
            asking.time.pass_time(0.1)
            assert len(asking.asked) == asked + 1
    [said] = [formatEvent(event) for event in events]
    assert f"the snapshot hash {NAME} can't be read: {words}; trying again" in said
    asking.redis[0].answer(A=b"1")
    assert got(client) == [("snapshot", "A", 0, 1)]
    asking.time.pass_time(10)
    assert len(asking.asked) == 31


def test_what_was_answered_before_an_error_is_not_asked_for_again():
    asking = Asking()
    asking.client(*[f"S{at}" for at in range(501)])
    asking.soon()
    asking.redis[0].answer()
    asking.redis[0].refuse("LOADING")
    asking.time.pass_time(1.0)
    assert asking.asked[2] == ["S500"]


def test_after_an_error_nobody_who_was_to_be_told_is_forgotten():
    asking = Asking()
    old = asking.client("A", snapshot=False)
    asking.soon()
    asking.redis[0].answer()
    asking.snapshots.refresh(asking.hub.watched_topics())
    asking.soon()
    new = asking.client("A")
    asking.redis[0].refuse("LOADING")
    asking.time.pass_time(1.0)
    asking.redis[0].answer(A=b"1")
    assert got(old) == got(new) == [("snapshot", "A", 0, 1)]


def test_what_nobody_watches_any_more_is_not_asked_for():
    asking = Asking()
    left = asking.client("A")
    stayed = asking.client("B", "C")
    stayed.say({"op": "unsubscribe", "symbols": ["C"]})
    left.session.close()
    asking.soon()
    assert asking.asked == [["B"]]
    stayed.say({"op": "unsubscribe", "symbols": ["B"]})
    asking.redis[0].refuse("LOADING")
    asking.time.pass_time(10.0)
    assert asking.asked == [["B"]]


def test_what_nobody_watches_any_more_is_not_asked_for_again_though_its_value_is_kept():
    asking = Asking()
    client = asking.client("A")
    asking.soon()
    asking.redis[0].answer(A=b"1")
    asking.snapshots.refresh(asking.hub.watched_topics())
    asking.soon()
    client.session.close()
    assert asking.hub.topic("A") is not None
    asking.redis[0].refuse("LOADING")
    asking.time.pass_time(10.0)
    assert asking.asked == [["A"], ["A"]]


def test_while_redis_is_away_nothing_is_asked_and_when_it_is_back_everything():
    asking = Asking()
    asking.turn(False)
    client = asking.client("A")
    asking.time.pass_time(60.0)
    assert asking.asked == []
    asking.turn(True)
    assert asking.asked == [["A"]]
    asking.redis[0].answer(A=b"1")
    assert got(client) == [("snapshot", "A", 0, 1)]


def test_a_redis_that_does_not_answer_is_dropped_and_what_it_was_asked_asked_again():
    asking = Asking()
    asking.client("A")
    asking.soon()
    asking.time.pass_time(snapshot_hash._PATIENCE - 0.1)
    assert not asking.redis[0].transport.aborted
    asking.time.pass_time(0.2)
    assert asking.redis[0].transport.aborted
    asking.time.pass_time(1.0)
    assert asking.asked == [["A"], ["A"]]


def test_with_several_redis_any_may_have_the_value():
    asking = Asking(redises=2)
    client = asking.client("A", "B", "C")
    asking.soon()
    asking.redis[0].answer(A=b"1")
    assert got(client) == []
    asking.redis[1].answer(B=b"2")
    assert got(client) == [("snapshot", "A", 0, 1), ("snapshot", "B", 0, 2)]


def test_where_several_have_a_value_the_client_and_the_hub_have_the_same_one():
    asking = Asking(redises=2)
    client = asking.client("A")
    asking.soon()
    asking.redis[0].answer(A=b"1")
    asking.redis[1].answer(A=b"2")
    assert got(client) == [("snapshot", "A", 0, 1)]
    topic = asking.hub.topic("A")
    assert topic is not None
    assert topic.payload == b"1"


def test_with_several_redis_all_must_be_there():
    asking = Asking(redises=2)
    asking.turn(False, at=1)
    asking.client("A")
    asking.time.pass_time(10.0)
    assert asking.asked == []
    asking.turn(True, at=1)
    assert asking.asked == [["A"]]


def test_a_last_value_from_before_an_outage_that_nobody_watched_is_asked_for_too():
    asking = Asking()
    publish(asking.hub, ("A", b"1"))
    asking.time.pass_time(10.0)
    asking.snapshots.refresh(asking.hub.watched_topics())
    client = Client(asking.hub)
    client.say({"op": "subscribe", "symbols": ["A"]})
    assert got_of(client, "snapshot") == [(1, 1)]
    asking.soon()
    asking.redis[0].answer(A=b"2")
    assert got_of(client, "snapshot") == [(1, 2)]
    # From here on it is as good as any other.
    client.session.close()
    asking.time.pass_time(10.0)
    Client(asking.hub).say({"op": "subscribe", "symbols": ["A"]})
    asking.soon()
    assert asking.asked == [["A"]]


def got_of(client: Client, kind: str) -> list[tuple[int, object]]:
    return [(event["n"], event["d"]) for event in client.events() if event["ev"] == kind]


@pytest_twisted.ensureDeferred
async def test_when_stopped_with_a_question_under_way_nothing_is_planned_or_said():
    asking = Asking()
    asking.client("A")
    asking.soon()
    with capturedLogs() as events:
        await asking.snapshots.stop()
        asking.redis[0].refuse("lost")
        asking.client("B")
    assert events == []
    assert asking.time.getDelayedCalls() == []


# -- with a real Redis -----------------------------------------------------------------------------


class Real:
    """A hub, and the hash of a real Redis."""

    def __init__(self, *urls: str) -> None:
        self.counters = Counters()
        self.hub: Hub = make_hub(reactor)
        self.hub.values_can_be_learnt = True
        addresses = [address for url in urls if (address := redis_address(url)) is not None]
        self.snapshots = SnapshotHash(reactor, addresses, NAME, self.hub, self.counters)
        self.hub._interest = self.snapshots
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

    def start(*urls: str) -> Real:
        made.append(Real(*urls))
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
async def test_a_key_of_another_kind_is_no_end_and_a_hash_in_its_place_is_read(
    own_redis, real, monkeypatch
):
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
async def test_a_redis_that_comes_back_is_asked_for_what_was_wanted_meanwhile(own_redis, real):
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
