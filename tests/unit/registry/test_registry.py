"""The registry in a real Redis: it ends up right whatever Redis does, and nothing waits for it."""

from __future__ import annotations

import os
import signal
import socket
from typing import Self

import pytest
import pytest_twisted
from core_doubles import Client, publish
from redis_client import RedisClient, expected_sets
from redis_process import RedisServer
from twisted.internet import defer, reactor
from twisted.logger import capturedLogs, formatEvent
from waiting import until

from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.metrics import Counters
from pushservice.redis.url import RedisAddress, redis_address
from pushservice.registry import connection, payloads, scripts
from pushservice.registry import registry as registry_module
from pushservice.registry.registry import Registry
from pushservice.service.sources import Interests

#: a process that is not there: there are no numbers that high
NO_PROCESS = "1073741824"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Everything that takes seconds takes a fraction."""
    monkeypatch.setattr(registry_module, "WRITE_EVERY", 0.01)
    monkeypatch.setattr(payloads, "COLLECT_EVERY", 0.02)
    monkeypatch.setattr(registry_module, "RETRY_AFTER", 0.03)
    monkeypatch.setattr(registry_module, "HEARTBEAT_EVERY", 0.05)
    monkeypatch.setattr(registry_module, "SWEEP_EVERY", 0.05)


class Daemon:
    """A daemon's hub and its registry, with clients that a test plays."""

    def __init__(self, address: RedisAddress, name: str, epoch: str) -> None:
        def failed(outbox: object, failure: Exception) -> None:
            raise failure

        self.counters = Counters()
        interests = Interests()
        self.hub = Hub(reactor, epoch, self.counters, TurnHooks(failed), interest=interests)
        self.registry = Registry(reactor, address, "quotepush:", name, self.hub, self.counters)
        interests.listeners.append(self.registry)
        self.clients: dict[str, Client] = {}

    @property
    def node(self) -> str:
        return self.registry.node

    @property
    def up(self) -> bool:
        return self.registry._in_sync

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
    def expected(self) -> tuple[str, dict[str, set[str]]]:
        """This node and what its clients watch, for `expected_sets`."""
        return self.node, {
            f"{self.node}-{client}": {topic.symbol for topic in player.outbox.topics}
            for client, player in self.clients.items()
        }


@pytest.fixture
def start_daemon():
    """start_daemon(server, name="one", epoch="e1"): a daemon whose registry was started."""
    made = []

    def start(server: RedisServer | RedisAddress, name: str = "one", epoch: str = "e1") -> Daemon:
        if isinstance(server, RedisServer):
            server = redis_address(server.socket_url)
        made.append(Daemon(server, name, epoch))
        made[-1].registry.start()
        return made[-1]

    async def stop() -> None:
        for each in made:
            each.leave()
            await each.registry.stop()

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


@pytest.fixture
def connect():
    """connect(server): a client of that Redis."""
    made = []

    def make(server: RedisServer) -> RedisClient:
        made.append(RedisClient(server.path))
        return made[-1]

    yield make
    for client in made:
        client.close()


async def registry_is_right(client: RedisClient, *daemons: Daemon) -> None:
    """Wait until Redis holds exactly what the clients of these daemons watch."""
    try:
        await until(
            lambda: client.sets() == expected_sets(*[each.expected for each in daemons]),
            "the registry",
        )
    except AssertionError:
        # Its message shows what differs.
        assert client.sets() == expected_sets(*[each.expected for each in daemons])
        raise
    for each in daemons:
        await until(lambda each=each: each.registry.lag() == 0, "everything to be confirmed")


def store_dead_node(
    client: RedisClient, node: str, clients: dict[str, set[str]], **fields: str
) -> None:
    """Store what a node leaves that was killed; with `fields`, its heartbeat has not expired."""
    for key, members in expected_sets((node, clients)).items():
        client.ask("SADD", f"quotepush:{key}", *members)
    if fields:
        words = [word for field in fields.items() for word in field]
        client.ask("HSET", f"quotepush:node:{node}", "session", "1", *words)
        client.ask("EXPIRE", f"quotepush:node:{node}", "60")


