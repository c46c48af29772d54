"""The registry against a model of Redis, and against Redis: whatever happens, it ends up right.

Two daemons' registries write over connections that the test plays. Answers are delayed, refused, or
lost with a part of what was sent; what Redis received over a lost connection may run much later.
Redis loses all its data or restores an older state; a daemon is suspended and swept, or is killed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import txredisapi
from core_doubles import Client, FixedClock, publish
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from redis_client import RedisClient, expected_sets
from redis_process import start_redis
from twisted.internet import defer

from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.metrics import Counters
from pushservice.redis.url import RedisAddress
from pushservice.registry import nodes, scripts
from pushservice.registry import registry as registry_module
from pushservice.registry.registry import Registry
from pushservice.service.sources import Interests

PREFIX = "q:"
SYMBOLS = ["A", "B", "C", "D"]
NAMES = ["one", "two"]
#: a process that is not there; there are no numbers that high
NO_PROCESS = 2**30

Words = list[Any]


class Refused(txredisapi.ResponseError):
    """What Redis answers where it does not do something."""


# -- two kinds of Redis ----------------------------------------------------------------------------


class RedisModel:
    """What the scripts do, in Python. `room` is how many writes are left until it is full."""

    def __init__(self) -> None:
        self.sets: dict[str, set[str]] = {}
        self.hashes: dict[str, dict[str, Any]] = {}
        self.demand: list[str] = []
        self.room: int | None = None

    # -- commands

    def _write(self) -> None:
        if self.room is not None:
            if not self.room:
                raise Refused("OOM command not allowed when used memory > 'maxmemory'.")
            self.room -= 1

    def _add(self, key: str, member: str) -> None:
        self._write()
        self.sets.setdefault(PREFIX + key, set()).add(member)

    def _remove(self, key: str, member: str) -> None:
        self._write()
        members = self.members(key)
        members.discard(member)
        if not members:
            self.sets.pop(PREFIX + key, None)

    def members(self, key: str) -> set[str]:
        return self.sets.get(PREFIX + key, set())

    def _drop(self, client: str, symbol: str) -> None:
        self._remove(f"symbol:{symbol}", client)
        if not self.members(f"symbol:{symbol}"):
            self.hashes.get(PREFIX + "last", {}).pop(symbol, None)
            if symbol in self.members("symbols"):
                self.demand.append("-" + symbol)
                self._remove("symbols", symbol)
        self._remove(f"client:{client}", symbol)

    def session(self, node: str) -> int | None:
        return self.hashes.get(f"{PREFIX}node:{node}", {}).get("session")

    # -- scripts

    def beat(self, node: str, session: int, seconds: int, *fields: object) -> int:
        before = self.session(node)
        if before is not None and before > session:
            return -1
        self._add("nodes", node)
        fields = ("session", session, *fields)
        values = dict(zip(fields[::2], fields[1::2], strict=True))
        self.hashes.setdefault(f"{PREFIX}node:{node}", {}).update(values)
        return int(before == session)

    def change(self, node: str, session: int, *words: Any) -> int:
        if self.session(node) != session:
            return 0
        left = deque(words)
        while left:
            client, whole, more, less = (left.popleft() for _ in range(4))
            added = [left.popleft() for _ in range(more)]
            for symbol in [left.popleft() for _ in range(less)]:
                self._drop(client, symbol)
            if whole:
                for symbol in self.members(f"client:{client}") - set(added):
                    self._drop(client, symbol)
            if added:
                self._add(f"node:{node}:clients", client)
            for symbol in added:
                self._add(f"client:{client}", symbol)
                self._add(f"symbol:{symbol}", client)
                if symbol not in self.members("symbols"):
                    self.demand.append("+" + symbol)
                    self._add("symbols", symbol)
            if not added and not self.members(f"client:{client}"):
                self._remove(f"node:{node}:clients", client)
        return 1

    def last(self, node: str, session: int, new: int, *words: Any) -> int:
        if self.session(node) != session:
            return 0
        for at, (symbol, payload) in enumerate(zip(words[::2], words[1::2], strict=True)):
            if symbol in self.members("symbols"):
                self._write()
                last = self.hashes.setdefault(PREFIX + "last", {})
                last[symbol] = payload if at < new else last.get(symbol, payload)
        return 1

    def dead(self) -> list[bytes]:
        return [node.encode() for node in self.members("nodes") if self.session(node) is None]

    def sweep(self, node: str, budget: int, force: int) -> int:
        if force:
            self.hashes.pop(f"{PREFIX}node:{node}", None)
        elif self.session(node) is not None:
            return -1
        while budget > 0:
            clients = self.members(f"node:{node}:clients")
            if not clients:
                known = node in self.members("nodes")
                self._remove("nodes", node)
                return known - 1
            client = min(clients)
            for symbol in sorted(self.members(f"client:{client}"))[:budget]:
                self._drop(client, symbol)
                budget -= 1
            if not self.members(f"client:{client}"):
                self._remove(f"node:{node}:clients", client)
            budget -= 1
        return 1

    # -- what a connection sends

    def command(self, *words: Any) -> Any:
        match words:
            case ("EVAL", script, 0, prefix, *rest):
                assert prefix == PREFIX
                return self._scripts[script](self, *rest)
            case ("SSCAN", key, *_):
                return [b"0", [member.encode() for member in self.sets.get(key, ())]]
            case ("SMEMBERS", key):
                return [member.encode() for member in self.sets.get(key, ())]
            case ("HMGET", key, *names):
                found = self.hashes.get(key, {})
                return [str(found[name]).encode() if name in found else None for name in names]
        raise AssertionError(words)

    _scripts: ClassVar[dict[str, Callable[..., Any]]] = {
        scripts.BEAT: beat,
        scripts.CHANGE: change,
        scripts.LAST: last,
        scripts.DEAD: dead,
        scripts.SWEEP: sweep,
    }

    # -- what happens to it

    def expire(self, node: str) -> None:
        self.hashes.pop(f"{PREFIX}node:{node}", None)

    def flush(self) -> None:
        self.sets.clear()
        self.hashes.clear()

    def save(self) -> Any:
        return (
            {key: set(members) for key, members in self.sets.items()},
            {key: dict(values) for key, values in self.hashes.items()},
        )

    def restore(self, saved: Any) -> None:
        self.sets = {key: set(members) for key, members in saved[0].items()}
        self.hashes = {key: dict(values) for key, values in saved[1].items()}

    def contents(self) -> tuple[dict[str, set[str]], dict[str, bytes]]:
        """All sets without the prefix, and the latest payloads."""
        found = {key.removeprefix(PREFIX): members for key, members in self.sets.items()}
        return found, self.hashes.get(PREFIX + "last", {})

    def close(self) -> None:
        pass


class RealRedis:
    """The same with a redis-server, which runs the Lua scripts."""

    room = None

    def __init__(self, path: str) -> None:
        self._client = RedisClient(path, PREFIX)
        self.command("FLUSHALL")

    def command(self, *words: Any) -> Any:
        return self._client.ask(*words)

    def expire(self, node: str) -> None:
        self.command("DEL", f"{PREFIX}node:{node}")

    def flush(self) -> None:
        self.command("FLUSHALL")

    def save(self) -> Any:
        return {key: self.command("DUMP", key) for key in self.command("KEYS", "*")}

    def restore(self, saved: Any) -> None:
        self.command("FLUSHALL")
        for key, value in saved.items():
            self.command("RESTORE", key, 0, value)

    def contents(self) -> tuple[dict[str, set[str]], dict[str, bytes]]:
        return self._client.sets(), self._client.hash("last")

    def close(self) -> None:
        self._client.close()


# -- connections and daemons -----------------------------------------------------------------------


class Connection:
    """A connection to the Redis of a test: what is sent waits while it is `held`."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis
        self.held = False
        self.refusing = False
        self._sent: deque[tuple[Words, defer.Deferred[Any]]] = deque()

    def execute_command(self, *words: Any) -> defer.Deferred[Any]:
        answer: defer.Deferred[Any] = defer.Deferred()
        self._sent.append((list(words), answer))
        if not self.held:
            self.release()
        return answer

    def release(self) -> None:
        """Have Redis read all that was sent, and answer."""
        self.held = False
        while self._sent and not self.held:
            words, answer = self._sent.popleft()
            try:
                reply = None if self.refusing else self.redis.command(*words)
            except Refused as refusal:
                answer.errback(refusal)
            else:
                if self.refusing:
                    answer.errback(Refused("READONLY You can't write against a replica."))
                else:
                    answer.callback(reply)

    def lose(self, done: int) -> list[Words]:
        """The connection breaks: Redis ran `done` commands; returns those it has not read yet."""
        sent, self._sent = list(self._sent), deque()
        for words, _ in sent[:done]:
            self.redis.command(*words)
        for _, answer in sent:
            answer.errback(txredisapi.ConnectionError("Lost connection"))
        return [words for words, _ in sent[done:]]


