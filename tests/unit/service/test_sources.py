"""What has to do with Redis, composed: what is made of which options, and who is told of what."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from core_doubles import Client, make_hub
from twisted.internet import defer, reactor
from waiting import until

from pushservice.config.config import Config
from pushservice.fanout.announcements import Announcements
from pushservice.metrics import Counters
from pushservice.redis.url import redis_address
from pushservice.service.sources import Fanout, Interests, Sources


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def watched(self, *words: object) -> None:
        self.told.append(("watched", *words))

    def unwatched(self, *words: object) -> None:
        self.told.append(("unwatched", *words))

    def quoted(self, *words: object) -> None:
        self.told.append(("quoted", *words))


def test_every_listener_is_told_of_all_interest_in_the_same_order():
    interests = Interests()
    interests.listeners = [Listener(), Listener()]
    interests.watched("c", "A", True)
    interests.quoted({})
    interests.unwatched("c", "A", False)
    for listener in interests.listeners:
        assert listener.told == [
            ("watched", "c", "A", True),
            ("quoted", {}),
            ("unwatched", "c", "A", False),
        ]


def test_without_listeners_nothing_comes_of_interest():
    interests = Interests()
    interests.watched("c", "A", True)
    interests.unwatched("c", "A", True)
    interests.quoted({})


class Composed:
    """A hub and its sources, as the daemon has them."""

    def __init__(self, **values: Any) -> None:
        self.counters = Counters()
        self.told: list[bool] = []
        self.interests = Interests()
        self.hub = make_hub(reactor, self.counters, interest=self.interests)
        self.announcements = Announcements(self.hub, lambda _share: None)
        values = {"registry_prefix": None, "channels": ("src.*",)} | values
        self.config = Config(plain=True, **values)
        self.sources = Sources(
            reactor,
            self.config,
            Fanout(self.hub, self.interests, self.announcements),
            self.counters,
            "-1a",
            self.told.append,
        )

    def start(self, *urls: str) -> None:
        self.sources.start([address for url in urls if (address := redis_address(url))])

    def client(self, *symbols: str) -> Client:
        client = Client(self.hub)
        client.say({"op": "subscribe", "symbols": symbols})
        client.events()
        return client


@pytest.fixture
def compose():
    """compose(**config): sources that are stopped at the end."""
    made = []

    def make(**values: Any) -> Composed:
        made.append(Composed(**values))
        return made[-1]

    yield make
    for composed in made:
        pytest_twisted.blockon(defer.ensureDeferred(composed.sources.stop_feeds()))
        # Clients go after the feed; nothing may be planned on their account.
        for outbox in composed.hub.outboxes():
            composed.hub.leave(outbox)
        pytest_twisted.blockon(defer.ensureDeferred(composed.sources.stop_registry()))


each_way = pytest.mark.parametrize("subscribe", ["all", "demand"])


@each_way
@pytest_twisted.ensureDeferred
async def test_clients_of_before_redis_was_there_are_listened_for_and_get_the_value(
    own_redis, compose, subscribe
):
    server = own_redis()
    server.cli("HSET", "latest", "A", "1.5")
    composed = compose(subscribe=subscribe, snapshot_hash="latest")
    clients = [composed.client("A", "B"), composed.client("A")]
    composed.start(server.url)
    await until(lambda: composed.announcements.feed_up, "the feed")
    told: list[list[dict[str, Any]]] = [[], []]

    def all_have_the_value() -> bool:
        for client, events in zip(clients, told, strict=True):
            events.extend(client.events())
        return all(any(event["ev"] == "snapshot" for event in events) for events in told)

    await until(all_have_the_value, "the value at each client")
    assert composed.counters.snapshots_learnt
    for events, symbols in zip(told, ["AB", "A"], strict=True):
        assert [event["s"] for event in events if event["ev"] == "gap"] == list(symbols)
        values = [event for event in events if event["ev"] == "snapshot"]
        assert {(event["s"], event["n"], event["d"]) for event in values} == {("A", 0, 1.5)}
        assert events[0]["ev"] == "feed"
    assert server.cli("PUBLISH", "src.A", "2") == b":1\r\n"
    await until(lambda: composed.counters.quotes_in, "the quote")
    assert [client.events()[-1]["d"] for client in clients] == [2, 2]


@pytest_twisted.ensureDeferred
async def test_on_demand_redis_knows_of_the_watched_symbols_alone_and_values_are_forgotten(
    own_redis, compose
):
    server = own_redis()
    composed = compose(subscribe="demand")
    composed.start(server.url)
    await until(lambda: composed.announcements.feed_up, "the feed")
    client = composed.client("A")
    await until(lambda: server.cli("PUBLISH", "src.A", "1") == b":1\r\n", "the subscription")
    assert server.cli("PUBLISH", "src.B", "1") == b":0\r\n"
    await until(lambda: composed.counters.quotes_in, "the quote")
    client.session.close()
    assert composed.hub.topic("A") is not None
    await until(lambda: server.cli("PUBLISH", "src.A", "1") == b":0\r\n", "its end")
    assert composed.hub.topic("A") is None


@each_way
@pytest_twisted.ensureDeferred
async def test_of_several_redis_each_brings_quotes(own_redis, compose, subscribe):
    servers = [own_redis(), own_redis()]
    composed = compose(subscribe=subscribe)
    client = composed.client("A", "B")
    composed.start(*[server.url for server in servers])
    await until(lambda: composed.announcements.feed_up, "the feed")
    client.events()
    for symbol, server in zip("AB", servers, strict=True):
        assert server.cli("PUBLISH", f"src.{symbol}", "1") == b":1\r\n"
    await until(lambda: composed.counters.quotes_in == 2, "the quotes")
    assert sorted(event["s"] for event in client.events()) == ["A", "B"]


@pytest_twisted.ensureDeferred
async def test_the_registry_is_kept_where_it_is_wanted_and_begins_with_who_is_there(
    own_redis, compose
):
    server = own_redis()
    composed = compose(registry_prefix="t:", node="n1")
    composed.client("A")
    composed.start(server.url)
    await until(lambda: composed.counters.registry_writes, "the first write")
    assert b"t:" in server.cli("KEYS", "*")
    await composed.sources.stop_feeds()
    for outbox in composed.hub.outboxes():
        composed.hub.leave(outbox)
    await composed.sources.stop_registry()
    assert b"client" not in server.cli("KEYS", "t:*")


@pytest_twisted.ensureDeferred
async def test_without_a_prefix_there_is_no_registry(own_redis, compose):
    server = own_redis()
    composed = compose()
    composed.start(server.url)
    await until(lambda: composed.announcements.feed_up, "the feed")
    assert composed.sources.registry is None
    assert server.cli("KEYS", "*") == b"*0\r\n"


@pytest_twisted.ensureDeferred
async def test_the_registry_knows_a_process_by_its_node_and_what_tells_it_from_others(
    own_redis, compose
):
    server = own_redis()
    composed = compose(registry_prefix="t:", node="n1")
    composed.client("A")
    composed.start(server.url)
    await until(lambda: composed.counters.registry_writes, "the first write")
    assert b"n1-1a" in server.cli("KEYS", "t:*")


@pytest_twisted.ensureDeferred
async def test_the_feeds_state_is_told_after_clients_are_and_no_more_once_it_is_stopped(
    own_redis, compose
):
    server = own_redis()
    composed = compose()
    known: list[bool] = []
    composed.sources._tell_feed_changed = lambda up: known.append(
        composed.announcements.feed_up is up
    )
    composed.start(server.url)
    await until(lambda: known, "the feed")
    server.stop()
    await until(lambda: not composed.announcements.feed_up, "its end")
    assert known == [True] * len(known)
    assert len(known) >= 2
    await composed.sources.stop_feeds()
    count = len(known)
    composed.sources._feed_changed(True)
    assert len(known) == count


@pytest_twisted.ensureDeferred
async def test_what_was_never_started_can_be_stopped(compose):
    composed = compose(snapshot_hash="latest", demo=True)
    await composed.sources.stop_feeds()
    await composed.sources.stop_registry()