# -- the keys --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_clients_watch_is_in_redis_in_both_directions(own_redis, start_daemon, connect):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "AAPL", "MSFT")
    one.watch("2", "AAPL")
    await registry_is_right(redis, one)
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
    await registry_is_right(redis, one)
    assert redis.sets()["symbol:AAPL"] == {"one.e1-1"}
    one.leave()
    await registry_is_right(redis, one)
    assert redis.keys() == {"nodes", "node:one.e1"}


@pytest_twisted.ensureDeferred
async def test_a_heartbeat_names_host_and_process_and_expires(
    own_redis, start_daemon, connect, monkeypatch
):
    redis = connect(server := own_redis())
    monkeypatch.setattr(registry_module, "DEAD_AFTER", 7)
    one = start_daemon(server)
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
async def test_symbols_are_stored_unchanged_whatever_their_characters(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "EUR/USD", "^GSPC", "BRK.B", "a:b", "*")
    one.watch("2", "ÖMV")
    await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_thousand_symbols_of_many_clients_are_all_written(own_redis, start_daemon, connect):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    await until(lambda: one.up, "the link")
    for client in range(5):
        one.watch(str(client), *[f"S{n}" for n in range(client, 1000 - client)])
    await registry_is_right(redis, one)
    one.leave("0", "1")
    one.unwatch("2", *[f"S{n}" for n in range(2, 700)])
    await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_two_nodes_share_symbols_and_leave_each_others_clients_alone(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one, two = start_daemon(server), start_daemon(server, "two", "e2")
    one.watch("1", "A", "B")
    two.watch("1", "B", "C")
    await registry_is_right(redis, one, two)
    assert redis.sets()["symbol:B"] == {"one.e1-1", "two.e2-1"}
    one.leave()
    await registry_is_right(redis, one, two)
    assert redis.sets()["symbols"] == {"B", "C"}


# -- the latest payloads ---------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_latest_payload_is_stored_until_the_last_watcher_leaves(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one, two = start_daemon(server), start_daemon(server, "two", "e2")
    one.watch("1", "A", "B")
    two.watch("1", "B")
    await registry_is_right(redis, one, two)
    publish(one.hub, ("A", b'{"last":1}'), ("B", b"\xff\x00"), ("C", b"3"))
    await until(lambda: redis.hash("last") == {"A": b'{"last":1}', "B": b"\xff\x00"}, "payloads")
    publish(one.hub, ("A", b"4"), ("A", b"5"))
    await until(lambda: redis.hash("last")["A"] == b"5", "the latest")
    one.leave()
    await until(lambda: redis.hash("last") == {"B": b"\xff\x00"}, "what two watches to be left")
    two.leave()
    await until(lambda: redis.hash("last") == {}, "nothing to be left")


@pytest_twisted.ensureDeferred
async def test_a_quote_right_after_the_subscription_is_stored(own_redis, start_daemon, connect):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    await until(lambda: one.up, "the link")
    for n in range(20):
        one.watch(str(n), f"S{n}")
        publish(one.hub, (f"S{n}", b"%d" % n))
    await until(lambda: redis.hash("last") == {f"S{n}": b"%d" % n for n in range(20)}, "payloads")


@pytest_twisted.ensureDeferred
async def test_a_payload_known_before_anybody_watched_is_stored_too(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    await until(lambda: one.up, "the link")
    publish(one.hub, ("A", b"1"))
    one.watch("1", "A")
    await until(lambda: redis.hash("last") == {"A": b"1"}, "the payload")


@pytest_twisted.ensureDeferred
async def test_after_an_outage_only_payloads_quoted_during_it_overwrite_stored_ones(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "OLD", "NEW")
    publish(one.hub, ("OLD", b"1"), ("NEW", b"1"))
    await until(lambda: redis.hash("last") == {"OLD": b"1", "NEW": b"1"}, "payloads")
    await until(
        lambda: one.registry._payloads._written_until > one.hub.topic("OLD").t / 1000, "a moment"
    )
    redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: not one.up, "the loss")
    redis.ask("HSET", "quotepush:last", "OLD", "by another")
    publish(one.hub, ("NEW", b"2"))
    await until(lambda: redis.hash("last")["NEW"] == b"2", "the quote of the outage")
    await until(lambda: not one.registry._payloads, "all to be written")
    assert redis.hash("last") == {"OLD": b"by another", "NEW": b"2"}


@pytest_twisted.ensureDeferred
async def test_large_payloads_are_written_a_few_at_a_time(own_redis, start_daemon, connect):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", *[f"S{n}" for n in range(300)])
    await registry_is_right(redis, one)
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
    own_redis, start_daemon, connect
):
    server = own_redis()
    redis, publisher = connect(server), connect(server)
    publisher.listen()
    one, two = start_daemon(server), start_daemon(server, "two", "e2")
    one.watch("1", "A")
    await registry_is_right(redis, one, two)
    one.watch("2", "A")
    two.watch("1", "A", "B")
    await registry_is_right(redis, one, two)
    assert publisher.messages() == ["+A", "+B"]
    one.leave()
    await registry_is_right(redis, one, two)
    assert publisher.messages() == []
    two.leave()
    await registry_is_right(redis, one, two)
    assert sorted(publisher.messages()) == ["-A", "-B"]


