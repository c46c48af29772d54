"""The registry in a real Redis: right in the end, whatever Redis does, and never in the way."""

from __future__ import annotations

import os
import signal
import socket
from typing import Self

import pytest
import pytest_twisted
from core_doubles import Client, publish
from redis_client import RedisClient, wanted
from redis_process import RedisServer
from twisted.internet import defer, reactor
from twisted.logger import capturedLogs, formatEvent
from waiting import until

from pushservice.fanout.hub import Hub
from pushservice.metrics import Counters
from pushservice.redis.url import RedisAddress, redis_address
from pushservice.registry import registry as registry_module
from pushservice.registry.registry import Registry
from pushservice.service.sources import Interests

#: a process that is not there: there are no numbers that high
NOBODY = "1073741824"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Everything that takes seconds takes a fraction."""
    monkeypatch.setattr(registry_module, "WRITE_EVERY", 0.01)
    monkeypatch.setattr(registry_module, "LAST_EVERY", 0.02)
    monkeypatch.setattr(registry_module, "RETRY_AFTER", 0.03)
    monkeypatch.setattr(registry_module, "BEAT_EVERY", 0.05)
    monkeypatch.setattr(registry_module, "SWEEP_EVERY", 0.05)


class Station:
    """A daemon's hub and its registry, with clients that a test plays."""

    def __init__(self, address: RedisAddress, name: str, epoch: str) -> None:
        def failed(outbox: object, failure: Exception) -> None:
            raise failure

        self.counters = Counters()
        interests = Interests()
        self.hub = Hub(reactor, epoch, self.counters, failed, interest=interests)
        self.registry = Registry(reactor, address, "quotepush:", name, self.hub, self.counters)
        interests.listeners.append(self.registry)
        self.clients: dict[str, Client] = {}

    @property
    def node(self) -> str:
        return self.registry.node

    @property
    def up(self) -> bool:
        return self.registry._known

    def watch(self, client: str, *symbols: str) -> None:
        conn = f"{self.hub.epoch}-{client}"
        if client not in self.clients:
            self.clients[client] = Client(self.hub, conn)
        self.clients[client].say({"op": "subscribe", "symbols": symbols})

    def unwatch(self, client: str, *symbols: str) -> None:
        self.clients[client].say({"op": "unsubscribe", "symbols": symbols})

    def leave(self, *clients: str) -> None:
        for client in clients or list(self.clients):
            self.clients.pop(client).session.close()

    @property
    def truth(self) -> tuple[str, dict[str, set[str]]]:
        """What `wanted` wants of a node."""
        return self.node, {
            f"{self.node}-{client}": {topic.symbol for topic in player.outbox.topics}
            for client, player in self.clients.items()
        }


@pytest.fixture
def station():
    """station(server, name="one", epoch="e1"): a registry that was started, and ends with it."""
    made = []

    def start(server: RedisServer | RedisAddress, name: str = "one", epoch: str = "e1") -> Station:
        if isinstance(server, RedisServer):
            server = redis_address(server.socket_url)
        made.append(Station(server, name, epoch))
        made[-1].registry.start()
        return made[-1]

    async def stop() -> None:
        for each in made:
            each.leave()
            await each.registry.stop()

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


@pytest.fixture
def ask():
    """ask(server): a client of it."""
    made = []

    def connect(server: RedisServer) -> RedisClient:
        made.append(RedisClient(server.path))
        return made[-1]

    yield connect
    for client in made:
        client.close()


async def right(client: RedisClient, *stations: Station) -> None:
    """Wait until Redis has of these stations exactly what is true."""
    try:
        await until(
            lambda: client.sets() == wanted(*[each.truth for each in stations]), "the registry"
        )
    except AssertionError:
        # Says what differs.
        assert client.sets() == wanted(*[each.truth for each in stations])
        raise
    for each in stations:
        await until(lambda each=each: each.registry.lag() == 0, "all to be known as written")


