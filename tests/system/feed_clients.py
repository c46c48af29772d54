"""Clients that keep all they are told of the feed, for the tests of what becomes of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from system_clients import open_websocket
from system_harness import DEADLINE, Address
from websockets.asyncio.client import ClientConnection

Event = dict[str, Any]


class Watcher:
    """Reads everything that comes, in a task of its own."""

    def __init__(self, connection: ClientConnection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.events: list[Event] = []
        #: when each event came, in milliseconds since the epoch
        self.came: list[float] = []
        self._at = 0
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for text in self.connection:
            events = json.loads(text)
            self.came += [time.time() * 1000] * len(events)
            self.events += events
            self._news.set()

    @property
    def story(self) -> list[Event]:
        """What came since `forget`, heartbeats left out."""
        return [event for event in self.events[self._at :] if event["ev"] != "heartbeat"]

    def forget(self) -> None:
        """What came so far is of no interest."""
        self._at = len(self.events)

    async def until(
        self, condition: Callable[[list[Event]], Any], what: str, seconds: float = DEADLINE
    ) -> Any:
        """Wait until `condition` holds of what came since `forget`; returns what it returned."""
        deadline = time.monotonic() + seconds
        while not (found := condition(self.events[self._at :])):
            left = deadline - time.monotonic()
            assert left > 0, f"{self.name} waited {seconds} s for {what}: {self.story[-20:]}"
            assert not self._reading.done(), f"{self.name} was disconnected before {what}"
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), min(left, 0.5))
            except TimeoutError:
                continue
        return found

    async def event(self, **values: Any) -> Event:
        """Wait for an event with these values; `ev` is one."""
        return await self.until(
            lambda events: next((e for e in events if values.items() <= e.items()), None),
            str(values),
        )

    async def heartbeat(self, feed: str) -> Event:
        """The next heartbeat from now on, which must say that the feed is `feed`."""
        at = len(self.events)
        event = await self.until(
            lambda _: next((e for e in self.events[at:] if e["ev"] == "heartbeat"), None),
            "a heartbeat",
        )
        assert event["feed"] == feed, (self.name, event)
        return event

    async def heartbeat_that_says(self, feed: str) -> Event:
        """The first heartbeat from now on that says that the feed is `feed`."""
        at = len(self.events)
        wanted = {"ev": "heartbeat", "feed": feed}
        return await self.until(
            lambda _: next((e for e in self.events[at:] if wanted.items() <= e.items()), None),
            f"a heartbeat that says {feed}",
        )

    async def said(self, command: Event, answer: str) -> Event:
        """Send a command and wait for the answer."""
        at = len(self.events)
        await self.connection.send(json.dumps(command))
        return await self.until(
            lambda _: next((e for e in self.events[at:] if e["ev"] == answer), None), answer
        )

    async def check_connected(self) -> None:
        """It was never disconnected, and is answered."""
        assert not self._reading.done(), f"{self.name} was disconnected"
        assert (await self.said({"op": "ping", "id": "c"}, "pong"))["id"] == "c"

    async def end(self) -> None:
        await self.connection.close()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def watching(
    daemon: Address, *symbols: str, name: str = "a client", **more: Any
) -> AsyncIterator[Watcher]:
    """A client that has subscribed `symbols`."""
    async with open_websocket(daemon) as connection:
        watcher = Watcher(connection, name)
        try:
            await watcher.event(ev="welcome")
            if symbols:
                await watcher.said({"op": "subscribe", "symbols": symbols} | more, "subscribed")
            yield watcher
        finally:
            await watcher.end()


def now_ms() -> float:
    """Milliseconds since the epoch."""
    return time.time() * 1000