@pytest_twisted.ensureDeferred
async def test_publishers_that_are_told_find_the_symbols_set_up_to_date(
    own_redis, start_daemon, connect
):
    server = own_redis()
    redis, publisher = connect(server), connect(server)
    publisher.listen()
    one = start_daemon(server)
    one.watch("1", "A")
    await until(lambda: publisher.messages() == ["+A"], "the demand")
    assert redis.sets()["symbols"] == {"A"}


@pytest_twisted.ensureDeferred
async def test_a_new_connection_alone_tells_publishers_nothing(own_redis, start_daemon, connect):
    server = own_redis()
    redis, publisher = connect(server), connect(server)
    one = start_daemon(server)
    one.watch("1", "A", "B")
    await registry_is_right(redis, one)
    publisher.listen()
    for session in (2, 3):
        redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(
            lambda session=session: one.registry._redis.session == session, "a new connection"
        )
        await until(lambda: one.up, "the heartbeat")
        await registry_is_right(redis, one)
    assert publisher.messages() == []


# -- what goes wrong -------------------------------------------------------------------------------


class CapturedLog:
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
async def test_the_registry_recovers_when_a_full_redis_has_room_again(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis("--maxmemory-policy", "noeviction"))
    one = start_daemon(server)
    one.watch("1", "A", "B")
    await registry_is_right(redis, one)
    with CapturedLog() as log:
        redis.ask("CONFIG", "SET", "maxmemory", "1")
        one.watch("2", "A", "C")
        await until(lambda: one.counters.registry_failures > 2, "refusals")
        assert log.count("the registry was not written: OOM") == 1
        one.unwatch("1", "B")
        one.watch("3", "D")
        one.leave("2")
        publish(one.hub, ("A", b"1"))
        failures = one.counters.registry_failures
        await until(lambda: one.counters.registry_failures > failures + 2, "more refusals")
        assert one.registry.lag() > 0
        redis.ask("CONFIG", "SET", "maxmemory", "0")
        await registry_is_right(redis, one)
        await until(lambda: redis.hash("last") == {"A": b"1"}, "the payload")
        assert log.count("the registry was not written") == 1
        assert log.count("the registry is written again") == 1


@pytest_twisted.ensureDeferred
async def test_a_node_stays_alive_while_redis_is_full(
    own_redis, start_daemon, connect, monkeypatch
):
    monkeypatch.setattr(registry_module, "DEAD_AFTER", 1)
    redis = connect(server := own_redis())
    one, two = start_daemon(server), start_daemon(server, "two", "e2")
    one.watch("1", "A")
    await registry_is_right(redis, one, two)
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
    await registry_is_right(redis, one, two)


