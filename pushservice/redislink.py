"""A connection to Redis that is kept up for ever: endpoint, login, retry, and who is told.

Must not know: what the connection is for. The feed, the simulated market and whatever else needs
Redis each have a link of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import txredisapi
from twisted.internet import defer
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pushservice.redisurl import RedisAddress

_CONNECT_TIMEOUT: Final = 5.0
#: Seconds between two log lines about one outage.
_LOG_EVERY: Final = 60.0


def endpoint_of(reactor: Any, address: RedisAddress) -> IStreamClientEndpoint:
    """The Twisted endpoint that leads to `address`."""
    if address.path is not None:
        return UNIXClientEndpoint(reactor, address.path, timeout=_CONNECT_TIMEOUT)
    assert address.host is not None, "an address has a host or a path"
    return HostnameEndpoint(reactor, address.host, address.port, timeout=_CONNECT_TIMEOUT)


@implementer(IStreamClientEndpoint)
class _Observed:
    """An endpoint whose failures are reported: a ClientService keeps them to itself."""

    def __init__(self, endpoint: IStreamClientEndpoint, failed: Callable[[Failure], None]) -> None:
        self._endpoint = endpoint
        self._failed = failed

    def connect(self, protocolFactory: IProtocolFactory) -> defer.Deferred[Any]:
        connecting = self._endpoint.connect(protocolFactory)

        def report(failure: Failure) -> Failure:
            if not failure.check(defer.CancelledError):
                self._failed(failure)
            return failure

        return connecting.addErrback(report)


class _Factory(txredisapi.RedisFactory):
    """txredisapi's connecting and reconnecting, with our retry schedule and bytes left alone."""

    initialDelay = 0.2
    maxDelay = 5
    factor = 1.7
    jitter = 0.25

    def __init__(self, link: RedisLink) -> None:
        # No password here: txredisapi gives up for good where a login fails, so the link logs in.
        super().__init__(None, None, 1, isLazy=True, charset=None, convertNumbers=False)
        self._link = link

    def buildProtocol(self, addr: IAddress | None) -> Any:
        connection = super().buildProtocol(addr)
        self._link.watch(connection)
        return connection

    def retryDelay(self, attempt: int) -> float:
        # A connection that Redis refuses to serve must not reset the backoff.
        return min(super().retryDelay(max(attempt, self._link.rejections)), self.maxDelay)


class RedisLink:
    """Connects, logs in, prepares, and says so; when the connection is lost, does it all again.

    `purpose` is a word for the log. `up` holds the connection while it is usable. `prepare` is
    awaited on each new connection before it counts as usable; `changed` is called with True and
    False as the link comes and goes.
    """

    log = Logger()

    def __init__(
        self,
        purpose: str,
        reactor: Any,
        address: RedisAddress,
        protocol: type[Any],
        prepare: Callable[[Any], defer.Deferred[Any]],
        changed: Callable[[bool], None],
    ) -> None:
        self.purpose = purpose
        self.address = address
        self.up: Any | None = None
        self.rejections = 0
        self._clock: IReactorTime = reactor
        self._prepare = prepare
        self._changed = changed
        self._factory = _Factory(self)
        self._factory.protocol = protocol
        self._endpoint = _Observed(endpoint_of(reactor, address), self._note_failure)
        self._connection: Any | None = None
        self._started = False
        self._logged_at: float | None = None

    def start(self) -> None:
        """Begin to connect; returns at once, whether or not there is a Redis."""
        self._started = True
        self._factory.startConnecting(self._endpoint)

    async def stop(self) -> None:
        """Disconnect and connect no more. May be called twice, or without `start`."""
        if self._started:
            self._started = False
            # At once: an orderly end would wait until a Redis that hangs has read all.
            if self._connection is not None:
                self._connection.transport.abortConnection()
            await self._factory.disconnect()

    # -- called by the factory -------------------------------------------------------------------

    def watch(self, connection: Any) -> None:
        """A connection is being made; follow it until it is lost."""
        self._connection = connection
        connection.whenConnected().addCallback(self._opened).addErrback(self._refused, connection)
        connection.whenDisconnected().addCallback(self._lost)

    @defer.inlineCallbacks
    def _opened(self, connection: Any) -> Any:
        if self.address.path is None:
            connection.transport.setTcpKeepAlive(1)
        if self.address.password is not None:
            yield connection.auth(self.address.password, self.address.user)
        yield self._prepare(connection)
        self.up = connection
        self.rejections = 0
        self._logged_at = None
        self.log.info(
            "Redis {address}: connected for the {purpose}",
            address=str(self.address),
            purpose=self.purpose,
        )
        self._changed(True)

    def _refused(self, failure: Failure, connection: Any) -> None:
        self.rejections += 1
        self._note_failure(failure)
        connection.transport.abortConnection()

    def _lost(self, connection: Any) -> None:
        self._connection = None
        if self.up is connection:
            self.up = None
            if self._started:
                self.log.warn(
                    "Redis {address}: connection of the {purpose} lost; reconnecting",
                    address=str(self.address),
                    purpose=self.purpose,
                )
            self._changed(False)

    def _note_failure(self, failure: Failure) -> None:
        if not self._started:
            return
        now = self._clock.seconds()
        if self._logged_at is None or now - self._logged_at >= _LOG_EVERY:
            self._logged_at = now
            self.log.warn(
                "Redis {address}: no connection for the {purpose}: {reason};"
                " trying again until there is one",
                address=str(self.address),
                purpose=self.purpose,
                reason=failure.getErrorMessage(),
            )
