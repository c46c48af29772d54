"""Redis for the peers that live in asyncio: a protocol around the shared reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from common import RedisReader, redis_socket


class _Subscriber(asyncio.Protocol):
    def __init__(self, reader: RedisReader) -> None:
        self.data_received = reader.feed

    def connection_lost(self, failure: Exception | None) -> None:
        asyncio.get_running_loop().stop()


async def subscribe(
    path: Path, quote: Callable[[bytes, bytes], None], end_of_read: Callable[[], None]
) -> None:
    """Deliver every quote to `quote`, and call `end_of_read` after each read of the socket."""
    reader = RedisReader(quote, end_of_read)
    connection = redis_socket(path)
    connection.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: _Subscriber(reader), sock=connection)