@pytest_twisted.ensureDeferred
async def test_memory_is_bounded_while_redis_is_full_and_clients_come_and_go(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("stays", "A")
    await registry_is_right(redis, one)
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    changes = one.registry._changes
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
    assert len(changes._differences) + len(changes._replacements) <= 2
    pending = one.registry._payloads
    topics = [*pending._quoted, *pending._known, *dict(pending._queue)]
    assert {topic.symbol for topic in topics} == {"A"}
    redis.ask("CONFIG", "SET", "maxmemory", "0")
    await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_the_registry_recovers_when_a_replica_becomes_the_master(
    own_redis, start_daemon, connect
):
    master = own_redis()
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "A")
    await registry_is_right(redis, one)
    redis.ask("REPLICAOF", "127.0.0.1", str(master.port))
    with CapturedLog() as log:
        one.watch("2", "A", "B")
        one.leave("1")
        await until(lambda: log.count("the registry was not written: READONLY"), "the refusal")
        await until(lambda: redis.keys() == set(), "what its master has")
    redis.ask("REPLICAOF", "NO", "ONE")
    await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_user_without_eval_is_logged_and_the_registry_recovers_with_it(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    user = ["ACL", "SETUSER", "registry", "on", ">secret"]
    redis.ask(*user, "~*", "&*", "+@all", "-eval")
    with CapturedLog() as log:
        one = start_daemon(
            RedisAddress("127.0.0.1", server.port, user="registry", password="secret")
        )
        one.watch("1", "A")
        await until(lambda: log.count("the registry was not written: NOPERM"), "the refusal")
        assert one.registry._changes._differences == {}
        redis.ask(*user, "+eval")
        await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_entries_of_a_user_who_may_write_only_some_keys_are_found_and_corrected_later(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    user = ["ACL", "SETUSER", "registry", "on", ">secret"]
    redis.ask(*user, "~quotepush:node*", "~quotepush:client:*", "&*", "+@all")
    one = start_daemon(RedisAddress("127.0.0.1", server.port, user="registry", password="secret"))
    one.watch("1", "A")
    await until(lambda: one.counters.registry_failures > 2, "refusals")
    one.leave()
    await until(lambda: redis.sets().get("client:one.e1-1"), "what was written of it")
    redis.ask(*user, "~quotepush:*")
    await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_hangs_delays_nobody_and_the_registry_recovers(
    own_redis, start_daemon, connect, monkeypatch
):
    monkeypatch.setattr(connection, "_ANSWER_TIMEOUT", 0.2)
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "A", "B")
    await registry_is_right(redis, one)
    with CapturedLog() as log:
        server.process.send_signal(signal.SIGSTOP)
        try:
            one.unwatch("1", "B")
            one.watch("2", *[f"S{n}" for n in range(900)])
            await until(lambda: log.count("no answer in"), "the timeout")
            one.leave("2")
            one.watch("3", "C")
            publish(one.hub, ("A", b"1"))
            assert [e["ev"] for e in one.clients["1"].events()][-1] == "quote"
            assert one.registry.lag() > 0.1
        finally:
            server.process.send_signal(signal.SIGCONT)
        await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_the_registry_is_rewritten_when_redis_comes_back_empty(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server.url and redis_address(server.url))
    one.watch("1", "A", "B")
    await registry_is_right(redis, one)
    server.stop()
    await until(lambda: not one.up, "the loss")
    one.unwatch("1", "A")
    for client in range(100):
        one.watch(str(client), "C")
        one.leave(str(client))
    assert not one.registry._changes._differences
    assert not one.registry._changes._replacements
    one.watch("2", "C")
    publish(one.hub, ("C", b"7"))
    assert not one.registry._payloads
    redis = connect(own_redis(port=server.port))
    await registry_is_right(redis, one)
    await until(lambda: redis.hash("last") == {"C": b"7"}, "the payload")


@pytest_twisted.ensureDeferred
async def test_the_registry_is_rewritten_after_flushall(own_redis, start_daemon, connect):
    redis = connect(server := own_redis())
    one, two = start_daemon(server), start_daemon(server, "two", "e2")
    one.watch("1", "A", "B")
    two.watch("1", "B")
    publish(one.hub, ("A", b"1"))
    await until(lambda: redis.hash("last"), "the payload")
    await registry_is_right(redis, one, two)
    redis.ask("FLUSHALL")
    await registry_is_right(redis, one, two)
    await until(lambda: redis.hash("last") == {"A": b"1"}, "the payload")


@pytest_twisted.ensureDeferred
async def test_the_registry_is_corrected_when_redis_restores_an_older_state(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "A", "B")
    one.watch("2", "A")
    one.watch("3", "D")
    await registry_is_right(redis, one)
    old = {key: redis.ask("DUMP", key) for key in redis.ask("KEYS", "*")}
    one.unwatch("1", "A")
    one.unwatch("3", "D")
    one.leave("2")
    one.watch("4", "C")
    await registry_is_right(redis, one)
    redis.ask("MULTI")
    redis.ask("FLUSHALL")
    for key, value in old.items():
        redis.ask("RESTORE", key, "0", value)
    redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    redis.ask("EXEC")
    assert "client:one.e1-2" in redis.sets()
    await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_commands_of_an_aborted_connection_that_redis_reads_late_do_nothing(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "A")
    await registry_is_right(redis, one)
    late = one.registry._redis.script(scripts.CHANGE, one.node, 1, f"{one.node}-1", 0, 1, 0, "LATE")
    late_value = one.registry._redis.script(scripts.LAST, one.node, 1, 1, "A", "an old one")
    late_beat = one.registry._redis.script(scripts.BEAT, one.node, 1, 60, "pid", "0")
    redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: one.registry._redis.session == 2 and one.up, "a new connection")
    assert [redis.ask(*late), redis.ask(*late_value), redis.ask(*late_beat)] == [0, 0, -1]
    await registry_is_right(redis, one)
    assert redis.hash("last") == {}
    assert redis.hash(f"node:{one.node}")["session"] == b"2"


