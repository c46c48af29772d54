"""What the rooms ask of each other across floors, as structural types.

Must not know: any implementation. The core depends on these and is tested with small real
implementations of them; the edges implement them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from pushservice.fanout.shared_frames import SharedFrames
from pushservice.fanout.topic import Topic
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import Codec


class DelayedCall(Protocol):
    """The part of Twisted's IDelayedCall that the core uses."""

    def cancel(self) -> None:
        """Do not make the call, which must be pending."""
        ...


class Clock(Protocol):
    """The part of Twisted's IReactorTime that the core uses."""

    def seconds(self) -> float:
        """Seconds since the epoch."""
        ...

    def callLater(self, delay: float, callable: Callable[..., object]) -> DelayedCall:
        """Call `callable` in `delay` seconds."""
        ...


class Progress(NamedTuple):
    """What a connection's peer took so far, and has yet to take, in bytes that left us.

    `taken` says how much by its changes alone, not where it began.
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

    def post(self, pieces: list[bytes], codec: Codec, share: SharedFrames) -> None:
        """Take what a turn of the hub brought, and empty the list, at the turn's end at latest."""
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
        """Drop the connection at once."""
        ...

    def progress(self) -> Progress | None:
        """What the peer has taken; None where nobody can say."""
        ...

    def queued(self) -> int:
        """Bytes that were written and that the peer has not got yet, as far as anybody can say."""
        ...


class Interest(Protocol):
    """Who is told what clients watch, and what of it was quoted. Costs the hub a call each."""

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """A client, by its connection's id, watches a symbol; `first` here that does."""
        ...

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """A client watches a symbol no more; `last` here that did."""
        ...

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """A turn brought quotes of these symbols, each watched by somebody."""
        ...


class Publish(Protocol):
    """Where a feed delivers, and what it must call at the end of each read."""

    def publish(self, symbol: str, payload: bytes) -> None:
        """One quote; nothing is written to any client yet."""
        ...

    def flush(self) -> None:
        """The read is parsed: write what it brought."""
        ...
