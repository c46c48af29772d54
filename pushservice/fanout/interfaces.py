"""What the fan-out needs of other folders, and they of it, as structural types.

Must not know: any implementation. The server, the feed and the registry implement these; unit
tests use small implementations of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from pushservice.fanout.shared_frames import SharedFrames
from pushservice.fanout.topic import Topic
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import Codec


class DelayedCall(Protocol):
    """The part of Twisted's IDelayedCall that is needed here."""

    def cancel(self) -> None:
        """Cancel the call, which must be pending."""
        ...


class Clock(Protocol):
    """The part of Twisted's IReactorTime that is needed here."""

    def seconds(self) -> float:
        """Seconds since the epoch."""
        ...

    def callLater(self, delay: float, callable: Callable[..., object]) -> DelayedCall:
        """Call `callable` in `delay` seconds."""
        ...


class Progress(NamedTuple):
    """Bytes that the peer of a connection acknowledged, and bytes that it has yet to acknowledge.

    Only differences between two values of `taken` mean anything.
    """

    taken: int
    waiting: int


class Outlet(Protocol):
    """How one connection's bytes leave.

    Once an outlet cannot take more for now it calls the outbox's `blocked`, possibly from inside
    `write`; when everything it took is with the kernel it calls `drained`. `write` is valid at any
    time and keeps order.
    """

    def write(self, data: bytes) -> None:
        """Take whole frames, in order after all that was written before."""
        ...

    def post(self, pieces: list[bytes], codec: Codec, shared: SharedFrames) -> None:
        """Take the pieces of a turn of the hub, and empty the list by the end of the turn."""
        ...

    def pause_reading(self) -> None:
        """Stop taking messages from the client; may be called twice."""
        ...

    def resume_reading(self) -> None:
        """Take messages again; may be called twice."""
        ...

    def close(self, code: CloseCode) -> None:
        """Begin the closing handshake; an unanswered one ends in an abort."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, with what was not sent."""
        ...

    def progress(self) -> Progress | None:
        """How far the peer has got; None where it is not known."""
        ...

    def queued(self) -> int:
        """Bytes that were written and not acknowledged by the peer yet, as far as is known."""
        ...


class Interest(Protocol):
    """Is told what clients watch, and what of it was quoted, with one call of the hub each."""

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """The client with this connection id watches `symbol`; `first` if no other does."""
        ...

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """The client watches `symbol` no more; `last` if no other does."""
        ...

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """A turn brought quotes of these symbols, which clients watch."""
        ...


class Publish(Protocol):
    """Where a feed delivers its quotes."""

    def publish(self, symbol: str, payload: bytes) -> None:
        """Take one quote; nothing is written to clients yet."""
        ...

    def flush(self) -> None:
        """Write to clients what was published; called at the end of each read."""
        ...