class Link:
    """The part of RedisLink that the registry uses."""

    def __init__(self) -> None:
        self.up: Connection | None = None


class Node:
    """One life of a daemon: a hub with clients, and its registry."""

    def __init__(self, name: str, life: int, redis: Any, clock: FixedClock) -> None:
        self.redis = redis

        def failed(outbox: object, failure: Exception) -> None:
            raise failure

        interests = Interests()
        self.hub = Hub(clock, f"{name}{life}", Counters(), TurnHooks(failed), interest=interests)
        self.registry = Registry(
            clock, RedisAddress(path="/nowhere"), PREFIX, name, self.hub, Counters()
        )
        interests.listeners.append(self.registry)
        self.link = self.registry._redis._link = Link()
        self.clients: list[Client] = []
        self.count = 0
        self.written: set[str] = set()

    def connect(self) -> None:
        if self.link.up is None:
            self.link.up = Connection(self.redis)
            self.registry._redis._link_changed(True)

    def lose(self, done: int) -> list[Words]:
        connection, self.link.up = self.link.up, None
        if connection is None:
            return []
        self.registry._redis._link_changed(False)
        return connection.lose(done)

    def run(self, call: Callable[[], Any]) -> None:
        self.registry._run(call())

    def come(self) -> Client:
        self.count += 1
        self.clients.append(Client(self.hub, f"{self.hub.epoch}-{self.count}"))
        return self.clients[-1]

    def expected(self) -> dict[str, set[str]]:
        """By client id, what it watches."""
        return {
            f"{self.registry._name}.{client.outbox.conn}": {
                topic.symbol for topic in client.outbox.topics
            }
            for client in self.clients
            if client.outbox.topics
        }

    def known(self, sets: dict[str, set[str]]) -> set[str]:
        """The clients that were connected or written since all was written."""
        if self.registry._changes.all_taken:
            self.written.clear()
        found = sets.get(f"node:{self.registry.node}:clients", set())
        self.written |= {client.removeprefix(f"{self.registry._name}.") for client in found}
        self.written |= {client.outbox.conn for client in self.clients}
        self.written |= {change.client for _, change in self.registry._changes._in_flight}
        return self.written

    def end(self) -> None:
        self.lose(0)
        for client in self.clients:
            client.session.close()


