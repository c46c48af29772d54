"""Watches a daemon's quotes in one of two views: a table on the terminal, or lines for a pipe.

Must not know: what is typed at a shell.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Protocol, TextIO

import msgspec

from pushservice.cli.board import Board
from pushservice.cli.keys import keys
from pushservice.cli.screen import Screen
from pushservice.client import connect
from pushservice.client.events import (
    Event,
    Feed,
    Fresh,
    Gap,
    Heartbeat,
    Quote,
    Refused,
    Stale,
    State,
)
from pushservice.client.options import Options, Settings
from pushservice.market.payload_fields import printable

#: Seconds between two redraws of the table.
_FRAME = 0.1
#: Seconds between two measurements of the rates.
_MEASURE = 1.0


class WatchCounts:
    """Counts of events, and whether there was ever a connection."""

    def __init__(self) -> None:
        self.quotes = 0
        self.merged = 0
        self.gaps = 0
        self.opened = False

    def take(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Quote):
            self.quotes += 1
            self.merged += event.merged
        elif isinstance(event, Gap):
            self.gaps += 1
        elif isinstance(event, State):
            self.opened = self.opened or event.name == "open"


class View(Protocol):
    """Shows events."""

    def take(self, event: Event) -> None:
        """Show an event, now or at the next redraw. Raises BrokenPipeError when nobody reads."""
        ...


async def follow(
    url: str,
    settings: Settings,
    symbols: Sequence[str],
    view: View,
    stop: asyncio.Event,
    *,
    count: int | None = None,
    seconds: float | None = None,
) -> WatchCounts:
    """Watch until `stop`, after `count` quotes, or for so many seconds.

    Raises QuoteError where the daemon refuses for good, or refuses every symbol.
    """
    seen = WatchCounts()

    async def read() -> None:
        async for event in quotes:
            seen.take(event)
            view.take(event)
            if count is not None and seen.quotes >= count:
                return

    async with connect(url, **settings) as quotes:
        reading = asyncio.create_task(read())
        subscribing = asyncio.create_task(quotes.subscribe(*symbols))
        stopping = asyncio.create_task(stop.wait())
        waited: set[asyncio.Task[object]] = {reading, subscribing, stopping}
        try:
            async with asyncio.timeout(seconds):
                while not reading.done() and not stopping.done():
                    # When the connection ends for good both fail; the reader raises the reason.
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    if subscribing.done() and not reading.done():
                        waited.discard(subscribing)
                        subscribing.result()
        except TimeoutError:
            pass
        finally:
            for task in (reading, subscribing, stopping):
                task.cancel()
            ended = await asyncio.gather(reading, subscribing, stopping, return_exceptions=True)
        if isinstance(ended[0], Exception):
            raise ended[0]
    return seen


@contextmanager
def interrupts(stop: asyncio.Event) -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM set `stop`."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def suspending(take: Callable[[ExitStack], None]) -> Iterator[None]:
    """Within the block, Ctrl-Z exits what `take` enters, and resuming enters it again.

    So the shell gets its terminal as it was, whatever it does with the settings meanwhile.
    """
    loop = asyncio.get_running_loop()

    def suspend() -> None:
        held.close()
        loop.remove_signal_handler(signal.SIGTSTP)
        # The process stops here until the shell resumes it.
        os.kill(os.getpid(), signal.SIGTSTP)
        loop.add_signal_handler(signal.SIGTSTP, suspend)
        take(held)

    with ExitStack() as held:
        take(held)
        loop.add_signal_handler(signal.SIGTSTP, suspend)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTSTP)


# -- lines -----------------------------------------------------------------------------------------


def json_line(quote: Quote) -> bytes:
    """A quote as the event on the wire, with the number of updates merged into it."""
    merged = b',"merged":%d' % quote.merged if quote.merged else b""
    return b'{"ev":"%b","s":%b,"n":%d,"t":%d%b,"d":%b}\n' % (
        b"snapshot" if quote.snapshot else b"quote",
        msgspec.json.encode(quote.symbol),
        quote.n,
        quote.t,
        merged,
        quote.raw,
    )


def raw_line(quote: Quote) -> bytes:
    """The payload alone, as it was published."""
    return quote.raw + b"\n"


class Lines:
    """Writes a line for each quote to `out`, and one for each other event to `err`."""

    def __init__(self, out: BinaryIO, err: TextIO, line: Callable[[Quote], bytes]) -> None:
        self._out = out
        self._err = err
        self._line = line
        self._feed_up = True

    def take(self, event: Event) -> None:
        """See View."""
        if isinstance(event, Quote):
            self._out.write(self._line(event))
            self._out.flush()
            return
        if isinstance(event, Feed):
            if event.up is self._feed_up:
                return
            self._feed_up = event.up
        said = describe_event(event)
        if said:
            self._err.write(f"{said}\n")
            self._err.flush()


def describe_event(event: Event) -> str:
    """A line about an event that is not a quote; empty for those that need none."""
    match event:
        case Gap(symbol, reason):
            where = "before the daemon" if reason == "feed" else "between the daemon and here"
            return f"gap: quotes of {printable(symbol)} may be missing, {where}"
        case Refused(symbol, code, message) if symbol is not None:
            return f"refused: {printable(symbol)}: {printable(message)} ({code})"
        case Feed(up):
            return f"the feed is {'up' if up else 'down'}"
        case State("waiting", delay, _, reason):
            again = "" if delay is None else f", again in {delay:.1f} s"
            return f"no connection: {printable(reason)}{again}"
        case _:
            return ""


# -- a table ---------------------------------------------------------------------------------------


class Table:
    """Updates a board by events."""

    def __init__(self, board: Board, place: str) -> None:
        """`place` is the daemon's address as the client's errors begin with it."""
        self.board = board
        self._place = place

    def take(self, event: Event) -> None:
        """See View."""
        board, now = self.board, time.time()
        match event:
            case Quote():
                board.quote(
                    event.symbol,
                    event.raw,
                    event.t,
                    now,
                    merged=event.merged,
                    snapshot=event.snapshot,
                )
            case Heartbeat(_, up):
                board.heartbeat(now, up=up)
            case Gap(symbol):
                board.gap(symbol)
            case Feed(up):
                board.feed(up=up)
            case Stale(symbols) | Fresh(symbols):
                board.set_stale(symbols, stale=isinstance(event, Stale))
            case Refused(symbol, code, message) if symbol is not None:
                board.refuse(symbol, f"{message} ({code})")
            case State(name, delay, _, reason):
                # The title has the place already.
                reason = reason.removeprefix(f"{self._place}: ")
                board.connection(name, reason, None if delay is None else now + delay)
            case _:
                pass


async def show(
    url: str,
    settings: Settings,
    symbols: Sequence[str],
    screen: Screen,
    *,
    price_field: str | None = None,
    count: int | None = None,
    seconds: float | None = None,
) -> WatchCounts:
    """Follow on a terminal until q or Ctrl-C, after `count` quotes or so many seconds.

    The terminal is as it was when this returns or raises; see `follow`.
    """
    board = Board(symbols, price_field)
    view = Table(board, Options(url).place)
    stop = asyncio.Event()

    def pressed(key: str) -> None:
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "home": -1_000_000, "end": 1_000_000}
        steps |= {"page up": -screen.page, "page down": screen.page, " ": screen.page}
        if key in ("q", "Q"):
            stop.set()
        elif key in steps:
            screen.scroll(steps[key], board)

    async def draw() -> None:
        measured = 0.0
        while True:
            now = time.time()
            if abs(now - measured) >= _MEASURE:
                board.measure(now)
                measured = now
            screen.show(board, url, now)
            await asyncio.sleep(_FRAME)

    def take_terminal(held: ExitStack) -> None:
        held.enter_context(screen)
        held.enter_context(keys(sys.stdin.fileno(), pressed))

    with interrupts(stop), suspending(take_terminal):
        drawing = asyncio.create_task(draw())
        # A table that can't be drawn any more has nobody who looks at it.
        drawing.add_done_callback(lambda _: stop.set())
        try:
            return await follow(url, settings, symbols, view, stop, count=count, seconds=seconds)
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)


async def print_lines(
    url: str,
    settings: Settings,
    symbols: Sequence[str],
    line: Callable[[Quote], bytes],
    *,
    count: int | None = None,
    seconds: float | None = None,
) -> WatchCounts:
    """Follow with a line for each quote on the standard output; see `follow`."""
    stop = asyncio.Event()
    with interrupts(stop):
        view = Lines(sys.stdout.buffer, sys.stderr, line)
        return await follow(url, settings, symbols, view, stop, count=count, seconds=seconds)
