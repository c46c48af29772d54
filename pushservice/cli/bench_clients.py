"""The clients of a load test: connects them to a daemon and counts the quotes that come.

Must not know: what is typed at a shell, or how numbers are shown. Own code: load generators such as
locust or k6 would not speak the protocol, and are larger than what they would replace.
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

from pushservice.cli.bench_results import Results
from pushservice.cli.watch_views import interrupts
from pushservice.client import connect
from pushservice.client.events import Event, Gap, Quote, QuoteError, Refused, State
from pushservice.client.options import Options, Settings

#: File descriptors for all but the clients.
_RESERVED_FILES = 100
#: Seconds for clients to open after the last of them began to connect.
_CONNECT_TIMEOUT_S = 15.0


def is_loopback(url: str) -> bool:
    """Whether all addresses of a URL's host are loopback addresses."""
    options = Options(url)
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    except OSError:
        # A name that does not resolve could be any machine.
        return False
    return all(ipaddress.ip_address(str(each[4][0])).is_loopback for each in found)


def symbols_per_client(symbols: Sequence[str], each: int | None, clients: int) -> list[list[str]]:
    """The symbols of each client: all, or `each` of them, round robin."""
    if each is None or each >= len(symbols):
        return [list(symbols)] * clients
    around = cycle(symbols)
    return [list(islice(around, each)) for _ in range(clients)]


def raise_file_limit(clients: int) -> None:
    """Raise the limit of open files for so many clients; raises ValueError where it can't be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + _RESERVED_FILES
    if soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ValueError(
            f"this process may open {hard} files, and {clients} clients need {wanted}:"
            " raise that with ulimit -n, or take fewer clients"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def run_load(
    url: str,
    settings: Settings,
    subscriptions: Sequence[Sequence[str]],
    *,
    seconds: float,
    connect_rate: float,
    say: Callable[[str], None],
) -> Results:
    """Connect a client for each of `subscriptions`, then count for `seconds`, or until Ctrl-C.

    `say` is called with the progress once a second. Raises QuoteError where no client opens.
    """
    results = Results(len(subscriptions))
    clients = _Clients(url, settings, subscriptions, results)
    stop = asyncio.Event()
    with interrupts(stop):
        measuring = asyncio.create_task(clients.measure(seconds, connect_rate))
        stopping = asyncio.create_task(stop.wait())
        saying = asyncio.create_task(_report_progress(results, say))
        try:
            await asyncio.wait({measuring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(measuring, stopping, saying)
            outcomes = await clients.leave()
    if not results.most_connected:
        for outcome in outcomes:
            if isinstance(outcome, QuoteError):
                raise outcome
    return results


async def _report_progress(results: Results, say: Callable[[str], None]) -> None:
    then = 0
    while True:
        await asyncio.sleep(1)
        rate, then = results.quotes - then, results.quotes
        doing = f"{rate:,} quotes/s" if results.measuring else "connecting"
        say(f"{doing}, {results.connected:,} of {results.clients:,} clients connected")


async def _end(*tasks: asyncio.Task[Any]) -> list[Any]:
    """Cancel all tasks; returns their results once they have ended."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


class _Clients:
    """All clients of a load test."""

    def __init__(
        self, url: str, settings: Settings, subscriptions: Sequence[Sequence[str]], results: Results
    ) -> None:
        self._url = url
        self._settings = settings
        self._subscriptions = subscriptions
        self._results = results
        self._served = asyncio.Semaphore(0)
        self._clients: list[asyncio.Task[None]] = []

    async def measure(self, seconds: float, connect_rate: float) -> None:
        """Connect all clients, `connect_rate` per second, then count for `seconds`."""
        results = self._results
        await self._connect(connect_rate)
        if not results.most_connected:
            return
        used, began = time.process_time(), time.monotonic()
        results.measuring = True
        try:
            await asyncio.sleep(seconds)
        finally:
            results.measuring = False
            results.seconds = time.monotonic() - began
            results.cpu = time.process_time() - used

    async def leave(self) -> list[Any]:
        """Disconnect all clients; returns the result of each."""
        return await _end(*self._clients)

    async def _connect(self, rate: float) -> None:
        """Start one client after the other; return once all are open or refused, or time is up."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, symbols in enumerate(self._subscriptions):
            await asyncio.sleep(began + number / rate - loop.time())
            client = _Client(self._results, self._served).run(self._url, self._settings, symbols)
            self._clients.append(asyncio.create_task(client))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                for _ in self._subscriptions:
                    await self._served.acquire()


class _Client:
    """One client: connects, subscribes, and counts the events that come."""

    def __init__(self, results: Results, served: asyncio.Semaphore) -> None:
        """`served` is released once: when the client first opens, or when it is refused."""
        self._results = results
        self._served = served
        self._began: float | None = None
        self._is_open = False

    async def run(self, url: str, settings: Settings, symbols: Sequence[str]) -> None:
        """Run until cancelled; raises QuoteError when the daemon refuses the client for good."""
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
        results = self._results
        match event:
            case Quote(snapshot=True):
                results.snapshots += 1
            case Quote():
                if results.measuring:
                    results.quote(len(event.raw), time.time() * 1000 - event.t, event.merged)
            case Gap():
                results.gaps += 1
            case Refused():
                results.error(event.message)
            case State():
                self._state_changed(event)

    def _state_changed(self, state: State) -> None:
        results = self._results
        if state.name == "open":
            self._is_open = True
            took = None
            if self._began is not None:
                took = (asyncio.get_running_loop().time() - self._began) * 1000
                self._began = None
                self._served.release()
            results.opened(took)
        elif self._is_open:
            self._is_open = False
            results.closed()
            results.error(state.reason or f"closed with {state.code}")
        elif state.reason:
            results.error(state.reason)
