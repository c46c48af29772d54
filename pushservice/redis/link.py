"""A connection to Redis that is kept up: it connects, logs in, and reconnects for ever.

Must not know: what the connection is for. The feed, the simulated market and every other user of
Redis have a link each.

Own code: txredisapi reconnects too, but gives up for good when a login fails and does not say why a
connection was lost. Twisted's ClientService does not limit how long preparing a connection takes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

import txredisapi
from twisted.internet import defer
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.redis.sentinel import (
    HostPort,
    LossRecorder,
    MasterEndpoint,
    MasterWatch,
    tcp_endpoint,
)
from pushservice.redis.tls import check_files, failure_text
from pushservice.redis.url import RedisAddress, RedisTLS, host_port

_CONNECT_TIMEOUT: Final = 5.0
#: Seconds from connecting until the connection has to be prepared.
PREPARE_TIMEOUT: Final = 2.0
#: Seconds until the first retry, the factor by which the delay grows, and the longest delay.
#: Delays vary by up to half.
FIRST_RETRY: Final = 0.2
_GROWTH: Final = 1.7
LAST_RETRY: Final = 3.0
#: Seconds between two log lines about one outage.
_LOG_EVERY: Final = 60.0


def endpoint_of(
    reactor: Any, address: RedisAddress, tls: RedisTLS | None = None
) -> IStreamClientEndpoint:
    """The Twisted endpoint that leads to `address`, with TLS where the address says so.

    Raises ValueError when TLS is wanted and a file of `tls` can't be used.
    """
    if address.path is not None:
        return UNIXClientEndpoint(reactor, address.path, timeout=_CONNECT_TIMEOUT)
    if address.tls:
        tls = tls or RedisTLS()
        check_files(tls)
    else:
        tls = None
    if address.service is not None:
        return MasterEndpoint(reactor, address, tls, _CONNECT_TIMEOUT)
    assert address.host is not None, "an address has a host, a path or a service"
    return tcp_endpoint(reactor, (address.host, address.port), tls, _CONNECT_TIMEOUT)


class NotMaster(Exception):
    """The sentinels named a Redis that is not, or no longer, a master."""


class NotReady(Exception):
    """Redis accepted the connection and then did not answer in time."""


class _LossReporter:
    """Mixed in between LossRecorder and a protocol of txredisapi: tells the link of the loss."""

    factory: _Factory

    def connectionLost(self, reason: Failure) -> None:
        # Before the commands in flight fail, so that their senders find the link down.
        self.factory.link.lost(self, reason)
        super().connectionLost(reason)  # type: ignore[misc]  # the protocol's


class _Factory(Factory):
    """Builds a link's connections, which do not convert replies."""

    noisy = False

    def __init__(self, link: RedisLink, protocol: type[Any]) -> None:
        self.link = link
        self._make: Any = type(protocol.__name__, (LossRecorder, _LossReporter, protocol), {})

    def buildProtocol(self, addr: IAddress | None) -> Any:
        connection = self._make(charset=None, convertNumbers=False)
        connection.factory = self
        return connection


