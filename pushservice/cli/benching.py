"""Puts a load of clients on a daemon and counts what comes.

Must not know: what is typed at a shell, or how numbers are shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

from pushservice.cli.load import Load
from pushservice.cli.watching import interrupts
from pushservice.client import connect
from pushservice.client.events import Event, Gap, Quote, QuoteError, Refused, State
from pushservice.client.options import Options, Settings

#: Descriptors beside those of the clients.
_RESERVE = 100
#: Seconds for clients to be served after the last of them began to connect.
_SETTLING = 15.0


def is_loopback(url: str) -> bool:
    """Whether the host of a client's address is this machine, by each of its addresses."""
    options = Options(url)
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    except OSError:
        # Who it is would be found out too late.
        return False
    return all(ipaddress.ip_address(str(each[4][0])).is_loopback for each in found)


def shares(symbols: Sequence[str], each: int | None, clients: int) -> list[list[str]]:
    """What each client subscribes: all of them, or so many, going round."""
    if each is None or each >= len(symbols):
        return [list(symbols)] * clients
    around = cycle(symbols)
    return [list(islice(around, each)) for _ in range(clients)]


def make_room(clients: int) -> None:
    """Let this process open so many connections; raises ValueError where it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + _RESERVE
    if soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ValueError(
            f"this process may open {hard} files, and {clients} clients need {wanted}:"
            " raise that with ulimit -n, or take fewer clients"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def put_load(
    url: str,
    settings: Settings,
    subscriptions: Sequence[Sequence[str]],
    *,
    seconds: float,
    connect_rate: float,
    say: Callable[[str], None],
) -> Load:
    """Connect a client for each of `subscriptions`, then count for some seconds, or until Ctrl-C.

    `say` is told once a second how it goes. Raises QuoteError where no client is served at all.
    """
    load = Load(len(subscriptions))
    crowd = _Crowd(url, settings, subscriptions, load)
    stop = asyncio.Event()
    with interrupts(stop):
        measuring = asyncio.create_task(crowd.measure(seconds, connect_rate))
        stopping = asyncio.create_task(stop.wait())
        saying = asyncio.create_task(_say_each_second(load, say))
        try:
            await asyncio.wait({measuring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(measuring, stopping, saying)
            outcomes = await crowd.leave()
    if not load.most_connected:
        for outcome in outcomes:
            if isinstance(outcome, QuoteError):
                raise outcome
    return load


async def _say_each_second(load: Load, say: Callable[[str], None]) -> None:
    then = 0
    while True:
        await asyncio.sleep(1)
        rate, then = load.quotes - then, load.quotes
        doing = f"{rate:,} quotes/s" if load.measuring else "connecting"
        say(f"{doing}, {load.connected:,} of {load.clients:,} clients connected")


async def _end(*tasks: asyncio.Task[Any]) -> list[Any]:
    """Cancel all of them; what they came to, once they have ended."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


class _Crowd:
    """All clients of a load."""

    def __init__(
        self, url: str, settings: Settings, subscriptions: Sequence[Sequence[str]], load: Load
    ) -> None:
        self._url = url
        self._settings = settings
        self._subscriptions = subscriptions
        self._load = load
        self._served = asyncio.Semaphore(0)
        self._clients: list[asyncio.Task[None]] = []

    async def measure(self, seconds: float, connect_rate: float) -> None:
        """Connect them all, so many a second, then count."""
        load = self._load
        await self._connect(connect_rate)
        if not load.most_connected:
            return
        used, began = time.process_time(), time.monotonic()
        load.measuring = True
        try:
            await asyncio.sleep(seconds)
        finally:
            load.measuring = False
            load.seconds = time.monotonic() - began
            load.cpu = time.process_time() - used

    async def leave(self) -> list[Any]:
        """Have all of them go; what each came to."""
        return await _end(*self._clients)

    async def _connect(self, rate: float) -> None:
        """Begin with one after the other; return once each is served, or will not be in time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, symbols in enumerate(self._subscriptions):
            await asyncio.sleep(began + number / rate - loop.time())
            client = _Client(self._load, self._served).run(self._url, self._settings, symbols)
            self._clients.append(asyncio.create_task(client))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLING):
                for _ in self._subscriptions:
                    await self._served.acquire()


class _Client:
    """One of many: connects, subscribes, and counts what comes."""

    def __init__(self, load: Load, served: asyncio.Semaphore) -> None:
        """`served` is told once: when it is served first, or never will be."""
        self._load = load
        self._served = served
        self._began: float | None = None
        self._is_open = False

    async def run(self, url: str, settings: Settings, symbols: Sequence[str]) -> None:
        """Until it is cancelled, or refused for good, which is a QuoteError."""
        self._began = asyncio.get_running_loop().time()
        try:
            async with connect(url, **settings) as quotes:
                subscribing = asyncio.create_task(quotes.subscribe(*symbols))
                # Refusals are events too.
                subscribing.add_done_callback(lambda task: task.cancelled() or task.exception())
                async for event in quotes:
                    self._take(event)
        except QuoteError:
            if self._began is not None:
                self._served.release()
            raise

    def _take(self, event: Event) -> None:
        load = self._load
        match event:
            case Quote(snapshot=True):
                load.snapshots += 1
            case Quote():
                if load.measuring:
                    load.quote(len(event.raw), time.time() * 1000 - event.t, event.merged)
            case Gap():
                load.gaps += 1
            case Refused():
                load.error(event.message)
            case State():
                self._stands(event)

    def _stands(self, state: State) -> None:
        load = self._load
        if state.name == "open":
            self._is_open = True
            took = None
            if self._began is not None:
                took = (asyncio.get_running_loop().time() - self._began) * 1000
                self._began = None
                self._served.release()
            load.opened(took)
        elif self._is_open:
            self._is_open = False
            load.closed()
            load.error(state.reason or f"closed with {state.code}")
        elif state.reason:
            load.error(state.reason)
