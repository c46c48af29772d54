"""Listening ports: opened from an endpoint's description or a descriptor, paused, and closed.

Must not know: what is served, or to which clients.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Final, NamedTuple

from twisted.internet import defer, endpoints, unix
from twisted.internet.base import BasePort
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

#: Connections that a process accepts in one turn from a socket that others accept from too.
ACCEPTED_AT_ONCE: Final = 8

_log: Final = Logger()

#: Endpoints that are nothing but a listening socket, which processes can share.
SHAREABLE: Final = ("tcp:", "tcp6:", "unix:", "systemd:")


class CannotListen(Exception):
    """The text names the endpoint and the reason."""


class Listening(NamedTuple):
    """A socket that another process may listen on too."""

    #: the endpoint's description
    text: str
    descriptor: int
    family: int


class _SharedUnixPort(unix.Port):
    """Accepts on a Unix socket that listens already; its name, its rights and its queue stay.

    Twisted's own port would give everybody the right to connect, and shorten the queue to 50; when
    closed it would remove the name, and shut the socket down for all processes that share it.
    """

    def __init__(self, reactor: Any, descriptor: int, factory: IProtocolFactory) -> None:
        self._shared = socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM)
        self._served = factory
        name: Any = self._shared.getsockname()
        super().__init__(name, factory, reactor=reactor)

    def startListening(self) -> None:
        """Begin to accept."""
        self._served.doStart()
        self.socket = self._shared
        self.fileno = self.socket.fileno  # type: ignore[method-assign]  # as Twisted's ports do
        self.numberAccepts = ACCEPTED_AT_ONCE
        self.connected = True
        self.startReading()  # type: ignore[no-untyped-call]  # the library's, unannotated

    def connectionLost(self, reason: Failure) -> None:
        """Accept no more, here."""
        BasePort.connectionLost(self, reason)
        self.connected = False
        self.socket.close()
        self._served.doStop()


def _take_over(reactor: Any, descriptor: int, family: int, factory: IProtocolFactory) -> Any:
    """A port on a socket that listens already, with a descriptor of its own."""
    if family != socket.AF_UNIX:
        return reactor.adoptStreamPort(descriptor, family, factory)
    port = _SharedUnixPort(reactor, descriptor, factory)
    port.startListening()
    return port


class _TakingOver:
    """A reactor for endpoints that takes sockets over as `_take_over` does."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def adoptStreamPort(self, descriptor: int, family: int, factory: IProtocolFactory) -> Any:
        """See IReactorSocket."""
        return _take_over(self._reactor, descriptor, family, factory)


def check_shareable(text: str) -> None:
    """Raises CannotListen for an endpoint that processes can't share."""
    if not text.startswith(SHAREABLE):
        raise CannotListen(f"workers can't share {text}: use {', '.join(SHAREABLE)} or --workers 0")


def listen(reactor: Any, text: str, factory: IProtocolFactory) -> IListeningPort:
    """Listen on the endpoint `text`. Raises CannotListen."""
    outcome: list[IListeningPort | Failure] = []
    try:
        listening = endpoints.serverFromString(_TakingOver(reactor), text).listen(factory)
    except (ValueError, TypeError, LookupError, OSError) as error:
        # Twisted's systemd: endpoint looks for its socket in what systemd handed over.
        missing = isinstance(error, LookupError)
        reason = "systemd has handed over no such socket" if missing else str(error)
        raise CannotListen(f"can't listen on {text}: {reason}") from None
    listening.addBoth(outcome.append)
    if not outcome:
        raise CannotListen(f"{text} does not begin to listen at once; use another")
    result = outcome[0]
    if isinstance(result, Failure):
        raise CannotListen(f"can't listen on {text}: {_reason(result)}")
    _never_wait(result)
    return result


def _never_wait(port: Any) -> None:
    """Have accepts on `port` end at once where another process was faster.

    A socket of systemd's waits unless its unit says NonBlocking=yes.
    """
    if isinstance(getattr(port, "socket", None), socket.socket):
        port.socket.setblocking(False)


def _reason(failure: Failure) -> str:
    error = failure.value
    if isinstance(error, CannotListenError):
        return f"{error.socketError}" if error.socketError else str(error)
    return failure.getErrorMessage()


def shared(text: str, port: Any) -> Listening:
    """What another process needs to listen on `port`, too."""
    return Listening(text, port.fileno(), port.socket.family)


def address_text(port: IListeningPort, scheme: str) -> str:
    """Where `port` is reached, for the log."""
    address: Any = port.getHost()
    name = getattr(address, "name", None)
    if name is not None:
        return f"{scheme}+unix:{name if isinstance(name, str) else name.decode()}"
    # The name that the development certificate is for, where it leads there.
    local = ("0.0.0.0", "::", "127.0.0.1", "::1")  # noqa: S104 - shown, not bound
    host = "localhost" if address.host in local else address.host
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}/"


def _accept_in_small_steps(port: Any) -> None:
    """Have `port` leave some of the connections of a burst to other processes.

    Twisted accepts up to a hundred in one turn, even if the port is paused meanwhile.
    """
    accept = port.doRead

    def step() -> None:
        port.numberAccepts = ACCEPTED_AT_ONCE
        accept()

    port.doRead = step


async def stop_listening(port: Any) -> None:
    """Close `port`; an error is logged, not raised."""
    try:
        await defer.maybeDeferred(port.stopListening)
    except Exception as error:  # noqa: BLE001 - the other ports are to be closed too
        # For example, another process has removed the name of a Unix socket.
        _log.warn("closing {port}: {reason}", port=str(port), reason=str(error))


class Ports:
    """The ports on which one process accepts connections, which can be held for several reasons."""

    def __init__(self) -> None:
        self._ports: list[Any] = []
        self._held: set[str] = set()

    def __getitem__(self, at: int) -> Any:
        return self._ports[at]

    def add(self, port: Any) -> None:
        """Accept on `port` too, which listens already."""
        self._ports.append(port)
        if self._held:
            port.stopReading()

    def _open(self) -> list[Any]:
        # One whose socket another process has shut down is no port any more.
        return [port for port in self._ports if port.connected]

    def adopt(self, reactor: Any, listening: Listening, factory: IProtocolFactory) -> Any:
        """Accept on a socket that another process has opened; its descriptor here is closed."""
        port = _take_over(reactor, listening.descriptor, listening.family, factory)
        os.close(listening.descriptor)
        _accept_in_small_steps(port)
        _never_wait(port)
        self.add(port)
        return port

    def hold(self, reason: str) -> None:
        """Accept nothing until this reason and all others are released; connections wait."""
        if not self._held:
            for port in self._open():
                port.stopReading()
        self._held.add(reason)

    def release(self, reason: str) -> None:
        """Accept again, unless another reason holds the ports."""
        if reason in self._held:
            self._held.discard(reason)
            if not self._held:
                for port in self._open():
                    port.startReading()

    async def close(self) -> None:
        """Accept no more. Sockets that were taken over stay open in the process they came from."""
        ports, self._ports = self._open(), []
        self._held.clear()
        for port in ports:
            await stop_listening(port)