class RegistryAgainstModel(RuleBasedStateMachine):
    """Rules do what may happen to two daemons and Redis; at the end all faults are over."""

    def make(self) -> Any:
        return RedisModel()

    @initialize(script=st.sampled_from([1, 2, 200]), batch=st.sampled_from([1, 3, 1000]))
    def begin(self, script: int, batch: int) -> None:
        self.sizes = (registry_module._SCRIPT_BATCH, nodes._BATCH, registry_module._BATCH)
        registry_module._SCRIPT_BATCH, nodes._BATCH, registry_module._BATCH = script, script, batch
        self.clock = FixedClock()
        self.redis = self.make()
        self.lives = 0
        self.nodes = [self.node(name) for name in NAMES]
        self.unread: list[Words] = []
        self.saved: list[Any] = []
        self.quotes = 0
        self.payloads: dict[str, bytes] = {}

    def node(self, name: str) -> Node:
        self.lives += 1
        made = Node(name, self.lives, self.redis, self.clock)
        made.connect()
        return made

    nodes_at = st.sampled_from([0, 1])
    some_symbols = st.sets(st.sampled_from(SYMBOLS), min_size=1)

    # -- clients

    @rule(at=nodes_at, symbols=some_symbols)
    def come(self, at: int, symbols: set[str]) -> None:
        client = self.nodes[at].come()
        client.say({"op": "subscribe", "symbols": sorted(symbols)})

    @rule(at=nodes_at, which=st.integers(0, 5), symbols=some_symbols, op=st.booleans())
    def change(self, at: int, which: int, symbols: set[str], op: bool) -> None:
        clients = self.nodes[at].clients
        if clients:
            said = {"op": "subscribe" if op else "unsubscribe", "symbols": sorted(symbols)}
            clients[which % len(clients)].say(said)

    @rule(at=nodes_at, which=st.integers(0, 5))
    def leave(self, at: int, which: int) -> None:
        clients = self.nodes[at].clients
        if clients:
            clients.pop(which % len(clients)).session.close()

    @rule(symbols=some_symbols)
    def quote(self, symbols: set[str]) -> None:
        for symbol in sorted(symbols):
            self.quotes += 1
            self.payloads[symbol] = b"%d" % self.quotes
        for node in self.nodes:
            publish(node.hub, *[(symbol, self.payloads[symbol]) for symbol in sorted(symbols)])

    # -- the registry

    @rule(at=nodes_at)
    def write(self, at: int) -> None:
        self.clock.rightNow += 1
        self.saved = [*self.saved[-2:], self.redis.save()]
        self.nodes[at].run(self.nodes[at].registry._write)

    def change_a_few(self, at: int, symbols: set[str]) -> None:
        """Give it something to write."""
        self.come(at, symbols)
        self.change(at, 0, symbols, len(symbols) > 1)

    @rule(at=nodes_at, room=st.integers(0, 12), symbols=some_symbols, gone=st.booleans())
    def fail_to_write(self, at: int, room: int, symbols: set[str], gone: bool) -> None:
        """Redis refuses it, or is full once it has written a part."""
        self.change_a_few(at, symbols)
        node = self.nodes[at]
        if node.link.up is not None:
            if gone:
                self.write(at)
                self.leave(at, 0)
            self.redis.room = room
            node.link.up.refusing = room == 0
            self.write(at)
            self.redis.room = None
            if node.link.up is not None:
                node.link.up.refusing = False

    @rule(at=nodes_at)
    def beat(self, at: int) -> None:
        self.nodes[at].run(self.nodes[at].registry._beat)

    @rule(at=nodes_at)
    def sweep(self, at: int) -> None:
        self.nodes[at].run(self.nodes[at].registry._sweep_dead)

    # -- what goes wrong

    @rule(at=nodes_at, held=st.booleans())
    def hold(self, at: int, held: bool) -> None:
        connection = self.nodes[at].link.up
        if connection is not None:
            connection.held = held
            if not held:
                connection.release()

    @rule(at=nodes_at, done=st.integers(0, 3), again=st.booleans())
    def lose(self, at: int, done: int, again: bool) -> None:
        self.unread += self.nodes[at].lose(done)
        if again:
            self.nodes[at].connect()

    @rule(at=nodes_at, done=st.integers(0, 3), again=st.booleans(), symbols=some_symbols)
    def lose_while_it_writes(self, at: int, done: int, again: bool, symbols: set[str]) -> None:
        self.change_a_few(at, symbols)
        self.hold(at, held=True)
        self.write(at)
        self.lose(at, done, again)

    @rule(at=nodes_at)
    def connect(self, at: int) -> None:
        self.nodes[at].connect()

    @rule()
    def read_what_was_sent_long_ago(self) -> None:
        unread, self.unread = self.unread, []
        for words in unread:
            self.redis.command(*words)

    @rule(at=nodes_at)
    def be_suspended(self, at: int) -> None:
        self.redis.expire(self.nodes[at].registry.node)

    @rule(at=nodes_at, over=st.booleans())
    def be_killed_and_restarted(self, at: int, over: bool) -> None:
        old = self.nodes[at]
        self.unread += old.lose(0)
        old.end()
        if over:
            self.redis.expire(old.registry.node)
        self.clock.rightNow += 1
        self.nodes[at] = self.node(NAMES[at])
        for symbol, payload in self.payloads.items():
            publish(self.nodes[at].hub, (symbol, payload))

    @rule()
    def flush(self) -> None:
        self.redis.flush()

    @rule(which=st.integers(0, 2))
    def restore_an_older_state(self, which: int) -> None:
        if which >= len(self.saved):
            return
        for node in self.nodes:
            node.lose(0)
        self.unread.clear()
        self.redis.restore(self.saved[which])

    # -- what must hold

    @invariant()
    def memory_is_bounded(self) -> None:
        if not hasattr(self, "nodes"):
            return
        for node in self.nodes:
            changes = node.registry._changes
            kept = len(changes._replacements) + sum(
                len(each.symbols) for each in changes._differences.values()
            )
            if changes.offline:
                assert not kept
                assert not changes._in_flight
            known = node.known(self.redis.contents()[0])
            assert kept <= len(known) * len(SYMBOLS), "no more than is true and written"
            assert changes._replacements.keys() | changes._differences.keys() <= known
            assert all(pending.symbols for pending in changes._differences.values())

    def end_all_faults(self) -> None:
        """Connect, answer, and expire the heartbeats of lives that are over."""
        alive = {node.registry.node for node in self.nodes}
        for node in self.nodes:
            node.connect()
            node.link.up.release()
        for _ in range(3):
            for name in self.redis.contents()[0].get("nodes", set()) - alive:
                self.redis.expire(name)
            for at in (0, 1):
                self.beat(at)
                self.write(at)
                self.sweep(at)
            self.read_what_was_sent_long_ago()

    def check(self) -> None:
        expected = expected_sets(*[(node.registry.node, node.expected()) for node in self.nodes])
        sets, last = self.redis.contents()
        assert sets == expected
        watched = expected.get("symbols", set())
        assert last.keys() == watched & self.payloads.keys()
        for node in self.nodes:
            assert node.registry.lag() == 0
            assert node.registry._changes.all_taken
            assert not node.registry._changes._in_flight

    def teardown(self) -> None:
        if not hasattr(self, "nodes"):
            return
        try:
            self.end_all_faults()
            self.check()
            # The next quote replaces a payload that was lost with a node or a connection.
            self.quote(set(SYMBOLS))
            self.clock.rightNow += 1
            self.end_all_faults()
            self.check()
            watched, last = self.redis.contents()
            assert last == {symbol: self.payloads[symbol] for symbol in watched.get("symbols", ())}
            for node in self.nodes:
                for client in node.clients:
                    client.session.close()
            self.clock.rightNow += 1
            self.end_all_faults()
            sets, last = self.redis.contents()
            assert sets == {"nodes": {node.registry.node for node in self.nodes}}
            assert not last
        finally:
            for node in self.nodes:
                node.end()
            for call in self.clock.getDelayedCalls():
                call.cancel()
            self.redis.close()
            registry_module._SCRIPT_BATCH, nodes._BATCH, registry_module._BATCH = self.sizes


class RegistryAgainstRedis(RegistryAgainstModel):
    """The same with the scripts in a redis-server."""

    path = ""

    def make(self) -> Any:
        return RealRedis(self.path)


TestRegistryAgainstModel = RegistryAgainstModel.TestCase
TestRegistryAgainstModel.settings = settings(
    max_examples=2 * settings.default.max_examples, stateful_step_count=40
)


class TestRegistryAgainstRedis(RegistryAgainstRedis.TestCase):
    settings = settings(max_examples=20, stateful_step_count=40)

    def setUp(self) -> None:
        super().setUp()
        self.directory = tempfile.mkdtemp(prefix="quotepush-test-")
        self.server = start_redis(self.directory)
        RegistryAgainstRedis.path = self.server.path

    def tearDown(self) -> None:
        self.server.stop()
        shutil.rmtree(self.directory)
        super().tearDown()