def leave_behind(
    client: RedisClient, node: str, clients: dict[str, set[str]], **fields: str
) -> None:
    """Have Redis as a node leaves it that was killed; `fields` if its heartbeat is not over."""
    for key, members in wanted((node, clients)).items():
        client.ask("SADD", f"quotepush:{key}", *members)
    if fields:
        words = [word for field in fields.items() for word in field]
        client.ask("HSET", f"quotepush:node:{node}", "session", "1", *words)
        client.ask("EXPIRE", f"quotepush:node:{node}", "60")


# -- the keys --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_clients_watch_is_in_redis_in_both_directions(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "AAPL", "MSFT")
    one.watch("2", "AAPL")
    await right(redis, one)
    assert redis.sets() == {
        "nodes": {"one.e1"},
        "node:one.e1:clients": {"one.e1-1", "one.e1-2"},
        "client:one.e1-1": {"AAPL", "MSFT"},
        "client:one.e1-2": {"AAPL"},
        "symbols": {"AAPL", "MSFT"},
        "symbol:AAPL": {"one.e1-1", "one.e1-2"},
        "symbol:MSFT": {"one.e1-1"},
    }
    one.unwatch("1", "MSFT")
    one.leave("2")
    await right(redis, one)
    assert redis.sets()["symbol:AAPL"] == {"one.e1-1"}
    one.leave()
    await right(redis, one)
    assert redis.keys() == {"nodes", "node:one.e1"}


@pytest_twisted.ensureDeferred
async def test_a_node_says_where_it_runs_and_its_heartbeat_expires(
    own_redis, station, ask, monkeypatch
):
    redis = ask(server := own_redis())
    monkeypatch.setattr(registry_module, "DEAD_AFTER", 7)
    one = station(server)
    one.watch("1", "A")
    one.watch("2", "A")
    await until(lambda: redis.hash("node:one.e1").get("connections") == b"2", "the next heartbeat")
    found = redis.hash("node:one.e1")
    assert found.keys() == {"host", "pid", "started", "connections", "session"}
    assert found["host"].decode() == socket.gethostname()
    assert int(found["pid"]) == os.getpid()
    assert abs(int(found["started"]) - reactor.seconds()) < 60
    assert 5 <= redis.ask("TTL", "quotepush:node:one.e1") <= 7


@pytest_twisted.ensureDeferred
async def test_symbols_of_several_bytes_and_odd_characters_are_kept_as_they_are(
    own_redis, station, ask
):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "EUR/USD", "^GSPC", "BRK.B", "a:b", "*")
    one.watch("2", "ÖMV")
    await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_thousand_symbols_of_many_clients_are_all_written(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    await until(lambda: one.up, "the link")
    for client in range(5):
        one.watch(str(client), *[f"S{n}" for n in range(client, 1000 - client)])
    await right(redis, one)
    one.leave("0", "1")
    one.unwatch("2", *[f"S{n}" for n in range(2, 700)])
    await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_two_nodes_share_symbols_and_neither_touches_the_others_clients(
    own_redis, station, ask
):
    redis = ask(server := own_redis())
    one, two = station(server), station(server, "two", "e2")
    one.watch("1", "A", "B")
    two.watch("1", "B", "C")
    await right(redis, one, two)
    assert redis.sets()["symbol:B"] == {"one.e1-1", "two.e2-1"}
    one.leave()
    await right(redis, one, two)
    assert redis.sets()["symbols"] == {"B", "C"}


# -- the latest payloads ---------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_latest_payload_of_each_watched_symbol_is_kept_and_goes_with_the_last_watcher(
    own_redis, station, ask
):
    redis = ask(server := own_redis())
    one, two = station(server), station(server, "two", "e2")
    one.watch("1", "A", "B")
    two.watch("1", "B")
    await right(redis, one, two)
    publish(one.hub, ("A", b'{"last":1}'), ("B", b"\xff\x00"), ("C", b"3"))
    await until(lambda: redis.hash("last") == {"A": b'{"last":1}', "B": b"\xff\x00"}, "payloads")
    publish(one.hub, ("A", b"4"), ("A", b"5"))
    await until(lambda: redis.hash("last")["A"] == b"5", "the latest")
    one.leave()
    await until(lambda: redis.hash("last") == {"B": b"\xff\x00"}, "what two watches to be left")
    two.leave()
    await until(lambda: redis.hash("last") == {}, "nothing to be left")


