"""Values that publishers keep in a Redis hash, for first subscribers and after an outage.

Must not know: clients, or how values reach them. It reads in batches, over connections of its own:
one that listens to channels takes no other commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import txredisapi
from twisted.internet import defer
from twisted.logger import Logger

from pushservice.fanout.interfaces import DelayedCall
from pushservice.fanout.topic import Topic
from pushservice.metrics import Counters
from pushservice.redis.link import RedisLink
from pushservice.redis.url import RedisAddress, RedisTLS

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from pushservice.fanout.hub import Hub

#: Symbols that one command asks for.
_BATCH: Final = 500
#: Seconds in which Redis has to answer, and to wait before asking again where it did not.
_PATIENCE: Final = 2.0
_RETRY_AFTER: Final = 1.0
#: Seconds between two log lines about one fault.
_LOG_EVERY: Final = 60.0


class SnapshotHash:
    """Reads the hash `name` of each Redis: symbol to latest payload."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[RedisAddress],
        name: str,
        hub: Hub,
        counters: Counters,
        tls: RedisTLS | None = None,
    ) -> None:
        self._clock = reactor
        self._name = name
        self._hub = hub
        self._counters = counters
        # Values from before are out of date unless somebody watched: milliseconds since the epoch.
        self._missed_until = 0
        # What is to be asked for, with its `n` now, and whether everybody wants to know.
        self._wanted: dict[str, tuple[int, bool]] = {}
        self._call: DelayedCall | None = None
        self._asking = False
        self._stopped = False
        self._logged_at: float | None = None
        self._links = [
            RedisLink(
                "snapshots",
                reactor,
                address,
                txredisapi.RedisProtocol,
                lambda connection: connection.ping(),
                self._changed,
                tls=tls,
            )
            for address in addresses
        ]

    def start(self) -> None:
        """Begin to connect; returns at once."""
        for link in self._links:
            link.start()

    async def stop(self) -> None:
        """Ask for nothing more."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._wanted.clear()
        for link in self._links:
            await link.stop()

    # -- Interest --------------------------------------------------------------------------------

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """Ask for the value of a symbol that has none here, or one from before an outage."""
        topic = self._hub.topic(symbol)
        if topic is None:
            return
        if topic.payload is None:
            self._want([topic], everybody=False)
        elif first and topic.t < self._missed_until:
            # The client is about to get the old one, and then does not wait for another.
            self._want([topic], everybody=True)

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """What nobody watches any more need not be asked for."""
        if last:
            self._wanted.pop(symbol, None)

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """Nothing follows from it."""

    def refresh(self, topics: Iterable[Topic]) -> None:
        """Updates may have been missed: ask for the values of `topics`, tell everybody."""
        self._missed_until = self._hub.now()
        self._want(topics, everybody=True)

    def _want(self, topics: Iterable[Topic], *, everybody: bool) -> None:
        for topic in topics:
            _, told = self._wanted.get(topic.symbol, (0, False))
            self._wanted[topic.symbol] = (topic.n, everybody or told)
        self._soon(0.0)

    # -- asking ----------------------------------------------------------------------------------

    def _changed(self, up: bool) -> None:
        if up:
            self._soon(0.0)

    def _soon(self, delay: float) -> None:
        """Ask once this turn is over, so that many subscriptions make one batch."""
        if self._call is None and self._wanted and not self._asking and not self._stopped:
            self._call = self._clock.callLater(delay, self._ask)

    def _ask(self) -> None:
        self._call = None
        connections = [link.up for link in self._links if link.up is not None]
        if len(connections) < len(self._links):
            # Any of them may have the value: asked again when all are up.
            return
        self._asking = True
        wanted, self._wanted = self._wanted, {}
        asking = defer.Deferred.fromCoroutine(self._ask_for(wanted, connections))
        asking.addErrback(self._failed, wanted, connections).addCallback(self._asked)

    async def _ask_for(
        self, wanted: dict[str, tuple[int, bool]], connections: Sequence[Any]
    ) -> float:
        """Ask for all that is `wanted` and take out what was answered; gives the next delay."""
        symbols = list(wanted)
        for start in range(0, len(symbols), _BATCH):
            batch = symbols[start : start + _BATCH]
            answers = defer.gatherResults(
                [
                    connection.execute_command("HMGET", self._name, *batch)
                    for connection in connections
                ],
                consumeErrors=True,
            )
            answers.addTimeout(_PATIENCE, self._clock, _too_late)
            for symbol, *payloads in zip(batch, *await answers, strict=True):
                n, everybody = wanted.pop(symbol)
                # Where several have one nobody knows which is newest: always the same is taken.
                payload = next((each for each in payloads if each is not None), None)
                if payload is not None:
                    self._counters.snapshots_learnt += 1
                    self._hub.learn(symbol, payload, n, everybody)
        return 0.0

    def _failed(
        self,
        failure: Failure,
        wanted: Mapping[str, tuple[int, bool]],
        connections: Sequence[Any],
    ) -> float:
        if failure.check(TimeoutError):
            # They may be dead without anybody saying so.
            for connection in connections:
                # Over TLS, one that is lost can't be aborted.
                if connection.loss is None:
                    connection.transport.abortConnection()
        self._note(failure)
        for symbol, (n, everybody) in wanted.items():
            topic = self._hub.topic(symbol)
            if topic is not None and topic.watched:
                # What is wanted since then is newer.
                since, told = self._wanted.get(symbol, (n, False))
                self._wanted[symbol] = (since, everybody or told)
        return _RETRY_AFTER

    def _asked(self, delay: float) -> None:
        self._asking = False
        self._soon(delay)

    def _note(self, failure: Failure) -> None:
        now = self._clock.seconds()
        if self._stopped or (self._logged_at is not None and now - self._logged_at < _LOG_EVERY):
            return
        self._logged_at = now
        if isinstance(failure.value, defer.FirstError):
            failure = failure.value.subFailure
        self.log.warn(
            "the snapshot hash {name} can't be read: {reason}; trying again",
            name=self._name,
            reason=failure.getErrorMessage(),
        )


def _too_late(_result: object, timeout: float) -> list[Any]:
    raise TimeoutError(f"no answer in {timeout:g} seconds")