# -- nodes -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_a_dead_node_left_is_swept_by_a_living_one(own_redis, start_daemon, connect):
    server = own_redis()
    redis, publisher = connect(server), connect(server)
    left = {f"dead.e0-{n}": {"A", f"S{n}"} for n in range(300)}
    store_dead_node(redis, "dead.e0", left | {"dead.e0-many": {f"M{n}" for n in range(900)}})
    redis.ask("HSET", "quotepush:last", "A", "1", "S1", "1")
    publisher.listen()
    with CapturedLog() as log:
        one = start_daemon(server)
        one.watch("1", "A")
        await registry_is_right(redis, one)
        await until(lambda: log.count("swept what dead.e0 left in the registry") == 1, "a word")
    assert redis.hash("last").keys() <= {"A"}
    told = publisher.messages()
    assert sorted(told) == sorted([f"-S{n}" for n in range(300)] + [f"-M{n}" for n in range(900)])


@pytest_twisted.ensureDeferred
async def test_a_living_node_is_never_swept(own_redis, start_daemon, connect):
    redis = connect(server := own_redis())
    store_dead_node(redis, "other.e0", {"other.e0-1": {"A"}}, host="elsewhere", pid=NO_PROCESS)
    store_dead_node(redis, "dead.e0", {"dead.e0-1": {"A"}})
    one = start_daemon(server)
    one.watch("1", "B")
    await until(lambda: "client:dead.e0-1" not in redis.sets(), "the dead one's sweep")
    expected = expected_sets(one.expected, ("other.e0", {"other.e0-1": {"A"}}))
    await until(lambda: redis.sets() == expected, "the registry")
    calls = redis.ask("INFO", "commandstats")
    await until(lambda: redis.ask("INFO", "commandstats") != calls, "more looks for the dead")
    assert redis.sets() == expected
    redis.ask("DEL", "quotepush:node:other.e0")
    await registry_is_right(redis, one)


