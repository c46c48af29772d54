"""The registry: writes to Redis who watches what, for other programs, off the path of a quote.

Must not know: sockets of clients, commands, or how quotes flow. The hub reports what is watched and
quoted; each report costs a dictionary entry and is written later, in batches, over a connection of
the registry's own. Redis may be slow, full, read-only or gone: nothing waits for it, and once it
can be written again, what it holds is made right.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import defer, task
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.fanout.topic import Topic
from pushservice.metrics import Counters
from pushservice.redis.url import RedisAddress, RedisTLS
from pushservice.registry import scripts
from pushservice.registry.connection import REDIS_FAULTS, Command, RegistryConnection, fault_text
from pushservice.registry.nodes import NodeSweeper
from pushservice.registry.payloads import PendingPayloads
from pushservice.registry.pending import Change, PendingChanges

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub

#: Seconds between two checks whether there is anything to write.
WRITE_EVERY: Final = 0.1
#: Seconds after a write that failed.
RETRY_AFTER: Final = 1.0
#: Seconds between a node's heartbeats, and after which a silent node counts as dead.
HEARTBEAT_EVERY: Final = 5.0
DEAD_AFTER: Final = 15
#: Seconds between two searches for dead nodes.
SWEEP_EVERY: Final = 2.0

#: Symbols that are written before an answer is awaited, and in one script: Redis serves nobody
#: else while a script runs, quotes included, and this takes about a millisecond.
_BATCH: Final = 1000
_SCRIPT_BATCH: Final = 200
#: Clients that one SSCAN lists.
_LISTED: Final = 1000
#: Seconds in which this node is to be swept when the daemon stops.
_STOP_TIMEOUT: Final = 2.0
#: Seconds between two log lines about one fault.
_LOG_EVERY: Final = 60.0


class Registry:
    """Keeps one daemon's subscriptions in Redis; see docs/registry.rst for the keys."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        prefix: str,
        node: str,
        hub: Hub,
        counters: Counters,
        tls: RedisTLS | None = None,
    ) -> None:
        """`node` names this daemon through its lives; with the hub's epoch it names this life.

        Raises ValueError as RedisLink does.
        """
        self.node = f"{node}.{hub.epoch}"
        self._hub = hub
        self._name = node
        self._counters = counters
        self._clock = reactor
        self._started_at = int(reactor.seconds())
        self._changes = PendingChanges(reactor, hub.outboxes)
        self._payloads = PendingPayloads(reactor.seconds())
        # Whether Redis knows this connection as this node's, so that all that was written is there.
        self._in_sync = False
        # Whether the entries of this node's earlier lives have been swept.
        self._swept_earlier_lives = False
        self._writing = False
        self._stopping = False
        self._not_before = 0.0
        self._redis = RegistryConnection(reactor, address, prefix, counters, self._changed, tls)
        self._sweeper = NodeSweeper(self._redis, node, self.node)
        self._loops = [
            (self._loop(self._write), WRITE_EVERY),
            (self._loop(self._beat), HEARTBEAT_EVERY),
            (self._loop(self._sweep_dead), SWEEP_EVERY),
        ]
        self._running: set[defer.Deferred[None]] = set()
        self._logged_at: float | None = None

    # -- called by the hub -----------------------------------------------------------------------

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """See Interest."""
        self._changes.watch(client, symbol)
        if first and self._in_sync:
            topic = self._hub.topic(symbol)
            if topic is not None and topic.payload is not None:
                self._payloads.add_known(topic)

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """See Interest."""
        self._changes.unwatch(client, symbol)

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """See Interest."""
        if self._in_sync:
            self._payloads.add_quoted(topics)

    # -- status ----------------------------------------------------------------------------------

    def lag(self) -> float:
        """Seconds since the oldest change that Redis may not have yet; 0 if it has all."""
        return self._changes.lag()

    # -- start and stop --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect and to write; returns at once."""
        self._redis.start()
        for loop, interval in self._loops:
            loop.start(interval, now=False)

    async def stop(self) -> None:
        """Remove this node and disconnect; in about two seconds at most. May be called twice."""
        self._stopping = True
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()
        if self._redis.up:
            # The heartbeat is removed first: what is left at the timeout, other nodes sweep.
            sweep = defer.Deferred.fromCoroutine(self._sweeper.sweep(self.node, force=True))
            sweep.addTimeout(_STOP_TIMEOUT, self._clock).addErrback(self._log_failure)
            await sweep
        await self._redis.stop()
        # Without a connection they end at once.
        await defer.DeferredList(list(self._running))

    def _loop(self, call: Callable[[], Coroutine[Any, Any, None]]) -> task.LoopingCall:
        # A LoopingCall whose function fails never calls it again: so `_run` fails never.
        loop = task.LoopingCall(lambda: self._run(call()))
        loop.clock = self._clock
        return loop

    def _run(self, call: Coroutine[Any, Any, None]) -> defer.Deferred[None]:
        running = defer.Deferred.fromCoroutine(call).addErrback(self._log_failure)
        if not running.called:
            self._running.add(running)
            running.addBoth(self._ended, running)
        return running

    def _ended(self, result: None, running: defer.Deferred[None]) -> None:
        self._running.discard(running)

    # -- in sync with Redis or not ---------------------------------------------------------------

    def _changed(self, up: bool) -> None:
        if up:
            self._not_before = 0.0
            self._run(self._write())
        else:
            self._lose_sync()

    def _lose_sync(self) -> None:
        """What Redis holds is unknown, and can't be found out for now: keep nothing."""
        self._in_sync = False
        self._changes.go_offline()
        self._payloads.clear()

    def _resync(self) -> None:
        """It may be another Redis, an older or an empty one: write everything again."""
        self._in_sync = True
        self._changes.resync()
        self._payloads.resync(self._hub.watched_topics())

    async def _beat(self) -> None:
        """Send this node's heartbeat; its answer tells whether Redis still has what was written."""
        if not self._redis.up or self._stopping:
            return
        fields: dict[str, object] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started_at,
            "connections": self._hub.count_outboxes(),
        }
        words = [word for field in fields.items() for word in field]
        beat = self._script(scripts.BEAT, DEAD_AFTER, *words)
        [alive] = await self._redis.execute([beat])
        if alive != 1 or not self._in_sync:
            self._resync()

    async def _sweep_dead(self) -> None:
        if self._in_sync and not self._stopping:
            await self._sweeper.sweep_dead()

    # -- writing ---------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Write until everything is written, or a write fails."""
        if self._writing or self._clock.seconds() < self._not_before:
            return
        self._writing = True
        try:
            while self._redis.up and not self._stopping and await self._write_batch():
                pass
        except Exception:
            self._not_before = self._clock.seconds() + RETRY_AFTER
            self._payloads.drop_unwatched()
            raise
        finally:
            self._writing = False

    async def _write_batch(self) -> bool:
        """Do the next step, in one round trip or a few; False if there was nothing to do."""
        if not self._in_sync:
            await self._beat()
            return self._in_sync
        if not self._swept_earlier_lives:
            await self._sweeper.sweep_earlier_lives()
            self._swept_earlier_lives = True
        if self._changes.needs_reconcile:
            self._changes.reconcile(await self._list_clients())
            return True
        changes = self._changes.take(_BATCH)
        commands = list(self._commands_of(changes))
        # A symbol has to be written as watched before its payload, or together with it.
        payloads = self._payloads.take(self._clock.seconds()) if self._changes.all_taken else []
        if payloads:
            commands.append(self._payload_command(payloads))
        if not commands:
            self._payloads.confirm()
            return False
        try:
            answers = await self._redis.execute(commands)
        except Exception:
            self._changes.fail()
            if self._in_sync:
                self._payloads.put_back(payloads)
            raise
        if 0 in answers:
            # This process was suspended for a while, and other nodes swept what it had written.
            self._lose_sync()
            return False
        self._changes.confirm()
        self._payloads.confirm()
        self._counters.registry_writes += len(changes)
        self._log_recovery()
        return True

    def _commands_of(self, changes: list[Change]) -> Iterator[Command]:
        """Scripts of about `_SCRIPT_BATCH` symbols each."""
        words: list[Any] = []
        size = 0
        for change in changes:
            words += [f"{self._name}.{change.client}", int(change.replaces)]
            words += [len(change.added), len(change.removed), *change.added, *change.removed]
            size += change.size
            if size >= _SCRIPT_BATCH:
                yield self._script(scripts.CHANGE, *words)
                words, size = [], 0
        if words:
            yield self._script(scripts.CHANGE, *words)

    def _payload_command(self, payloads: list[tuple[Topic, bool]]) -> Command:
        words: list[Any] = []
        for topic, _ in payloads:
            words += [topic.symbol, topic.payload]
        return self._script(scripts.LAST, sum(new for _, new in payloads), *words)

    def _script(self, script: str, *words: Any) -> Command:
        """A script that does nothing unless this node lives and this is its latest connection."""
        return self._redis.script(script, self.node, self._redis.session, *words)

    async def _list_clients(self) -> list[str]:
        """The connection ids of this daemon's clients that Redis has entries of."""
        found: list[str] = []
        cursor = b"0"
        skipped = len(self._name) + 1
        key = f"{self._redis.prefix}node:{self.node}:clients"
        while True:
            scan = ["SSCAN", key, cursor, "COUNT", _LISTED]
            [[cursor, page]] = await self._redis.execute([scan])
            found += [client.decode()[skipped:] for client in page]
            if cursor == b"0":
                return found

    # -- the log ---------------------------------------------------------------------------------

    def _log_failure(self, failure: Failure) -> None:
        if not failure.check(*REDIS_FAULTS):
            self.log.failure("the registry failed", failure)
            return
        now = self._clock.seconds()
        if not self._stopping and (self._logged_at is None or now - self._logged_at >= _LOG_EVERY):
            self._logged_at = now
            self.log.warn(
                "the registry was not written: {reason}; quotes flow on, and it is tried again",
                reason=fault_text(failure),
            )

    def _log_recovery(self) -> None:
        if self._logged_at is not None:
            self._logged_at = None
            self.log.info("the registry is written again")