@pytest_twisted.ensureDeferred
async def test_a_quote_right_after_the_subscription_is_kept(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    await until(lambda: one.up, "the link")
    for n in range(20):
        one.watch(str(n), f"S{n}")
        publish(one.hub, (f"S{n}", b"%d" % n))
    await until(lambda: redis.hash("last") == {f"S{n}": b"%d" % n for n in range(20)}, "payloads")


@pytest_twisted.ensureDeferred
async def test_a_value_that_was_known_before_anybody_watched_is_kept_too(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    await until(lambda: one.up, "the link")
    publish(one.hub, ("A", b"1"))
    one.watch("1", "A")
    await until(lambda: redis.hash("last") == {"A": b"1"}, "the payload")


@pytest_twisted.ensureDeferred
async def test_what_was_quoted_while_redis_was_away_is_kept_and_what_was_not_overwrites_nothing(
    own_redis, station, ask
):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "OLD", "NEW")
    publish(one.hub, ("OLD", b"1"), ("NEW", b"1"))
    await until(lambda: redis.hash("last") == {"OLD": b"1", "NEW": b"1"}, "payloads")
    await until(lambda: one.registry._written_until > one.hub.topic("OLD").t / 1000, "a moment")
    redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: not one.up, "the loss")
    redis.ask("HSET", "quotepush:last", "OLD", "by another")
    publish(one.hub, ("NEW", b"2"))
    await until(lambda: redis.hash("last")["NEW"] == b"2", "the quote of the outage")
    await until(lambda: not one.registry._kept and not one.registry._values, "all to be written")
    assert redis.hash("last") == {"OLD": b"by another", "NEW": b"2"}


@pytest_twisted.ensureDeferred
async def test_large_payloads_are_written_a_few_at_a_time(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", *[f"S{n}" for n in range(300)])
    await right(redis, one)
    payloads = {f"S{n}": b"%d" % n * 5000 for n in range(300)}
    publish(one.hub, *payloads.items())
    await until(lambda: redis.hash("last") == payloads, "payloads")
    largest = max(
        int(line.split(b"qbuf=")[1].split()[0]) for line in redis.ask("CLIENT", "LIST").splitlines()
    )
    assert largest < 1_000_000


# -- demand ----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_publishers_are_told_of_the_first_watcher_anywhere_and_of_the_last(
    own_redis, station, ask
):
    server = own_redis()
    redis, publisher = ask(server), ask(server)
    publisher.listen()
    one, two = station(server), station(server, "two", "e2")
    one.watch("1", "A")
    await right(redis, one, two)
    one.watch("2", "A")
    two.watch("1", "A", "B")
    await right(redis, one, two)
    assert publisher.messages() == ["+A", "+B"]
    one.leave()
    await right(redis, one, two)
    assert publisher.messages() == []
    two.leave()
    await right(redis, one, two)
    assert sorted(publisher.messages()) == ["-A", "-B"]


@pytest_twisted.ensureDeferred
async def test_whoever_is_told_finds_the_symbols_already_so(own_redis, station, ask):
    server = own_redis()
    redis, publisher = ask(server), ask(server)
    publisher.listen()
    one = station(server)
    one.watch("1", "A")
    await until(lambda: publisher.messages() == ["+A"], "the demand")
    assert redis.sets()["symbols"] == {"A"}


@pytest_twisted.ensureDeferred
async def test_a_new_connection_alone_tells_publishers_nothing(own_redis, station, ask):
    server = own_redis()
    redis, publisher = ask(server), ask(server)
    one = station(server)
    one.watch("1", "A", "B")
    await right(redis, one)
    publisher.listen()
    for session in (2, 3):
        redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda session=session: one.registry._session == session, "a new connection")
        await until(lambda: one.up, "the heartbeat")
        await right(redis, one)
    assert publisher.messages() == []


