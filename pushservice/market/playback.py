"""Sources of messages to publish: a simulated market at a rate, or a recording at its own pace.

Must not know: where messages are published, files, or what a wall clock says (time is passed in, in
seconds since the epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from pushservice.market.recording_format import Mark, Message
from pushservice.market.simulator import Market

#: a channel and a payload
Publication = tuple[bytes, bytes]

#: Longest delay in seconds that is caught up with: a longer one would end in a flood.
MAX_CATCH_UP_S: Final = 1.0
#: Seconds between two batches of the market.
_TICK: Final = 0.02
#: Shortest pass of a repeated recording in microseconds: a shorter one would be a flood.
_MIN_PASS_US: Final = 1_000_000
#: Most messages of a recording per call, so that answers and signals get their turn in between.
_MAX_BATCH: Final = 2000


class Source(Protocol):
    """Gives messages as they become due. `ended` is true once there will be none any more."""

    ended: bool

    def due(self, now: float, room: int) -> Sequence[Publication]:
        """At most `room` messages that became due by `now` and were not given yet, in order."""
        ...

    def hold(self, now: float) -> None:
        """Pause until `now`: nothing could be published, and that time does not count."""
        ...

    def wait(self) -> float:
        """Seconds from the last `due` until more becomes due."""
        ...


class _Elapsed:
    """Seconds since the last call or `hold`, at most MAX_CATCH_UP_S."""

    def __init__(self) -> None:
        self._at: float | None = None

    def hold(self, now: float) -> None:
        self._at = now

    def __call__(self, now: float) -> float:
        elapsed = 0.0 if self._at is None else now - self._at
        self._at = now
        # A clock may be set back.
        return min(max(elapsed, 0.0), MAX_CATCH_UP_S)


class SimulatedSource:
    """`rate` quotes a second of a market, evenly spaced; ends after `count` quotes, if given.

    Quotes for which there is no room are dropped, and `dropped` is called with their number.
    """

    def __init__(
        self,
        market: Market,
        channel_of: Callable[[str], str],
        rate: float,
        dropped: Callable[[int], None],
        count: int | None = None,
    ) -> None:
        self._market = market
        self._channel_of = channel_of
        self._rate = rate
        self._report_dropped = dropped
        self._count = count
        self._elapsed = _Elapsed()
        self._due = 0.0
        self.ended = False

    def due(self, now: float, room: int) -> Sequence[Publication]:
        """See Source."""
        most = max(self._rate * MAX_CATCH_UP_S, 1.0)
        self._due = min(self._due + self._rate * self._elapsed(now), most)
        whole = int(self._due)
        self._due -= whole
        if self._count is not None:
            whole = min(whole, self._count)
        given = min(whole, room)
        if given < whole:
            self._report_dropped(whole - given)
        if self._count is not None:
            self._count -= given
            self.ended = self._count == 0
        now_ms = int(now * 1000)
        ticks = [self._market.tick(now_ms) for _ in range(given)]
        return [(self._channel_of(symbol).encode(), payload) for symbol, payload in ticks]

    def hold(self, now: float) -> None:
        """See Source."""
        self._due = 0.0
        self._elapsed.hold(now)

    def wait(self) -> float:
        """See Source."""
        return _TICK


class PlaybackSource:
    """A recording's messages with the original time between them, divided by `speed`.

    A speed of None gives them as fast as they are taken. `begin` returns an iterator from the
    recording's first message on, which gives None where the next one is not there yet. With `loop`
    it is called again at the end, but unless speed is None a pass takes at least a second of the
    recording's time. `channel_of` maps a recorded channel to the one to publish on. Ends after
    `count` messages, if given. An exception of `begin` or its iterator is raised by `due` once all
    messages before it were given.
    """

    def __init__(
        self,
        begin: Callable[[], Iterable[Message | Mark | None]],
        speed: float | None = 1.0,
        *,
        loop: bool = False,
        channel_of: Callable[[str], str] = str,
        count: int | None = None,
    ) -> None:
        self._begin = begin
        self._speed = speed
        self._loop = loop
        self._channel_of = channel_of
        self._left = count
        self._elapsed = _Elapsed()
        #: position in the recording's time, in microseconds
        self._position = 0.0
        self._began: int | None = None
        self._messages: Iterator[Message | Mark | None] | None = None
        self._next: Message | None = None
        self._dry = False
        self._error: Exception | None = None
        self.ended = False

    def due(self, now: float, room: int) -> Sequence[Publication]:
        """See Source."""
        if self._error is not None:
            raise self._error
        elapsed = self._elapsed(now)
        if self._speed is not None:
            self._position += elapsed * self._speed * 1e6
        # The first message is due as soon as it is there.
        if self._messages is None:
            self._start()
        elif self._dry:
            self._take(None)
        found: list[Publication] = []
        room = min(room, _MAX_BATCH)
        while self._next is not None and len(found) < room:
            message = self._next
            if self._speed is not None and message.at > self._position:
                break
            found.append((self._channel_of(message.channel).encode(), message.payload))
            try:
                self._advance()
            except Exception as error:  # noqa: BLE001 - raised again once the messages before it were given
                self._next, self._error = None, error
        return found

    def hold(self, now: float) -> None:
        """See Source."""
        self._elapsed.hold(now)

    def wait(self) -> float:
        """See Source."""
        if self._dry:
            return _TICK
        if self._next is None or self._speed is None:
            return 0.0
        return max((self._next.at - self._position) / self._speed / 1e6, 0.0)

    def _start(self) -> None:
        self._messages = iter(self._begin())
        self._began = None
        self._take(None)

    def _start_again(self, last: Message) -> None:
        assert self._began is not None, "there was a last message"
        pause = max(self._began + _MIN_PASS_US - last.at, 0)
        self._start()
        self._position -= pause

    def _advance(self) -> None:
        if self._left is not None:
            self._left -= 1
        if self._left == 0:
            self._next, self.ended = None, True
        else:
            self._take(self._next)

    def _take(self, last: Message | None) -> None:
        """Make the message after `last` the next one, if there is one."""
        self._next = self._following()
        if self._next is None:
            if self._dry:
                return
            # An empty recording would be repeated for ever.
            if self._loop and last is not None:
                self._start_again(last)
            else:
                self.ended = True
        elif self._began is None:
            self._position = self._began = self._next.at

    def _following(self) -> Message | None:
        assert self._messages is not None, "it was begun"
        for each in self._messages:
            self._dry = each is None
            if each is None or isinstance(each, Message):
                return each
        self._dry = False
        return None