class RedisLink:
    """Connects, logs in, prepares the connection and reports it up; reconnects when it is lost.

    `purpose` stands in log lines. `up` holds the connection while it is usable. `prepare` is
    awaited on each new connection before it counts as usable; `changed` is called with True and
    False as the link comes and goes. `failed` is called whenever an attempt fails: there was no
    connection, or it was lost, refused or silent before it was usable. Raises ValueError
    when the address wants TLS and a file of `tls` can't be used.
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
        *,
        tls: RedisTLS | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        self.purpose = purpose
        self.address = address
        self.up: Any | None = None
        #: failed attempts since it was last up
        self.failures = 0
        self._clock: IReactorTime = reactor
        self._prepare = prepare
        self._changed = changed
        self._on_failure = failed
        self._factory = _Factory(self, protocol)
        self._endpoint = endpoint_of(reactor, address, tls)
        self._sentinels: MasterEndpoint | None = None
        self._watch: MasterWatch | None = None
        if isinstance(self._endpoint, MasterEndpoint):
            self._sentinels = self._endpoint
            self._watch = MasterWatch(reactor, address, self._endpoint, self._master_moved)
        self._started = False
        # At most one of these three: the wait for the next attempt, the attempt, the connection.
        # `_preparing` is set while the connection is being prepared.
        self._retry: IDelayedCall | None = None
        self._attempt: defer.Deferred[Any] | None = None
        self._connection: Any | None = None
        self._preparing: defer.Deferred[Any] | None = None
        self._cause: Failure | None = None
        self._logged_at: float | None = None

    def start(self) -> None:
        """Begin to connect; returns at once, whether or not there is a Redis."""
        if not self._started:
            self._started = True
            self._connect()

    async def stop(self) -> None:
        """Disconnect and connect no more. May be called twice, or without `start`."""
        self._started = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._attempt is not None:
            self._attempt.cancel()
        if self._connection is not None:
            gone = self._connection.whenDisconnected()
            self.abort()
            await gone

    def abort(self) -> None:
        """Drop the connection, if there is one, and reconnect.

        An orderly close would wait until a Redis that hangs has read everything.
        """
        if self._connection is not None:
            self._connection.transport.abortConnection()

    # -- connecting ------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._retry = None
        attempt = self._attempt = self._endpoint.connect(self._factory)
        attempt.addCallbacks(self._connected, self._not_connected)

    def _not_connected(self, failure: Failure) -> None:
        self._attempt = None
        self._failed(failure)

    def _connected(self, connection: Any) -> None:
        self._attempt = None
        if connection.loss is not None:
            self._failed(connection.loss)
            return
        self._connection = connection
        if not self._started:
            self.abort()
            return
        preparing = self._preparing = defer.Deferred.fromCoroutine(
            self._prepare_connection(connection)
        )
        preparing.addTimeout(PREPARE_TIMEOUT, self._clock, _too_late)
        preparing.addCallbacks(self._prepared, self._not_prepared, callbackArgs=(connection,))

    async def _prepare_connection(self, connection: Any) -> None:
        if self.address.path is None:
            connection.transport.setTcpKeepAlive(1)
        if self.address.password is not None:
            await connection.auth(self.address.password, self.address.user)
        if self._sentinels is not None:
            role = (await connection.execute_command("ROLE"))[0]
            if role != b"master":
                raise NotMaster("the Redis that the sentinels name is no master")
        await self._prepare(connection)

    def _prepared(self, _result: object, connection: Any) -> None:
        self._preparing = None
        self.up = connection
        self.failures = 0
        self._logged_at = None
        self.log.info(
            "Redis {address}: connected for the {purpose}{where}",
            address=str(self.address),
            purpose=self.purpose,
            where=self._master_text(),
        )
        if self._watch is not None:
            self._watch.start()
        self._notify(self._changed, True)

    def _not_prepared(self, failure: Failure) -> None:
        self._preparing = None
        if self._connection is not None:
            self._cause = failure
            self.abort()

    def _failed(self, failure: Failure) -> None:
        """An attempt failed."""
        if not self._started:
            return
        self.failures += 1
        if self._sentinels is not None:
            self._sentinels.try_another_sentinel()
        self._log_failure(failure)
        self._retry_later()
        if self._on_failure is not None:
            self._notify(self._on_failure)

    def _retry_later(self) -> None:
        # With jitter, so that the many that lost the same Redis don't reconnect at once.
        delay = min(FIRST_RETRY * _GROWTH ** min(self.failures, 50), LAST_RETRY / 1.5)
        delay *= random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, guards nothing
        self._retry = self._clock.callLater(delay, self._connect)

    def _master_text(self) -> str:
        if self._sentinels is None or self._sentinels.master is None:
            return ""
        return f"; the master is {host_port(*self._sentinels.master)}"

    def _master_moved(self, where: HostPort) -> None:
        self.log.info(
            "Redis {address}: the master is {where} now; the {purpose} goes there",
            address=str(self.address),
            where=host_port(*where),
            purpose=self.purpose,
        )
        self.abort()

    # -- called by connections -------------------------------------------------------------------

    def lost(self, connection: Any, why: Failure) -> None:
        """A connection is gone."""
        if connection is not self._connection:
            # It was lost before the endpoint handed it over, and the endpoint reports that.
            return
        self._connection = None
        was_up = self.up is connection
        self.up = None
        why, self._cause = self._cause or why, None
        preparing, self._preparing = self._preparing, None
        if preparing is not None:
            preparing.cancel()
        if self._watch is not None:
            self._watch.stop()
        if not was_up:
            self._failed(why)
            return
        if self._started:
            self.log.warn(
                "Redis {address}: connection of the {purpose} lost; reconnecting",
                address=str(self.address),
                purpose=self.purpose,
            )
            self._retry_later()
        self._notify(self._changed, False)

    # -- callbacks -----------------------------------------------------------------------------

    def _notify(self, callback: Callable[..., None], *arguments: bool) -> None:
        try:
            callback(*arguments)
        except Exception:  # noqa: BLE001 - the link must go on, whatever its user does
            self.log.failure("the {purpose} failed to take note", purpose=self.purpose)

    def _log_failure(self, failure: Failure) -> None:
        now = self._clock.seconds()
        if self._logged_at is None or now - self._logged_at >= _LOG_EVERY:
            self._logged_at = now
            self.log.warn(
                "Redis {address}: no connection for the {purpose}: {reason};"
                " trying again until there is one",
                address=str(self.address),
                purpose=self.purpose,
                reason=failure_text(failure),
            )


def command_link(
    purpose: str,
    reactor: Any,
    address: RedisAddress,
    changed: Callable[[bool], None],
    *,
    tls: RedisTLS | None = None,
) -> RedisLink:
    """A link for commands. A ping on each new connection finds out a Redis that refuses them."""
    return RedisLink(
        purpose,
        reactor,
        address,
        txredisapi.RedisProtocol,
        lambda connection: connection.ping(),
        changed,
        tls=tls,
    )


def _too_late(_result: object, timeout: float) -> object:
    raise NotReady(f"it accepted the connection and was not ready in {timeout:g} seconds")