# -- what goes wrong -------------------------------------------------------------------------------


class Said:
    """What is logged from now on."""

    def __enter__(self) -> Self:
        self._logs = capturedLogs()
        self._events = self._logs.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._logs.__exit__(*details)

    def __repr__(self) -> str:
        return repr([formatEvent(event) for event in self._events])

    def count(self, words: str) -> int:
        return sum(words in formatEvent(event) for event in self._events)


@pytest_twisted.ensureDeferred
async def test_a_full_redis_is_made_right_once_there_is_room(own_redis, station, ask):
    redis = ask(server := own_redis("--maxmemory-policy", "noeviction"))
    one = station(server)
    one.watch("1", "A", "B")
    await right(redis, one)
    with Said() as said:
        redis.ask("CONFIG", "SET", "maxmemory", "1")
        one.watch("2", "A", "C")
        await until(lambda: one.counters.registry_failures > 2, "refusals")
        assert said.count("the registry was not written: OOM") == 1
        one.unwatch("1", "B")
        one.watch("3", "D")
        one.leave("2")
        publish(one.hub, ("A", b"1"))
        failures = one.counters.registry_failures
        await until(lambda: one.counters.registry_failures > failures + 2, "more refusals")
        assert one.registry.lag() > 0
        redis.ask("CONFIG", "SET", "maxmemory", "0")
        await right(redis, one)
        await until(lambda: redis.hash("last") == {"A": b"1"}, "the payload")
        assert said.count("the registry was not written") == 1
        assert said.count("the registry is written again") == 1


@pytest_twisted.ensureDeferred
async def test_a_node_of_a_full_redis_lives_on(own_redis, station, ask, monkeypatch):
    monkeypatch.setattr(registry_module, "DEAD_AFTER", 1)
    redis = ask(server := own_redis())
    one, two = station(server), station(server, "two", "e2")
    one.watch("1", "A")
    await right(redis, one, two)
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    one.watch("2", "B")
    began = reactor.seconds()
    failures = one.counters.registry_failures
    await until(
        lambda: reactor.seconds() > began + 1.2 and one.counters.registry_failures > failures,
        "more than the time in which a node counts as dead",
    )
    assert redis.sets()["client:one.e1-1"] == {"A"}
    redis.ask("CONFIG", "SET", "maxmemory", "0")
    await right(redis, one, two)


