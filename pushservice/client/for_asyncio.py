"""The client for asyncio: ``async with connect(url) as quotes: async for event in quotes``.

Must not know: the protocol, or when to connect; the conversation decides, this carries it out. With
asyncio_connection the only user of the `websockets` package.

A reader that is slower than the quotes gets the newest ones: see Quotes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed

from pushservice.client.actions import Answer, AskToken, Command, Connect, Hangup, Send
from pushservice.client.asyncio_connection import (
    Link,
    close_reason,
    open_connection,
    report_failure,
)
from pushservice.client.asyncio_tls import tls_context
from pushservice.client.connection_errors import BROKEN
from pushservice.client.conversation import Conversation
from pushservice.client.event_queue import EventQueue
from pushservice.client.events import Event, QuoteError, State
from pushservice.client.options import Options, Settings
from pushservice.client.subscriptions import check_symbols

#: Events that wait as they came before quotes are merged.
ROOM: Final = 1000

_log = logging.getLogger("pushservice.client")

_E = TypeVar("_E")


class Quotes:
    """Live quotes: subscribe, then iterate over what comes; one reader at a time.

    It connects when it is entered, and connects again whenever the link is lost, with the
    subscriptions it had; each `State` tells how it stands. The iteration ends when it is left or
    closed, and raises QuoteError when the server or a mistake ended it for good.

    It reads on while the program is busy with an event. If more than `room` events wait, quotes are
    merged: the newest of each symbol waits, and its `merged` says how many it stands for, so that
    memory stays bounded and what is read next is what is true now. With mode "raw" nothing is
    merged: it stops reading then, and the daemon closes a client that is too slow for that (4008).
    """

    def __init__(self, options: Options, room: int = ROOM) -> None:
        """Raises ValueError or OSError if the file named by `ca` is no good."""
        if room < 1:
            raise ValueError(f"room is the number of events that may wait, from 1, not {room}")
        self._options = options
        self._trust = tls_context(options)
        self._core = Conversation(options, random.random)
        self._queue = EventQueue(room, keep_all=options.mode == "raw")
        self._link: Link | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.Future[None] | None = None
        self._room_wanted: asyncio.Future[None] | None = None
        self._finished = False

    # -- what a program does -----------------------------------------------------------------------

    @property
    def state(self) -> str:
        """How the connection stands, as in the last `State`, read or not."""
        return self._core.state

    @property
    def symbols(self) -> list[str]:
        """What is subscribed, or is to be once there is a connection."""
        return self._core.wanted

    async def subscribe(self, *symbols: str) -> dict[str, QuoteError]:
        """Subscribe, over all connections to come; returns once the server has answered.

        It waits for a connection as long as there is none. Returns the errors of the symbols that
        were refused, by symbol; raises QuoteError if all were, or if the connection was closed for
        good. A refused symbol is asked for again with each new connection or token, until it is
        unsubscribed.
        """
        check_symbols(symbols)
        errors: dict[str, QuoteError] = await self._ask(
            lambda now, done: self._core.subscribe(now, list(symbols), done)
        )
        return errors

    async def unsubscribe(self, *symbols: str) -> None:
        """Unsubscribe, or all where none is named; no quote of them is read after it returned."""
        check_symbols(symbols)
        gone = set(symbols or self._core.wanted)
        await self._ask(lambda now, done: self._core.unsubscribe(now, list(symbols) or None, done))
        self._queue.forget(gone - set(self._core.wanted))
        self._make_room()

    async def ping(self) -> float:
        """The round trip to the daemon in seconds; raises QuoteError if there is no connection."""
        seconds: float = await self._ask(self._core.ping)
        return seconds

    async def served(self) -> list[str]:
        """What the server has this connection subscribed to; raises QuoteError as `ping` does."""
        symbols: list[str] = await self._ask(self._core.served)
        return symbols

    def only(self, *kinds: type[_E]) -> AsyncIterator[_E]:
        """Iterate over the events of `kinds` alone: ``quotes.only(Quote)``; others are dropped."""
        return self._only(kinds)

    async def _only(self, kinds: tuple[type[_E], ...]) -> AsyncIterator[_E]:
        async for event in self:
            if isinstance(event, kinds):
                yield event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while (event := self._queue.take()) is None:
            if self._finished:
                raise StopAsyncIteration
            if self._core.over is not None:
                self._finished = True
                raise self._core.over
            if self._reader is not None:
                raise RuntimeError("somebody iterates already: one reader at a time")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        self._make_room()
        return event

    async def __aenter__(self) -> Self:
        if self._finished or self._core.state != "closed":
            raise RuntimeError("a client is entered once: call connect() for each")
        self._core.open(self._now())
        self._turn()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and end the iteration; what was not read is dropped."""
        self._finished = True
        self._core.close(self._now())
        self._turn()
        self._queue.clear()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if self._asking is not None:
            self._asking.cancel()  # it is the user's, and may take its time
        while self._tasks:
            await asyncio.wait(self._tasks)

    # -- the conversation's commands ---------------------------------------------------------------

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _ask(self, request: Any) -> Any:
        """Make a request of the conversation; returns its outcome, or raises it."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(outcome: object) -> None:
            if not answer.done():
                answer.set_result(outcome)

        request(self._now(), done)
        self._turn()
        outcome = await answer
        if isinstance(outcome, QuoteError):
            raise outcome
        return outcome

    def _turn(self) -> None:
        """Carry out what the conversation asks for, and queue its events."""
        for command in self._core.take_commands():
            self._carry_out(command)
        events = self._core.take_events()
        if events:
            self._queue.put(events)
            self._log_states(events)
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
        self._make_room()
        self._arm()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Send(text):
                if self._link is not None:
                    self._link.outgoing.put_nowait(text)
            case Answer(done, outcome):
                done(outcome)
            case Connect():
                self._link = Link()
                self._link.task = self._start(self._run(self._link))
            case Hangup(politely):
                link, self._link = self._link, None
                if link is not None:
                    self._start(link.hang_up(politely=politely))
            case AskToken(number, why):
                self._asking = self._start(self._ask_token(number, why))

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _arm(self) -> None:
        deadline = self._core.deadline
        if self._timer is not None:
            if self._timer.when() == deadline and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        # A loop may call a little early: without max() the due timer would be postponed for ever.
        deadline = self._core.deadline
        self._core.tick(self._now() if deadline is None else max(deadline, self._now()))
        self._turn()

    def _log_states(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, State):
                _log.info(
                    "%s: %s%s%s",
                    self._options.place,
                    event.name,
                    "" if event.delay is None else f" for {event.delay:.1f} s",
                    f": {event.reason} ({event.code})" if event.code is not None else "",
                )

    # -- connections -------------------------------------------------------------------------------

    async def _run(self, link: Link) -> None:
        try:
            socket = link.socket = await open_connection(self._options, self._trust)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no connection
            if self._link is link:
                self._link = None
                report_failure(self._core, self._now(), self._options, error)
                self._turn()
            return
        writing = asyncio.get_running_loop().create_task(link.write())
        try:
            await self._read(link, socket)
        finally:
            writing.cancel()

    async def _read(self, link: Link, socket: websockets.asyncio.client.ClientConnection) -> None:
        code, reason = BROKEN, ""
        try:
            while True:
                message = await socket.recv(decode=False)
                if self._link is not link:
                    return  # it was hung up
                self._core.received(self._now(), message)
                self._turn()
                if self._must_pause():
                    await self._wait_for_room()
        except ConnectionClosed as closed:
            code, reason = close_reason(closed)
        except Exception:  # noqa: BLE001 - the next link may do better
            _log.exception("the link is given up over an error of this client")
            reason = "an error of this client"
            socket.transport.abort()
        if self._link is link:
            self._link = None
            self._core.lost(self._now(), code, reason)
            self._turn()

    # -- a reader that is slow ---------------------------------------------------------------------

    def _must_pause(self) -> bool:
        # The program that should read may await an answer instead: do not block that answer.
        raw = self._options.mode == "raw"
        return raw and self._queue.full and not self._core.awaits_answers

    async def _wait_for_room(self) -> None:
        self._core.watchdog.listening = False
        self._room_wanted = asyncio.get_running_loop().create_future()
        try:
            await self._room_wanted
        finally:
            self._room_wanted = None
            self._core.watchdog.listening = True
            self._core.heard(self._now())

    def _make_room(self) -> None:
        wanted = self._room_wanted
        if wanted is not None and not wanted.done() and not self._must_pause():
            wanted.set_result(None)

    # -- tokens ------------------------------------------------------------------------------------

    async def _ask_token(self, number: int, why: str) -> None:
        ask: Any = self._options.token
        token = None
        try:
            token = ask(why)
            if inspect.isawaitable(token):
                token = await token
            if not isinstance(token, str) or not token:
                token = None
                raise TypeError("the token function gave no token")
        except Exception:  # noqa: BLE001 - it is the user's, and is called again
            _log.exception("no token from the token function; it is called again")
        self._core.token_came(self._now(), number, token)
        self._turn()


def connect(url: str, *, room: int = ROOM, **settings: Unpack[Settings]) -> Quotes:
    """A client to enter with ``async with``; it needs no daemon to be there yet.

    See Options for what can be said, and Quotes for `room`. Raises ValueError where that can't be
    right, and OSError where the file named by `ca` can't be read.
    """
    return Quotes(Options(url, **settings), room)
