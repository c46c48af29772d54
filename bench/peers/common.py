"""What the peers written in Python share: their command line, and Redis read by hiredis.

None of it is on the way from a quote to a client but the reading, which is the same C parser that
quotepush uses.
"""

from __future__ import annotations

import argparse
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import hiredis

#: What a peer answers once a client's symbols are watched.
SUBSCRIBED = b"subscribed"
#: Listen backlog: the benchmark opens many connections at a time.
BACKLOG = 1024
_CHANNEL_PREFIX = b"quote."


def arguments() -> argparse.Namespace:
    """The options with which the benchmark starts a peer; `cert` and `key` ask for TLS."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis", type=Path, required=True, help="Redis's Unix socket")
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--joined", action="store_true", help="one frame per client and read")
    return parser.parse_args()


def tls_context(given: argparse.Namespace) -> ssl.SSLContext | None:
    """TLS for asyncio, or None for plain."""
    if given.cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(given.cert, given.key)
    return context


def ready() -> None:
    """Tell the benchmark that the peer listens and that Redis confirmed the subscription."""
    print("ready", flush=True)


class RedisReader:
    """Parses what Redis sends to a subscriber of every quote's channel."""

    SUBSCRIBE = b"*2\r\n$10\r\nPSUBSCRIBE\r\n$7\r\nquote.*\r\n"

    def __init__(
        self, quote: Callable[[bytes, bytes], None], end_of_read: Callable[[], None]
    ) -> None:
        """`quote` is called with symbol and payload, `end_of_read` after each read's quotes."""
        self._reader = hiredis.Reader()
        self._quote = quote
        self._end_of_read = end_of_read

    def feed(self, data: bytes) -> None:
        """Take one read of the socket."""
        self._reader.feed(data)
        following = self._reader.gets
        quote = self._quote
        skip = len(_CHANNEL_PREFIX)
        while (message := following()) is not False:
            if message[0] == b"pmessage":
                quote(message[2][skip:], message[3])
            else:
                ready()
        self._end_of_read()


def redis_socket(path: Path) -> socket.socket:
    """A connected socket that has asked for every quote."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    connection.sendall(RedisReader.SUBSCRIBE)
    return connection