@pytest_twisted.ensureDeferred
async def test_nothing_gathers_while_redis_is_full_and_clients_come_and_go(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("stays", "A")
    await right(redis, one)
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    mirror = one.registry._mirror
    for turn in range(30):
        one.watch(str(turn), "A", f"S{turn}")
        publish(one.hub, ("A", b"1"), (f"S{turn}", b"2"))
        failures = one.counters.registry_failures
        await until(
            lambda failures=failures: one.counters.registry_failures > failures, "a refusal"
        )
        one.leave(str(turn))
    failures = one.counters.registry_failures
    await until(lambda: one.counters.registry_failures > failures + 1, "two more refusals")
    assert len(mirror._pending) + len(mirror._whole) <= 2
    values = [*one.registry._quoted, *one.registry._kept, *dict(one.registry._values)]
    assert {topic.symbol for topic in values} == {"A"}
    redis.ask("CONFIG", "SET", "maxmemory", "0")
    await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_may_only_be_read_is_made_right_when_it_may_be_written(
    own_redis, station, ask
):
    master = own_redis()
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "A")
    await right(redis, one)
    redis.ask("REPLICAOF", "127.0.0.1", str(master.port))
    with Said() as said:
        one.watch("2", "A", "B")
        one.leave("1")
        await until(lambda: said.count("the registry was not written: READONLY"), "the refusal")
        await until(lambda: redis.keys() == set(), "what its master has")
    redis.ask("REPLICAOF", "NO", "ONE")
    await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_user_who_may_not_run_scripts_is_said_and_made_right_when_it_may(
    own_redis, station, ask
):
    redis = ask(server := own_redis())
    user = ["ACL", "SETUSER", "registry", "on", ">secret"]
    redis.ask(*user, "~*", "&*", "+@all", "-eval")
    with Said() as said:
        one = station(RedisAddress("127.0.0.1", server.port, user="registry", password="secret"))
        one.watch("1", "A")
        await until(lambda: said.count("the registry was not written: NOPERM"), "the refusal")
        assert one.registry._mirror._pending == {}
        redis.ask(*user, "+eval")
        await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_user_who_may_not_write_some_keys_leaves_nothing_that_is_not_found_later(
    own_redis, station, ask
):
    redis = ask(server := own_redis())
    user = ["ACL", "SETUSER", "registry", "on", ">secret"]
    redis.ask(*user, "~quotepush:node*", "~quotepush:client:*", "&*", "+@all")
    one = station(RedisAddress("127.0.0.1", server.port, user="registry", password="secret"))
    one.watch("1", "A")
    await until(lambda: one.counters.registry_failures > 2, "refusals")
    one.leave()
    await until(lambda: redis.sets().get("client:one.e1-1"), "what was written of it")
    redis.ask(*user, "~quotepush:*")
    await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_stands_still_keeps_nobody_waiting_and_is_made_right(
    own_redis, station, ask, monkeypatch
):
    monkeypatch.setattr(registry_module, "_PATIENCE", 0.2)
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "A", "B")
    await right(redis, one)
    with Said() as said:
        server.process.send_signal(signal.SIGSTOP)
        try:
            one.unwatch("1", "B")
            one.watch("2", *[f"S{n}" for n in range(900)])
            await until(lambda: said.count("no answer in"), "patience to end")
            one.leave("2")
            one.watch("3", "C")
            publish(one.hub, ("A", b"1"))
            assert [e["ev"] for e in one.clients["1"].events()][-1] == "quote"
            assert one.registry.lag() > 0.1
        finally:
            server.process.send_signal(signal.SIGCONT)
        await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_is_killed_and_comes_back_empty_is_made_right(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server.url and redis_address(server.url))
    one.watch("1", "A", "B")
    await right(redis, one)
    server.stop()
    await until(lambda: not one.up, "the loss")
    one.unwatch("1", "A")
    for client in range(100):
        one.watch(str(client), "C")
        one.leave(str(client))
    assert not one.registry._mirror._pending
    assert not one.registry._mirror._whole
    one.watch("2", "C")
    publish(one.hub, ("C", b"7"))
    assert not one.registry._quoted
    redis = ask(own_redis(port=server.port))
    await right(redis, one)
    await until(lambda: redis.hash("last") == {"C": b"7"}, "the payload")


@pytest_twisted.ensureDeferred
async def test_a_redis_that_forgets_all_without_a_word_is_made_right(own_redis, station, ask):
    redis = ask(server := own_redis())
    one, two = station(server), station(server, "two", "e2")
    one.watch("1", "A", "B")
    two.watch("1", "B")
    publish(one.hub, ("A", b"1"))
    await until(lambda: redis.hash("last"), "the payload")
    await right(redis, one, two)
    redis.ask("FLUSHALL")
    await right(redis, one, two)
    await until(lambda: redis.hash("last") == {"A": b"1"}, "the payload")


