"""A TCP proxy in front of a Redis, with which tests make network faults."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from free_ports import free_port
from system_harness import DEADLINE


class _Pipe:
    """One connection through the proxy."""

    def __init__(self, down: asyncio.StreamWriter) -> None:
        self.down = down
        self.up: asyncio.StreamWriter | None = None
        #: nothing is forwarded or closed any more
        self.frozen = False

    def reset(self) -> None:
        """Close both sides, the daemon's with a reset."""
        sock = self.down.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for writer in (self.down, self.up):
            if writer is not None:
                writer.transport.abort()


class Proxy:
    """Forwards `port` to `target`, a loopback port; runs in a thread.

    `cut_at`: a message that has these bytes is forwarded up to the middle of them, and then all
    connections are reset.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.target = target
        self.cut_at: bytes | None = None
        self._frozen = False
        self._closing = False
        self._pipes: set[_Pipe] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.listen()

    # -- called by tests -------------------------------------------------------------------------

    def listen(self) -> None:
        """Accept connections (again)."""
        self._call(self._listen)

    def refuse(self) -> None:
        """Reset all connections and refuse new ones."""
        self._call(self._refuse)

    def close_new_connections(self, closing: bool) -> None:
        """Whether new connections are closed at once, as if there were no server."""
        self._closing = closing

    def reset(self) -> None:
        """Reset all connections."""
        self._call(self._reset)

    def freeze(self) -> None:
        """Forward and close nothing any more, for new connections too."""
        self._call(self._freeze)

    def thaw(self) -> None:
        """Serve new connections; frozen ones stay frozen."""
        self._frozen = False

    def stop(self) -> None:
        self._call(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    # -- in the thread ---------------------------------------------------------------------------

    def _call(self, what: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(what(), self._loop).result(DEADLINE)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()

    async def _reset(self) -> None:
        for pipe in list(self._pipes):
            pipe.reset()

    async def _freeze(self) -> None:
        self._frozen = True
        for pipe in self._pipes:
            pipe.frozen = True

    async def _stop(self) -> None:
        await self._refuse()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=DEADLINE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pipe = _Pipe(writer)
        pipe.frozen = self._frozen
        self._pipes.add(pipe)
        try:
            if not self._closing:
                await self._forward(pipe, reader)
        except (OSError, asyncio.CancelledError):
            # The end of one side ends the other.
            pass
        finally:
            self._pipes.discard(pipe)
            self._tasks.discard(task)
            pipe.reset()

    async def _forward(self, pipe: _Pipe, reader: asyncio.StreamReader) -> None:
        if pipe.frozen:
            while await reader.read(65536):
                continue
            return
        from_redis, pipe.up = await asyncio.open_connection("127.0.0.1", self.target)
        both = [
            asyncio.ensure_future(self._copy(pipe, reader, pipe.up, cutting=False)),
            asyncio.ensure_future(self._copy(pipe, from_redis, pipe.down, cutting=True)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _copy(
        self,
        pipe: _Pipe,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        cutting: bool,
    ) -> None:
        while data := await reader.read(65536):
            if pipe.frozen:
                continue
            cut = self.cut_at
            if cutting and cut is not None and cut in data:
                writer.write(data[: data.index(cut) + len(cut) // 2])
                await writer.drain()
                # An orderly close, so that the half of the message arrives.
                writer.close()
                return
            writer.write(data)
            await writer.drain()
        while pipe.frozen and not pipe.down.transport.is_closing():
            # Redis has closed the connection, which the daemon must not notice.
            await asyncio.sleep(0.05)
