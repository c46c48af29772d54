"""Sentinels: asks them for the master, connects to it, and notices when the master changes.

Must not know: what a connection is for, logins at the master, or when to retry.

Own code: txredisapi's Sentinel has no TLS to the master and no reasons in its errors, and notices a
new master only when the old one closes the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import txredisapi
from twisted.internet import defer
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pushservice.redis.tls import TLSEndpoint, failure_text
from pushservice.redis.url import RedisAddress, RedisTLS, host_port

#: Seconds for a sentinel to accept a connection, and in all until it has answered.
_SENTINEL_TIMEOUT: Final = 1.0
ASK_TIMEOUT: Final = 2.0
#: Seconds until the next address of one host is tried too: the minimum of RFC 8305, section 5,
#: because an attempt fails only once all addresses have failed.
_ATTEMPT_DELAY: Final = 0.1
#: Seconds between two checks whether the master is still the same.
CHECK_EVERY: Final = 5.0
#: The errors of a cancelled attempt.
CANCELLED: Final = (defer.CancelledError, ConnectingCancelledError)

HostPort = tuple[str, int]


class NoMaster(Exception):
    """No sentinel names a master; the text gives the reason for each sentinel."""


def tcp_endpoint(
    reactor: Any, where: HostPort, tls: RedisTLS | None, timeout: float
) -> IStreamClientEndpoint:
    """An endpoint that leads to a host and a port, with TLS unless `tls` is None."""
    endpoint = HostnameEndpoint(reactor, *where, timeout=timeout, attemptDelay=_ATTEMPT_DELAY)
    return endpoint if tls is None else TLSEndpoint(reactor, where[0], tls, endpoint)


@implementer(IStreamClientEndpoint)
class MasterEndpoint:
    """Connects to the master that the sentinels of `address` name, asked in turn at each attempt.

    The sentinel that answered last is asked first. Sentinels are asked without a login; one that
    demands one gets the login for Redis.
    """

    def __init__(
        self, reactor: Any, address: RedisAddress, tls: RedisTLS | None, timeout: float
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._tls = tls
        self._timeout = timeout
        self._order = list(address.sentinels)
        #: the master that the latest connection leads to
        self.master: HostPort | None = None

    def connect(self, protocolFactory: IProtocolFactory) -> defer.Deferred[Any]:
        """A connection to the master. The text of a failure names the service and each sentinel."""
        return defer.Deferred.fromCoroutine(self._connect(protocolFactory))

    def find_master(self) -> defer.Deferred[HostPort]:
        """Where the master is. Fails with NoMaster; may be cancelled."""
        return defer.Deferred.fromCoroutine(self._find())

    def try_another_sentinel(self) -> None:
        """The latest answer led to no usable master: ask another sentinel first next time."""
        self._order.append(self._order.pop(0))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        where = await self._find()
        try:
            endpoint = tcp_endpoint(self._reactor, where, self._tls, self._timeout)
            connection = await endpoint.connect(factory)
        except CANCELLED:
            raise
        except Exception:  # noqa: BLE001 - raised again with the address, which came from the sentinels
            reason = failure_text(Failure())
            raise ConnectError(
                string=f"the master {self._address.service!r} at {host_port(*where)}: {reason}"
            ) from None
        self.master = where
        return connection

    async def _find(self) -> HostPort:
        reasons = []
        for sentinel in list(self._order):
            request = defer.Deferred.fromCoroutine(self._ask(sentinel))
            try:
                found = await request.addTimeout(ASK_TIMEOUT, self._reactor, _no_answer)
            except CANCELLED:
                raise
            except Exception:  # noqa: BLE001 - whatever it is, the next one is asked
                reasons.append(f"{host_port(*sentinel)}: {failure_text(Failure())}")
            else:
                self._order.remove(sentinel)
                self._order.insert(0, sentinel)
                return found
        raise NoMaster(
            f"no sentinel names a master {self._address.service!r}: {'; '.join(reasons)}"
        )

    async def _ask(self, sentinel: HostPort) -> HostPort:
        endpoint = tcp_endpoint(self._reactor, sentinel, self._tls, _SENTINEL_TIMEOUT)
        connection: Any = await endpoint.connect(_SentinelFactory())
        command = ("SENTINEL", "get-master-addr-by-name", self._address.service)
        try:
            try:
                answer = await connection.execute_command(*command)
            except txredisapi.ResponseError as error:
                password = self._address.password
                if password is None or not str(error).startswith("NOAUTH"):
                    raise
                await connection.auth(password, self._address.user)
                answer = await connection.execute_command(*command)
        except txredisapi.ConnectionError:
            if connection.loss is not None:
                connection.loss.raiseException()
            raise
        finally:
            # A lost connection over TLS can't be aborted.
            if connection.loss is None:
                connection.transport.abortConnection()
        if answer is None:
            raise NoMaster("it knows no master of that name")
        match answer:
            case [bytes() as host, bytes() as port] if port.isdigit():
                return host.decode(), int(port)
        raise NoMaster("it is no sentinel")


class LossRecorder:
    """Mixed in before a protocol of txredisapi: records why the connection was lost.

    txredisapi's own errors don't say, and a server that is not Redis would end in a traceback.
    """

    transport: Any
    #: why the connection was lost, once it was
    loss: Failure | None = None
    _garbage: Failure | None = None

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        try:
            super().dataReceived(data, unpause)  # type: ignore[misc]  # the protocol's
        except txredisapi.InvalidData:
            self._garbage = Failure()
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.loss = self._garbage or reason
        super().connectionLost(self.loss)  # type: ignore[misc]  # the protocol's


class _SentinelConnection(LossRecorder, txredisapi.RedisProtocol):
    """A connection for one request to a sentinel."""


class _SentinelFactory(Factory):
    """Makes connections for one request each."""

    noisy = False

    def buildProtocol(self, addr: object) -> _SentinelConnection:
        return _SentinelConnection(charset=None, convertNumbers=False)


def _no_answer(_result: object, timeout: float) -> HostPort:
    raise TimeoutError(f"no answer in {timeout:g} seconds")


class MasterWatch:
    """Asks every few seconds whether the connected Redis is still the master.

    A master that became a replica may keep its connections. If no sentinel answers, the connection
    is kept.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        address: RedisAddress,
        endpoint: MasterEndpoint,
        moved: Callable[[HostPort], None],
    ) -> None:
        self._clock = clock
        self._address = address
        self._endpoint = endpoint
        self._moved = moved
        self._next: IDelayedCall | None = None
        self._request: defer.Deferred[Any] | None = None
        self._logged = False

    def start(self) -> None:
        """Begin to check, for a connection that was just made."""
        self._next = self._clock.callLater(CHECK_EVERY, self._check)

    def stop(self) -> None:
        """Stop checking; may be called at any time."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._request is not None:
            request, self._request = self._request, None
            request.cancel()

    def _check(self) -> None:
        self._next = None
        request = self._request = self._endpoint.find_master()
        request.addCallbacks(self._answered, self._unanswered)

    def _answered(self, where: HostPort) -> None:
        self._request = None
        self._logged = False
        if where == self._endpoint.master:
            self.start()
        else:
            self._moved(where)

    def _unanswered(self, failure: Failure) -> None:
        if failure.check(*CANCELLED):
            return
        self._request = None
        self.start()
        if not self._logged:
            self._logged = True
            self.log.warn(
                "Redis {address}: a change of the master would go unnoticed: {reason}",
                address=str(self._address),
                reason=failure.getErrorMessage(),
            )