@pytest_twisted.ensureDeferred
async def test_a_redis_that_is_an_older_one_is_made_right(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "A", "B")
    one.watch("2", "A")
    one.watch("3", "D")
    await right(redis, one)
    old = {key: redis.ask("DUMP", key) for key in redis.ask("KEYS", "*")}
    one.unwatch("1", "A")
    one.unwatch("3", "D")
    one.leave("2")
    one.watch("4", "C")
    await right(redis, one)
    redis.ask("MULTI")
    redis.ask("FLUSHALL")
    for key, value in old.items():
        redis.ask("RESTORE", key, "0", value)
    redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    redis.ask("EXEC")
    assert "client:one.e1-2" in redis.sets()
    await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_what_redis_reads_late_of_a_connection_that_was_given_up_does_nothing(
    own_redis, station, ask
):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "A")
    await right(redis, one)
    late = one.registry._script(
        registry_module.scripts.CHANGE, one.node, 1, f"{one.node}-1", 0, 1, 0, "LATE"
    )
    late_value = one.registry._script(
        registry_module.scripts.LAST, one.node, 1, 1, "A", "an old one"
    )
    late_beat = one.registry._script(registry_module.scripts.BEAT, one.node, 1, 60, "pid", "0")
    redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: one.registry._session == 2 and one.up, "a new connection")
    assert [redis.ask(*late), redis.ask(*late_value), redis.ask(*late_beat)] == [0, 0, -1]
    await right(redis, one)
    assert redis.hash("last") == {}
    assert redis.hash(f"node:{one.node}")["session"] == b"2"


# -- nodes -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_a_dead_node_left_is_swept_by_a_living_one(own_redis, station, ask):
    server = own_redis()
    redis, publisher = ask(server), ask(server)
    left = {f"dead.e0-{n}": {"A", f"S{n}"} for n in range(300)}
    leave_behind(redis, "dead.e0", left | {"dead.e0-many": {f"M{n}" for n in range(900)}})
    redis.ask("HSET", "quotepush:last", "A", "1", "S1", "1")
    publisher.listen()
    with Said() as said:
        one = station(server)
        one.watch("1", "A")
        await right(redis, one)
        await until(lambda: said.count("swept what dead.e0 left in the registry") == 1, "a word")
    assert redis.hash("last").keys() <= {"A"}
    told = publisher.messages()
    assert sorted(told) == sorted([f"-S{n}" for n in range(300)] + [f"-M{n}" for n in range(900)])


@pytest_twisted.ensureDeferred
async def test_a_living_node_is_never_swept(own_redis, station, ask):
    redis = ask(server := own_redis())
    leave_behind(redis, "other.e0", {"other.e0-1": {"A"}}, host="elsewhere", pid=NOBODY)
    leave_behind(redis, "dead.e0", {"dead.e0-1": {"A"}})
    one = station(server)
    one.watch("1", "B")
    await until(lambda: "client:dead.e0-1" not in redis.sets(), "the dead one's sweep")
    expected = wanted(one.truth, ("other.e0", {"other.e0-1": {"A"}}))
    await until(lambda: redis.sets() == expected, "the registry")
    calls = redis.ask("INFO", "commandstats")
    await until(lambda: redis.ask("INFO", "commandstats") != calls, "more looks for the dead")
    assert redis.sets() == expected
    redis.ask("DEL", "quotepush:node:other.e0")
    await right(redis, one)


@pytest_twisted.ensureDeferred
async def test_an_earlier_life_of_ones_own_is_swept_at_once_though_its_heartbeat_is_not_over(
    own_redis, station, ask
):
    redis = ask(server := own_redis())
    host = socket.gethostname()
    leave_behind(redis, "one.e0", {"one.e0-1": {"A"}}, host=host, pid=NOBODY)
    leave_behind(redis, "one-more.e0", {"one-more.e0-1": {"A"}}, host=host, pid=NOBODY)
    leave_behind(redis, "one.e9", {"one.e9-1": {"A"}}, host=host, pid=str(os.getppid()))
    leave_behind(redis, "one.e8", {"one.e8-1": {"A"}}, host="elsewhere", pid=NOBODY)
    one = station(server)
    one.watch("1", "B")
    expected = wanted(
        one.truth,
        ("one-more.e0", {"one-more.e0-1": {"A"}}),
        ("one.e9", {"one.e9-1": {"A"}}),
        ("one.e8", {"one.e8-1": {"A"}}),
    )
    await until(lambda: redis.sets() == expected, "the earlier life alone to be swept")
    assert redis.keys() - expected.keys() == {
        "node:one.e1",
        "node:one-more.e0",
        "node:one.e9",
        "node:one.e8",
    }


