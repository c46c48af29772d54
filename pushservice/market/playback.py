"""What is to be published by now: a simulated market at a rate, or a recording at its own pace.

Must not know: where it is published, files, or what a wall clock says (time is passed in, in
seconds since the epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from pushservice.market.recording_format import Mark, Message
from pushservice.market.simulator import Market

#: a channel and a payload
Publication = tuple[bytes, bytes]

#: Seconds of standing still that are made up for: longer ones would end in a flood.
MAX_CATCH_UP_S: Final = 1.0
#: Seconds between two looks at the market.
_TICK: Final = 0.02
#: Microseconds that a recording takes at least when it is played again and again: one of a moment
#: would be a flood.
_MIN_PASS_US: Final = 1_000_000
#: What a recording gives at a time, so that there is a turn for answers and signals in between.
_MAX_BATCH: Final = 2000


class Source(Protocol):
    """What is published, as it becomes due."""

    ended: bool

    def due(self, now: float, room: int) -> Sequence[Publication]:
        """What is due by `now` and was not given yet, in order, at most `room` of it."""
        ...

    def hold(self, now: float) -> None:
        """Until `now` nothing could be published: that time does not count."""
        ...

    def wait(self) -> float:
        """Seconds after the last `due` in which nothing more becomes due."""
        ...


class _Elapsed:
    """Seconds between calls, without those that are not to be made up for."""

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
    """`rate` quotes a second of a market, evenly; ends after `count` of them, if that is given.

    What there was no room for is left out, and `dropped` is told how many quotes that were.
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
    """A recording's messages with the time between them as it was, divided by `speed`.

    A speed of None has them as fast as they are taken. `begin` gives what a recording holds from
    its first message on; with `loop` it is called again whenever that ended, and a second of the
    recording's time after it began at the earliest, unless speed is None. `channel_of` gives the
    channel for the recorded one. Ends after `count` messages, if that is given. Whatever `begin` or
    its iterator raises comes out of `due`, once all before it was given; where it gives None, what
    follows is not there yet, and is looked for again.
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
        #: microseconds, by the recording's time
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
        # The first message is due when it is there, however long that took.
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
            except Exception as error:  # noqa: BLE001 - whatever it is, what was read comes first
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
        """The message after `last` comes next, if there is one."""
        self._next = self._following()
        if self._next is None:
            if self._dry:
                return
            # A recording that holds nothing would be begun again for ever.
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