@pytest_twisted.ensureDeferred
async def test_an_earlier_life_of_the_same_node_is_swept_before_its_heartbeat_expires(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    host = socket.gethostname()
    store_dead_node(redis, "one.e0", {"one.e0-1": {"A"}}, host=host, pid=NO_PROCESS)
    store_dead_node(redis, "one-more.e0", {"one-more.e0-1": {"A"}}, host=host, pid=NO_PROCESS)
    store_dead_node(redis, "one.e9", {"one.e9-1": {"A"}}, host=host, pid=str(os.getppid()))
    store_dead_node(redis, "one.e8", {"one.e8-1": {"A"}}, host="elsewhere", pid=NO_PROCESS)
    one = start_daemon(server)
    one.watch("1", "B")
    expected = expected_sets(
        one.expected,
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
async def test_only_the_start_looks_for_earlier_lives(own_redis, start_daemon, connect):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "A")
    await registry_is_right(redis, one)
    host = socket.gethostname()
    store_dead_node(redis, "one.e0", {"one.e0-1": {"A"}}, host=host, pid=NO_PROCESS)
    store_dead_node(redis, "dead.e0", {"dead.e0-1": {"A"}})
    await until(lambda: "client:dead.e0-1" not in redis.sets(), "the dead one's sweep")
    redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: one.registry._redis.session == 2 and one.up, "a new connection")
    expected = expected_sets(one.expected, ("one.e0", {"one.e0-1": {"A"}}))
    await until(lambda: redis.sets() == expected, "the registry")


@pytest_twisted.ensureDeferred
async def test_a_node_that_others_swept_writes_everything_again(
    own_redis, start_daemon, connect, monkeypatch
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "A", "B")
    await registry_is_right(redis, one)
    for loop, _ in one.registry._loops:
        loop.stop()
    redis.ask("DEL", "quotepush:node:one.e1")
    two = start_daemon(server, "two", "e2")
    await registry_is_right(redis, two)
    one.watch("2", "C")
    one.unwatch("1", "A")
    for loop, interval in one.registry._loops:
        loop.start(interval, now=False)
    await registry_is_right(redis, one, two)


@pytest_twisted.ensureDeferred
async def test_a_node_that_was_swept_writes_nothing_before_its_next_heartbeat(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "A")
    await registry_is_right(redis, one)
    for loop, _ in one.registry._loops:
        loop.stop()
    redis.ask("FLUSHALL")
    one.watch("1", "B")
    await defer.Deferred.fromCoroutine(one.registry._write())
    assert redis.keys() == set()
    assert one.registry.lag() > 0
    await defer.Deferred.fromCoroutine(one.registry._write())
    await registry_is_right(redis, one)


# -- stop -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_stop_removes_everything_and_tells_publishers(own_redis, start_daemon, connect):
    server = own_redis()
    redis, publisher = connect(server), connect(server)
    publisher.listen()
    one = start_daemon(server)
    one.watch("1", *[f"S{n}" for n in range(700)])
    publish(one.hub, ("S1", b"1"))
    await until(lambda: redis.hash("last"), "the payload")
    await registry_is_right(redis, one)
    one.watch("2", "LATE")
    await one.registry.stop()
    await one.registry.stop()
    assert redis.keys() == set()
    told = publisher.messages()
    assert sum(text[0] == "+" for text in told) == sum(text[0] == "-" for text in told) >= 700


@pytest_twisted.ensureDeferred
async def test_stop_while_batches_are_in_flight_removes_everything(
    own_redis, start_daemon, connect
):
    redis = connect(server := own_redis())
    one = start_daemon(server)
    await until(lambda: one.up, "the link")
    for client in range(5):
        one.watch(str(client), *[f"S{n}" for n in range(1000)])
    writing = one.registry._run(one.registry._write())
    await one.registry.stop()
    assert writing.called, "nothing is in flight any more"
    assert redis.keys() == set()


@pytest_twisted.ensureDeferred
async def test_stop_does_not_wait_for_a_redis_that_hangs(
    own_redis, start_daemon, connect, monkeypatch
):
    monkeypatch.setattr(registry_module, "_STOP_TIMEOUT", 0.2)
    redis = connect(server := own_redis())
    one = start_daemon(server)
    one.watch("1", "A")
    await registry_is_right(redis, one)
    server.process.send_signal(signal.SIGSTOP)
    try:
        one.watch("2", "B")
        began = reactor.seconds()
        await one.registry.stop()
        assert reactor.seconds() - began < 2
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest_twisted.ensureDeferred
async def test_a_registry_without_a_redis_stops_at_once(start_daemon, own_redis):
    server = own_redis()
    server.stop()
    one = start_daemon(server)
    one.watch("1", "A")
    await until(lambda: one.registry._redis._link.failures, "a try")
    assert one.registry.lag() > 0
    await one.registry.stop()
