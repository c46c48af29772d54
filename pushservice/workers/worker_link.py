"""Messages between the manager and a worker: JSON objects, one a line, over two pipes.

Must not know: what any message is for, beyond their names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProcessTransport, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure
from zope.interface import implementer

Message: TypeAlias = dict[str, Any]

#: Descriptors of a worker process: commands to it, messages of it, client counts, shared values.
COMMANDS: Final = 3
MESSAGES: Final = 4
COUNTS: Final = 5
VALUES: Final = 6
#: The first of the listening sockets.
SOCKETS: Final = 7

_decoder: Final = msgspec.json.Decoder(Message)


def encoded(message: Message) -> bytes:
    """A message as a line. Raises TypeError for what is no JSON."""
    return msgspec.json.encode(message) + b"\n"


class MessageDecoder:
    """Decodes a stream of bytes into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises ValueError for a line that is no message."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_decoder.decode(line) for line in lines]


def first_message(descriptor: int) -> Message:
    """Read the first message and no byte more; for a worker before it has a reactor.

    Raises EOFError where the other end is closed, ValueError for what is no message.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        # A byte at a time, as more must not be read; a worker does this once.
        piece = os.read(descriptor, 1)
        if not piece:
            raise EOFError("the manager is gone")
        line += piece
    return _decoder.decode(bytes(line))


@implementer(IPushProducer)
class ManagerLink(Protocol):
    """The worker's end of the pipes."""

    def __init__(self, heard: Callable[[Message], None], lost: Callable[[], None]) -> None:
        """`heard` is called with each message; `lost` once, if the manager goes before `close`."""
        self._heard = heard
        self._lost = lost
        self._lines = MessageDecoder()
        self._pipes: StandardIO | None = None
        # The pipe is full, and messages wait in memory.
        self._lagging = False
        self._closing = False
        self._closed: list[Deferred[None]] = []

    def open(self, reactor: Any) -> None:
        """Begin to read and write on the descriptors of the worker."""
        self._pipes = StandardIO(  # type: ignore[call-arg]  # mypy reads Windows' instead
            self, stdin=COMMANDS, stdout=MESSAGES, reactor=reactor
        )
        self._pipes.registerProducer(self, True)

    def send(self, message: Message, needed: bool = True) -> bool:
        """Send a message. While the manager lags, drop it unless `needed`, and return False."""
        if self._pipes is None or self._closing or (self._lagging and not needed):
            return False
        self._pipes.write(encoded(message))
        return True

    def close(self) -> Deferred[None]:
        """Send what is queued and no more; fires when that is sent, or the manager is gone."""
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        if self._pipes is None:
            self._tell_closed()
        elif not self._closing:
            self._closing = True
            # With a producer that is paused the pipe would never be closed.
            self._pipes.unregisterProducer()
            self._pipes.loseConnection()
        return closed

    def _tell_closed(self) -> None:
        waiting, self._closed = self._closed, []
        for closed in waiting:
            closed.callback(None)

    # -- what Twisted calls ----------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The pipe is full: the manager reads too slowly."""
        self._lagging = True

    def resumeProducing(self) -> None:
        """All is written."""
        self._lagging = False

    def stopProducing(self) -> None:
        """The manager reads no more."""
        self._lagging = True

    def dataReceived(self, data: bytes) -> None:
        for message in self._lines.feed(data):
            self._heard(message)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._pipes = None
        self._tell_closed()
        if not self._closing:
            self._lost()


def tell(process: IProcessTransport, message: Message) -> None:
    """Send a command to a worker, if it has not ended."""
    with suppress(KeyError):
        # Twisted forgets a pipe whose other end is closed.
        process.writeToChild(COMMANDS, encoded(message))
