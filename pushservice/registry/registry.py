"""The registry: who watches what, mirrored in Redis for other programs, off the path of a quote.

Must not know: sockets of clients, commands, or how quotes flow. It is told of interest and of
quoted symbols, costs a dictionary's entry each, and writes behind, in batches, over a connection of
its own. Redis may be slow, full, read-only or gone: nothing waits for it, and when it is back it is
made right.
"""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import txredisapi
from twisted.internet import defer, task
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.fanout.topic import Topic
from pushservice.metrics import Counters
from pushservice.redis.link import RedisLink
from pushservice.redis.url import RedisAddress, RedisTLS
from pushservice.registry import scripts
from pushservice.registry.pending import Change, Mirror

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub

#: Seconds between two looks whether there is anything to write, and between two writes of payloads.
WRITE_EVERY: Final = 0.1
LAST_EVERY: Final = 0.5
#: Seconds after a write that failed.
RETRY_AFTER: Final = 1.0
#: Seconds between a node's heartbeats, and after which a silent one counts as dead.
BEAT_EVERY: Final = 5.0
DEAD_AFTER: Final = 15
#: Seconds between two looks for dead nodes.
SWEEP_EVERY: Final = 2.0

#: Symbols that are written before an answer is awaited, and in one script: Redis serves nobody
#: else while a script runs, quotes among them, and this is about a millisecond.
_BATCH: Final = 1000
_AT_ONCE: Final = 200
#: Payloads in one script, and about how many bytes.
_PAYLOADS: Final = 200
_PAYLOAD_BYTES: Final = 262_144
#: Clients that are listed at once.
_LISTED: Final = 1000
#: Seconds in which Redis has to answer, and for all that is done when the daemon stops.
_PATIENCE: Final = 5.0
_FAREWELL: Final = 2.0
#: Seconds between two log lines about one fault.
_LOG_EVERY: Final = 60.0
#: Where in a script Redis refused something, as its versions say it around the reason.
_NOISE: Final = re.compile(
    r"^ERR Error running script .*@user_script: \d+: -?| script: \w{40}, on @user_script:\d+\.$"
)


class NotAnswered(Exception):
    """Redis has been silent for too long."""


