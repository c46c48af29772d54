"""Latest payloads that publishers keep in a Redis hash, for first subscribers and after an outage.

Must not know: clients, or how payloads reach them. It reads in batches, over connections of its
own, because a connection in subscribe mode takes no other commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import defer
from twisted.logger import Logger

from pushservice.fanout.interfaces import DelayedCall
from pushservice.fanout.topic import Topic
from pushservice.metrics import Counters
from pushservice.redis.link import command_link
from pushservice.redis.url import RedisAddress, RedisTLS

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from pushservice.fanout.hub import Hub

#: Symbols in one HMGET.
_BATCH: Final = 500
#: Seconds in which Redis has to answer, and to wait before the next request after a failure.
_ANSWER_TIMEOUT: Final = 2.0
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
        # Payloads from before then are out of date unless somebody watched: ms since the epoch.
        self._outdated_before = 0
        # Symbols to request, each with its `n` then, and whether all its watchers are to be told.
        self._wanted: dict[str, tuple[int, bool]] = {}
        self._call: DelayedCall | None = None
        self._requesting = False
        self._stopped = False
        self._logged_at: float | None = None
        self._links = [
            command_link("snapshots", reactor, address, self._changed, tls=tls)
            for address in addresses
        ]

    def start(self) -> None:
        """Begin to connect; returns at once."""
        for link in self._links:
            link.start()

    async def stop(self) -> None:
        """Disconnect, and request nothing more."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._wanted.clear()
        for link in self._links:
            await link.stop()

    # -- Interest --------------------------------------------------------------------------------

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """Request the payload of a symbol that has none here, or one from before an outage."""
        topic = self._hub.topic(symbol)
        if topic is None:
            return
        if topic.payload is None:
            self._want([topic], everyone=False)
        elif first and topic.t < self._outdated_before:
            # The client gets the old payload first, and then no longer waits for a snapshot.
            self._want([topic], everyone=True)

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """Forget a symbol that nobody watches any more."""
        if last:
            self._wanted.pop(symbol, None)

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """Quotes change nothing here."""

    def refresh(self, topics: Iterable[Topic]) -> None:
        """Updates may have been missed: request the payloads of `topics` for all their watchers."""
        self._outdated_before = self._hub.now()
        self._want(topics, everyone=True)

    def _want(self, topics: Iterable[Topic], *, everyone: bool) -> None:
        for topic in topics:
            _, told = self._wanted.get(topic.symbol, (0, False))
            self._wanted[topic.symbol] = (topic.n, everyone or told)
        self._schedule(0.0)

    # -- requests --------------------------------------------------------------------------------

    def _changed(self, up: bool) -> None:
        if up:
            self._schedule(0.0)

    def _schedule(self, delay: float) -> None:
        """Request once this turn is over, so that many subscriptions make one batch."""
        if self._call is None and self._wanted and not self._requesting and not self._stopped:
            self._call = self._clock.callLater(delay, self._request)

    def _request(self) -> None:
        self._call = None
        connections = [link.up for link in self._links if link.up is not None]
        if len(connections) < len(self._links):
            # Any of them may have the payload: `_changed` tries again when all are up.
            return
        self._requesting = True
        wanted, self._wanted = self._wanted, {}
        request = defer.Deferred.fromCoroutine(self._read(wanted, connections))
        request.addErrback(self._failed, wanted, connections).addCallback(self._done)

    async def _read(self, wanted: dict[str, tuple[int, bool]], connections: Sequence[Any]) -> float:
        """Read all that is `wanted` and remove what was answered from it; gives the next delay."""
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
            answers.addTimeout(_ANSWER_TIMEOUT, self._clock, _too_late)
            for symbol, *payloads in zip(batch, *await answers, strict=True):
                n, everyone = wanted.pop(symbol)
                # Nobody knows which of several is the newest: the first Redis that has one wins.
                payload = next((each for each in payloads if each is not None), None)
                if payload is not None:
                    self._counters.snapshots_learnt += 1
                    self._hub.values.learn(symbol, payload, n, everyone)
        return 0.0

    def _failed(
        self,
        failure: Failure,
        wanted: Mapping[str, tuple[int, bool]],
        connections: Sequence[Any],
    ) -> float:
        if failure.check(TimeoutError):
            # They may be dead without having been closed.
            for connection in connections:
                # A lost connection over TLS can't be aborted.
                if connection.loss is None:
                    connection.transport.abortConnection()
        self._log_failure(failure)
        for symbol, (n, everyone) in wanted.items():
            topic = self._hub.topic(symbol)
            if topic is not None and topic.watched:
                # A request since then has a newer `n`.
                since, told = self._wanted.get(symbol, (n, False))
                self._wanted[symbol] = (since, everyone or told)
        return _RETRY_AFTER

    def _done(self, delay: float) -> None:
        self._requesting = False
        self._schedule(delay)

    def _log_failure(self, failure: Failure) -> None:
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