@pytest_twisted.ensureDeferred
async def test_only_the_start_looks_for_earlier_lives(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "A")
    await right(redis, one)
    host = socket.gethostname()
    leave_behind(redis, "one.e0", {"one.e0-1": {"A"}}, host=host, pid=NOBODY)
    leave_behind(redis, "dead.e0", {"dead.e0-1": {"A"}})
    await until(lambda: "client:dead.e0-1" not in redis.sets(), "the dead one's sweep")
    redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: one.registry._session == 2 and one.up, "a new connection")
    expected = wanted(one.truth, ("one.e0", {"one.e0-1": {"A"}}))
    await until(lambda: redis.sets() == expected, "the registry")


@pytest_twisted.ensureDeferred
async def test_one_that_was_swept_by_others_notices_and_comes_back(
    own_redis, station, ask, monkeypatch
):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "A", "B")
    await right(redis, one)
    for loop, _ in one.registry._loops:
        loop.stop()
    redis.ask("DEL", "quotepush:node:one.e1")
    two = station(server, "two", "e2")
    await right(redis, two)
    one.watch("2", "C")
    one.unwatch("1", "A")
    for loop, interval in one.registry._loops:
        loop.start(interval, now=False)
    await right(redis, one, two)


@pytest_twisted.ensureDeferred
async def test_one_that_was_swept_writes_nothing_before_it_is_known_again(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "A")
    await right(redis, one)
    for loop, _ in one.registry._loops:
        loop.stop()
    redis.ask("FLUSHALL")
    one.watch("1", "B")
    await defer.Deferred.fromCoroutine(one.registry._write())
    assert redis.keys() == set()
    assert one.registry.lag() > 0
    await defer.Deferred.fromCoroutine(one.registry._write())
    await right(redis, one)


# -- the end ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_farewell_leaves_nothing_and_wakes_publishers(own_redis, station, ask):
    server = own_redis()
    redis, publisher = ask(server), ask(server)
    publisher.listen()
    one = station(server)
    one.watch("1", *[f"S{n}" for n in range(700)])
    publish(one.hub, ("S1", b"1"))
    await until(lambda: redis.hash("last"), "the payload")
    await right(redis, one)
    one.watch("2", "LATE")
    await one.registry.stop()
    await one.registry.stop()
    assert redis.keys() == set()
    told = publisher.messages()
    assert sum(text[0] == "+" for text in told) == sum(text[0] == "-" for text in told) >= 700


@pytest_twisted.ensureDeferred
async def test_a_farewell_while_batches_are_under_way_leaves_nothing(own_redis, station, ask):
    redis = ask(server := own_redis())
    one = station(server)
    await until(lambda: one.up, "the link")
    for client in range(5):
        one.watch(str(client), *[f"S{n}" for n in range(1000)])
    writing = one.registry._run(one.registry._write())
    await one.registry.stop()
    assert writing.called, "nothing is under way any more"
    assert redis.keys() == set()


@pytest_twisted.ensureDeferred
async def test_a_stop_does_not_wait_for_a_redis_that_stands_still(
    own_redis, station, ask, monkeypatch
):
    monkeypatch.setattr(registry_module, "_FAREWELL", 0.2)
    redis = ask(server := own_redis())
    one = station(server)
    one.watch("1", "A")
    await right(redis, one)
    server.process.send_signal(signal.SIGSTOP)
    try:
        one.watch("2", "B")
        began = reactor.seconds()
        await one.registry.stop()
        assert reactor.seconds() - began < 2
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest_twisted.ensureDeferred
async def test_a_registry_without_a_redis_is_stopped_at_once(station, own_redis):
    server = own_redis()
    server.stop()
    one = station(server)
    one.watch("1", "A")
    await until(lambda: one.registry._link.failures, "a try")
    assert one.registry.lag() > 0
    await one.registry.stop()