class Registry:
    """Mirrors one daemon's interest in Redis; see docs/registry.rst for the keys."""

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
        self._prefix = prefix
        self._counters = counters
        self._clock = reactor
        self._started_at = int(reactor.seconds())
        self._mirror = Mirror(reactor, hub.outboxes)
        # Watched symbols whose payload is to be written: because they were quoted, and because it
        # may not be there; then those of them for which nothing else has to be written before.
        self._quoted: dict[Topic, object] = {}
        self._kept: dict[Topic, object] = {}
        self._values: deque[tuple[Topic, bool]] = deque()
        # When the latter were gathered, and a time up to which all that was quoted is written.
        self._gathered_at: float = reactor.seconds()
        self._written_until = self._gathered_at
        # How many connections there have been. A script on an earlier one, which Redis may have
        # got and not read yet, must do nothing any more.
        self._session = 0
        # Whether Redis knows this connection as this node's, and so all that was written is there.
        self._known = False
        # Whether what an earlier life of this node left has been looked for.
        self._cleaned = False
        self._writing = False
        self._stopping = False
        self._not_before = 0.0
        self._link = RedisLink(
            "registry",
            reactor,
            address,
            txredisapi.RedisProtocol,
            lambda connection: connection.ping(),
            self._changed,
            tls=tls,
        )
        self._loops = [
            (self._loop(self._write), WRITE_EVERY),
            (self._loop(self._beat), BEAT_EVERY),
            (self._loop(self._sweep_the_dead), SWEEP_EVERY),
        ]
        self._running: set[defer.Deferred[None]] = set()
        self._logged_at: float | None = None

    # -- what the hub tells ----------------------------------------------------------------------

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """See Interest."""
        self._mirror.watch(client, symbol)
        if first and self._known:
            topic = self._hub.topic(symbol)
            if topic is not None and topic.payload is not None:
                self._kept[topic] = None

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """See Interest."""
        self._mirror.unwatch(client, symbol)

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """See Interest."""
        if self._known:
            self._quoted.update(topics)

    # -- how it stands ---------------------------------------------------------------------------

    def lag(self) -> float:
        """Seconds since the oldest change that Redis may not have yet; 0 where it has all."""
        return self._mirror.lag()

    # -- its life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect and to write; returns at once."""
        self._link.start()
        for loop, interval in self._loops:
            loop.start(interval, now=False)

    async def stop(self) -> None:
        """Take this node out and disconnect; in about two seconds at most. May be called twice."""
        self._stopping = True
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()
        if self._link.up is not None:
            # Where this takes too long, the others sweep the rest: the heartbeat goes first.
            farewell = defer.Deferred.fromCoroutine(self._sweep(self.node, force=True))
            farewell.addTimeout(_FAREWELL, self._clock).addErrback(self._note)
            await farewell
        await self._link.stop()
        # Without a connection they end at once.
        await defer.DeferredList(list(self._running))

    def _loop(self, call: Callable[[], Coroutine[Any, Any, None]]) -> task.LoopingCall:
        # A loop whose function fails ends for good.
        loop = task.LoopingCall(lambda: self._run(call()))
        loop.clock = self._clock
        return loop

    def _run(self, call: Coroutine[Any, Any, None]) -> defer.Deferred[None]:
        running = defer.Deferred.fromCoroutine(call).addErrback(self._note)
        if not running.called:
            self._running.add(running)
            running.addBoth(self._ended, running)
        return running

    def _ended(self, result: None, running: defer.Deferred[None]) -> None:
        self._running.discard(running)

    def _changed(self, up: bool) -> None:
        if up:
            self._session += 1
            self._not_before = 0.0
            self._run(self._write())
        else:
            self._lose()

    def _lose(self) -> None:
        """It is not known any more what Redis has, and can't be for now: nothing is kept."""
        self._known = False
        self._mirror.lose()
        self._gathered_at = self._written_until
        for values in (self._quoted, self._kept, self._values):
            values.clear()

    def _doubt(self) -> None:
        """It may be another Redis, an older or an empty one: write all that is true once more."""
        self._known = True
        self._mirror.doubt()
        for topic in self._hub.watched_topics():
            new = topic.t >= int(self._written_until * 1000)
            (self._quoted if new else self._kept)[topic] = None

    # -- what is written -------------------------------------------------------------------------

    async def _write(self) -> None:
        """Write until there is nothing to write, or that fails."""
        if self._writing or self._clock.seconds() < self._not_before:
            return
        self._writing = True
        try:
            while self._link.up is not None and not self._stopping and await self._write_some():
                pass
        except Exception:
            self._not_before = self._clock.seconds() + RETRY_AFTER
            # What is watched no more needs no payload, and would gather here.
            self._quoted = {topic: None for topic in self._quoted if topic.watched}
            self._kept = {topic: None for topic in self._kept if topic.watched}
            raise
        finally:
            self._writing = False

    async def _write_some(self) -> bool:
        """Do the next thing, in one round trip or a few; False where there was nothing to do."""
        if not self._known:
            await self._beat()
            return self._known
        if not self._cleaned:
            await self._sweep_earlier_lives()
            self._cleaned = True
        if self._mirror.strays:
            self._mirror.present(await self._list_clients())
            return True
        changes = self._mirror.take(_BATCH)
        commands = list(self._commands_of(changes))
        values = self._next_values()
        if values:
            commands.append(self._command_for(values))
        if not commands:
            self._note_values_written()
            return False
        try:
            answers = await self._ask(commands)
        except Exception:
            self._mirror.fail()
            if self._known:
                self._values.extendleft(reversed(values))
            raise
        if 0 in answers:
            # This process stood still, and others have swept what it had written.
            self._lose()
            return False
        self._mirror.confirm()
        self._note_values_written()
        self._counters.registry_writes += len(changes)
        self._say_that_it_works()
        return True

    def _commands_of(self, changes: list[Change]) -> Iterator[list[Any]]:
        """Scripts of about `_AT_ONCE` symbols each."""
        words: list[Any] = []
        size = 0
        for change in changes:
            words += [f"{self._name}.{change.client}", int(change.whole)]
            words += [len(change.more), len(change.less), *change.more, *change.less]
            size += change.size
            if size >= _AT_ONCE:
                yield self._script(scripts.CHANGE, self.node, self._session, *words)
                words, size = [], 0
        if words:
            yield self._script(scripts.CHANGE, self.node, self._session, *words)

    def _next_values(self) -> list[tuple[Topic, bool]]:
        """Symbols whose payloads are to be written next, and whether those are new."""
        if not self._mirror.all_taken:
            # That a symbol is watched has to be written before its payload, or together with it.
            return []
        now = self._clock.seconds()
        if not self._values and now >= self._gathered_at + LAST_EVERY:
            self._gathered_at = now
            self._values.extend(zip(self._quoted, repeat(True)))
            self._values.extend(zip(self._kept, repeat(False)))
            self._quoted.clear()
            self._kept.clear()
        taken: list[tuple[Topic, bool]] = []
        size = 0
        while self._values and len(taken) < _PAYLOADS and size < _PAYLOAD_BYTES:
            topic, new = self._values.popleft()
            if topic.watched and topic.payload is not None:
                taken.append((topic, new))
                size += len(topic.payload)
        return taken

    def _note_values_written(self) -> None:
        if not self._values:
            self._written_until = self._gathered_at

    def _command_for(self, values: list[tuple[Topic, bool]]) -> list[Any]:
        words: list[Any] = []
        for topic, _ in values:
            words += [topic.symbol, topic.payload]
        count = sum(new for _, new in values)
        return self._script(scripts.LAST, self.node, self._session, count, *words)

    async def _list_clients(self) -> list[str]:
        """The connections of this daemon of which Redis has anything."""
        found: list[str] = []
        cursor = b"0"
        skipped = len(self._name) + 1
        while True:
            key = f"{self._prefix}node:{self.node}:clients"
            [[cursor, page]] = await self._ask([["SSCAN", key, cursor, "COUNT", _LISTED]])
            found += [client.decode()[skipped:] for client in page]
            if cursor == b"0":
                return found

    # -- nodes -----------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Say that this node lives; find out whether Redis still has what was written."""
        if self._link.up is None or self._stopping:
            return
        fields: dict[str, object] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started_at,
            "connections": self._hub.count_outboxes(),
        }
        words = [word for field in fields.items() for word in field]
        beat = self._script(scripts.BEAT, self.node, self._session, DEAD_AFTER, *words)
        [alive] = await self._ask([beat])
        if alive != 1 or not self._known:
            self._doubt()

    async def _sweep_the_dead(self) -> None:
        """Take out what nodes have left whose heartbeat is over."""
        if not self._known or self._stopping:
            return
        [dead] = await self._ask([self._script(scripts.DEAD)])
        for node in dead:
            await self._sweep(node.decode(), force=False)

    async def _sweep_earlier_lives(self) -> None:
        """Take out what this daemon left when it ended without a farewell."""
        [nodes] = await self._ask([["SMEMBERS", f"{self._prefix}nodes"]])
        for node in map(bytes.decode, nodes):
            if node != self.node and node.rpartition(".")[0] == self._name:
                await self._sweep(node, force=await self._is_over(node))

    async def _is_over(self, node: str) -> bool:
        """Whether the process of `node` ran on this host and is there no more."""
        key = f"{self._prefix}node:{node}"
        [[host, pid]] = await self._ask([["HMGET", key, "host", "pid"]])
        return pid is not None and host == socket.gethostname().encode() and not _runs(int(pid))

    async def _sweep(self, node: str, *, force: bool) -> None:
        """Take out what `node` left; where it lives, only by `force`."""
        left = 1
        while left > 0:
            [left] = await self._ask([self._script(scripts.SWEEP, node, _AT_ONCE, int(force))])
        if left == 0 and node != self.node:
            self.log.info("swept what {node} left in the registry", node=node)

    # -- Redis -----------------------------------------------------------------------------------

    def _script(self, script: str, *words: Any) -> list[Any]:
        return ["EVAL", script, 0, self._prefix, *words]

    async def _ask(self, commands: list[list[Any]]) -> list[Any]:
        """Send commands in one go and wait for all answers; raises where any is an error."""
        connection = self._link.up
        if connection is None:
            raise txredisapi.ConnectionError("Redis is gone")
        silent: list[bool] = []

        def give_up() -> None:
            silent.append(True)
            self._link.abort()

        patience = self._clock.callLater(_PATIENCE, give_up)
        try:
            asked = [connection.execute_command(*command) for command in commands]
            answers = await defer.DeferredList(asked, consumeErrors=True)
        finally:
            if patience.active():
                patience.cancel()
        for succeeded, answer in answers:
            if not succeeded:
                self._counters.registry_failures += 1
                if silent:
                    raise NotAnswered(f"no answer in {_PATIENCE:.0f} seconds")
                answer.raiseException()
        return [answer for _, answer in answers]

    def _note(self, failure: Failure) -> None:
        if not failure.check(
            txredisapi.RedisError, NotAnswered, defer.TimeoutError, defer.CancelledError
        ):
            self.log.failure("the registry failed", failure)
            return
        now = self._clock.seconds()
        if not self._stopping and (self._logged_at is None or now - self._logged_at >= _LOG_EVERY):
            self._logged_at = now
            self.log.warn(
                "the registry was not written: {reason}; quotes flow on, and it is tried again",
                reason=_NOISE.sub("", failure.getErrorMessage()),
            )

    def _say_that_it_works(self) -> None:
        if self._logged_at is not None:
            self._logged_at = None
            self.log.info("the registry is written again")


def _runs(pid: int) -> bool:
    """Whether a process `pid` is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
