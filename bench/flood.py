"""A hostile client for the benchmark: floods a server from a separate address.

    python bench/flood.py PORT plain|tls          (flooded.py starts it)

Reads commands, one per line, and answers each with one line of JSON:

    connects SECONDS      connect, begin the handshake, abort once the server has answered
    subscribes SECONDS    subscribe and unsubscribe 200 symbols alternately
    pings SECONDS         ping frames of 125 bytes
    fragments SECONDS     messages of 1,000 bytes in fragments of one byte
    texts SECONDS         messages of one byte, which are not commands

It uses only idle CPU time (SCHED_IDLE) and sends at most RATE frames or CONNECTS connections a
second, so that it takes nothing from the load generator on the same core. Answers of the server are
read and discarded. When the server closes the connection it reconnects, at most RECONNECTS times a
second.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

ADDRESS = "127.0.0.2"
#: The most frames a second, and the most that are made up for after a pause.
RATE, BURST = 20_000, 200
#: The most connections a second, the most at a time, and seconds until one is aborted.
CONNECTS, AT_ONCE, HOLD = 2_000, 64, 0.02
#: The most connections a second of the floods that need just one.
RECONNECTS = 50
TIMEOUT = 2.0
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
#: A close frame anywhere in what was received: its size, and the first byte of its code.
CLOSE = re.compile(rb"\x88[\x02-\x7d][\x03\x04\x0f-\x13]")


@dataclass
class FloodCounts:
    """Frames or connections sent, and how often the server closed or refused."""

    sent: int = 0
    connects: int = 0
    closed: int = 0
    refused: int = 0
    seconds: float = 0.0


def frame(first: int, payload: bytes) -> bytes:
    """One frame with this first byte, masked with zeros."""
    size = len(payload)
    head = bytes([first, 0x80 | size]) if size < 126 else struct.pack("!BBH", first, 254, size)
    return head + bytes(4) + payload


def command(op: str) -> bytes:
    """A text frame that subscribes or unsubscribes 200 symbols."""
    symbols = [f"F{at:04d}" for at in range(200)]
    return frame(0x81, json.dumps({"op": op, "symbols": symbols}).encode())


def fragments(message: bytes) -> list[bytes]:
    """A text message in frames of one byte."""
    last = len(message) - 1
    return [
        frame((1 if at == 0 else 0) | (0x80 if at == last else 0), message[at : at + 1])
        for at in range(len(message))
    ]


FRAMES: dict[str, Callable[[], list[bytes]]] = {
    "subscribes": lambda: [command("subscribe"), command("unsubscribe")],
    "pings": lambda: [frame(0x89, b"p" * 125)],
    "fragments": lambda: fragments(b'{"op":"ping"}'.ljust(1000)),
    "texts": lambda: [frame(0x81, b"x")],
}


class Budget:
    """A token bucket: `rate` a second, and at most `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._left = 0.0
        self._at = time.monotonic()

    def take(self, most: int) -> int:
        """Take up to `most` tokens; returns how many there were."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        taken = min(int(self._left), most)
        self._left -= taken
        return taken


class Flooder:
    """All kinds of floods against one server."""

    def __init__(self, port: int, *, tls: bool) -> None:
        self._port = port
        self._context = None
        self._opening = REQUEST[:-4]
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE
            outgoing = ssl.MemoryBIO()
            hello = self._context.wrap_bio(ssl.MemoryBIO(), outgoing)
            with contextlib.suppress(ssl.SSLWantReadError):
                hello.do_handshake()
            self._opening = outgoing.read()

    def run(self, kind: str, seconds: float) -> FloodCounts:
        """Flood for `seconds`."""
        counts = FloodCounts()
        began = time.monotonic()
        if kind == "connects":
            self._connects(counts, began + seconds)
        else:
            self._frames(counts, FRAMES[kind](), began + seconds)
        counts.seconds = time.monotonic() - began
        return counts

    def _socket(self) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Close with a reset, so that no port stays in TIME_WAIT.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.bind((ADDRESS, 0))
        return made

    # -- connections ---------------------------------------------------------------------------

    def _connects(self, counts: FloodCounts, end: float) -> None:
        poll = select.epoll()
        waiting: dict[int, tuple[socket.socket, float]] = {}
        budget = Budget(CONNECTS, BURST)
        while (now := time.monotonic()) < end:
            for _ in range(budget.take(AT_ONCE - len(waiting))):
                made = self._socket()
                made.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    made.connect(("127.0.0.1", self._port))
                waiting[made.fileno()] = made, now
                poll.register(made, select.EPOLLOUT)
                counts.connects += 1
            for descriptor, events in poll.poll(0.001):
                self._connected(counts, poll, waiting, descriptor, events)
            overdue = [at for at, (_, since) in waiting.items() if now - since > HOLD]
            for descriptor in overdue:
                waiting.pop(descriptor)[0].close()
        for made, _ in waiting.values():
            made.close()
        poll.close()

    def _connected(
        self,
        counts: FloodCounts,
        poll: select.epoll,
        waiting: dict[int, tuple[socket.socket, float]],
        descriptor: int,
        events: int,
    ) -> None:
        """A connection was made, or the server answered."""
        made, _ = waiting[descriptor]
        try:
            if events == select.EPOLLOUT:
                made.send(self._opening)
                counts.sent += 1
                poll.modify(descriptor, select.EPOLLIN)
                return
            counts.closed += not made.recv(65536)
        except OSError:
            counts.refused += 1
        del waiting[descriptor]
        made.close()

    # -- frames ----------------------------------------------------------------------------------

    def _frames(self, counts: FloodCounts, frames: list[bytes], end: float) -> None:
        budget = Budget(RATE, BURST)
        while time.monotonic() < end:
            started = time.monotonic()
            counts.connects += 1
            connection = None
            try:
                connection = self._open_websocket()
                self._send(counts, connection, frames, budget, end)
            except ConnectionRefusedError:
                counts.refused += 1
            except OSError:
                if connection is None:
                    counts.refused += 1
                else:
                    counts.closed += 1
            finally:
                if connection is not None:
                    connection.close()
            time.sleep(max(0.0, min(started + 1 / RECONNECTS, end) - time.monotonic()))

    def _open_websocket(self) -> socket.socket:
        """Connect and complete the WebSocket handshake."""
        made = self._socket()
        try:
            made.settimeout(TIMEOUT)
            made.connect(("127.0.0.1", self._port))
            if self._context is not None:
                made = self._context.wrap_socket(made)
            made.sendall(REQUEST)
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = made.recv(65536)
                if not more:
                    raise ConnectionRefusedError
                answer += more
            if b" 101 " not in answer[:20]:
                raise ConnectionRefusedError
        except OSError:
            made.close()
            raise
        made.setblocking(False)
        return made

    def _send(
        self,
        counts: FloodCounts,
        connection: socket.socket,
        frames: list[bytes],
        budget: Budget,
        end: float,
    ) -> None:
        """Send frames until `end`, or until the server closes."""
        at = batch = 0
        unsent = b""
        # Fewer long frames at a time, because the batch at the end is not counted.
        at_once = max(1, min(BURST, 16384 // len(frames[0])))
        while time.monotonic() < end:
            if not unsent:
                counts.sent += batch
                batch = budget.take(at_once)
                unsent = b"".join(frames[(at + more) % len(frames)] for more in range(batch))
                at = (at + batch) % len(frames)
            if unsent:
                with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
                    unsent = unsent[connection.send(unsent) :]
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                data = connection.recv(65536)
                if not data or CLOSE.search(data):
                    raise ConnectionResetError
            # Wait for a full socket only briefly, because answers must be read.
            writing = [connection] if unsent else []
            select.select([connection], writing, [], 0.002)


def main() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        os.nice(19)
    flooder = Flooder(int(sys.argv[1]), tls=sys.argv[2] == "tls")
    for line in sys.stdin:
        kind, seconds = line.split()
        print(json.dumps(asdict(flooder.run(kind, float(seconds)))), flush=True)


if __name__ == "__main__":
    main()
