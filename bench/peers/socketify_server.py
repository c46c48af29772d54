"""A peer: uWebSockets in C++ through socketify, with its own publish and subscribe.

socketify's own loop polls without waiting while there is traffic, which would burn a whole core in
the open loop. libuv's documented way to be embedded is used in its place: asyncio waits for libuv's
descriptor and lets it turn when there is something to do. Needs libuv.so.1.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes

from common import SUBSCRIBED, RedisReader, arguments, redis_socket
from socketify import App, AppOptions, OpCode
from socketify.native import ffi

_READ_SIZE = 65536
#: seconds between turns in which libuv's timers are looked after
_TIMERS = 0.1


def make_app(given: argparse.Namespace) -> App:
    """The application: a client subscribes to topics named like the symbols."""
    options = None
    if given.cert is not None:
        options = AppOptions(key_file_name=str(given.key), cert_file_name=str(given.cert))
    app = App(options)

    def message(ws: object, text: str | bytes, _opcode: OpCode) -> None:
        symbols = text if isinstance(text, bytes) else text.encode()
        for symbol in symbols.split(b","):
            ws.subscribe(symbol)
        ws.send(SUBSCRIBED, OpCode.TEXT)

    app.ws(
        "/*",
        {
            "compression": 0,
            "idle_timeout": 0,
            # Above this quotes would be dropped; the benchmark's clients never are so far behind.
            "max_backpressure": 16 * 1024 * 1024,
            "message": message,
        },
    )
    return app


async def main(given: argparse.Namespace, app: App, uv_descriptor: int) -> None:
    """Serve until Redis is gone."""
    loop = asyncio.get_running_loop()
    turn = app.loop.uv_loop.run_nowait
    text = OpCode.TEXT

    def quote(symbol: bytes, payload: bytes) -> None:
        app.publish(symbol, payload, text)

    reader = RedisReader(quote, turn)
    connection = redis_socket(given.redis)
    gone = loop.create_future()

    def readable() -> None:
        data = connection.recv(_READ_SIZE)
        if data:
            reader.feed(data)
        elif not gone.done():
            gone.set_result(None)

    def timers() -> None:
        turn()
        loop.call_later(_TIMERS, timers)

    loop.add_reader(uv_descriptor, turn)
    loop.add_reader(connection, readable)
    timers()
    await gone


if __name__ == "__main__":
    given = arguments()
    app = make_app(given)
    app.listen({"port": given.port, "host": "127.0.0.1"}, lambda _: None)
    libuv = ctypes.CDLL("libuv.so.1")
    libuv.uv_backend_fd.argtypes = [ctypes.c_void_p]
    native = int(ffi.cast("uintptr_t", app.loop.get_native_loop()))
    app.loop.loop.run_until_complete(main(given, app, libuv.uv_backend_fd(native)))
