"""A hostile client for the benchmark: floods a server from an address of its own.

    python bench/flood.py PORT plain|tls          (flooded.py starts it)

Reads commands, one a line, and answers each with one line of JSON:

    connects SECONDS      connect, begin the handshake, abort when the server has answered
    subscribes SECONDS    subscribe and unsubscribe 200 symbols in turns
    pings SECONDS         ping frames of 125 bytes
    fragments SECONDS     messages of 1,000 bytes in fragments of one
    texts SECONDS         messages of one byte, which are no commands

It takes only the CPU that nobody else wants (SCHED_IDLE), and keeps to RATE frames or CONNECTS
connections a second, so that it takes nothing from the load generator on the same core. What the
server answers is read and dropped. When the server says that it closes, or hangs up, it comes back,
RETURNS times a second.
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
#: Frames a second, at most; and how many may be made up for after a pause.
RATE, BURST = 20_000, 200
#: Connections a second, at most; how many at a time; and seconds after which one is aborted.
CONNECTS, AT_ONCE, HOLD = 2_000, 64, 0.02
#: Connections a second of the kinds that need just one.
RETURNS = 50
PATIENCE = 2.0
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
#: A close frame, somewhere in what came: its size, and the first byte of its code.
CLOSE = re.compile(rb"\x88[\x02-\x7d][\x03\x04\x0f-\x13]")


@dataclass
class Tally:
    """What was done: frames or connections sent, and how often the server hung up or refused."""

    sent: int = 0
    connects: int = 0
    closed: int = 0
    refused: int = 0
    seconds: float = 0.0


def frame(first: int, payload: bytes) -> bytes:
    """One frame with the first byte as given, masked with zeros."""
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
    """So many a second, and no more than `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._left = 0.0
        self._at = time.monotonic()

    def take(self, most: int) -> int:
        """How many may go now, up to `most`."""
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

    def run(self, kind: str, seconds: float) -> Tally:
        """Flood for a while."""
        tally = Tally()
        began = time.monotonic()
        if kind == "connects":
            self._connects(tally, began + seconds)
        else:
            self._frames(tally, FRAMES[kind](), began + seconds)
        tally.seconds = time.monotonic() - began
        return tally

    def _socket(self) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A close is a reset: no port is kept for a minute after it.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.bind((ADDRESS, 0))
        return made

    # -- connections ---------------------------------------------------------------------------

    def _connects(self, tally: Tally, end: float) -> None:
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
                tally.connects += 1
            for descriptor, events in poll.poll(0.001):
                self._connected(tally, poll, waiting, descriptor, events)
            overdue = [at for at, (_, since) in waiting.items() if now - since > HOLD]
            for descriptor in overdue:
                waiting.pop(descriptor)[0].close()
        for made, _ in waiting.values():
            made.close()
        poll.close()

    def _connected(
        self,
        tally: Tally,
        poll: select.epoll,
        waiting: dict[int, tuple[socket.socket, float]],
        descriptor: int,
        events: int,
    ) -> None:
        """A connection is made, or answered."""
        made, _ = waiting[descriptor]
        try:
            if events == select.EPOLLOUT:
                made.send(self._opening)
                tally.sent += 1
                poll.modify(descriptor, select.EPOLLIN)
                return
            tally.closed += not made.recv(65536)
        except OSError:
            tally.refused += 1
        del waiting[descriptor]
        made.close()

    # -- frames ----------------------------------------------------------------------------------

    def _frames(self, tally: Tally, frames: list[bytes], end: float) -> None:
        budget = Budget(RATE, BURST)
        while time.monotonic() < end:
            came = time.monotonic()
            tally.connects += 1
            connection = None
            try:
                connection = self._enter()
                self._send(tally, connection, frames, budget, end)
            except ConnectionRefusedError:
                tally.refused += 1
            except OSError:
                if connection is None:
                    tally.refused += 1
                else:
                    tally.closed += 1
            finally:
                if connection is not None:
                    connection.close()
            time.sleep(max(0.0, min(came + 1 / RETURNS, end) - time.monotonic()))

    def _enter(self) -> socket.socket:
        """A WebSocket."""
        made = self._socket()
        try:
            made.settimeout(PATIENCE)
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
        tally: Tally,
        connection: socket.socket,
        frames: list[bytes],
        budget: Budget,
        end: float,
    ) -> None:
        """Frames one after the other until the end, or the server's."""
        at = in_hand = 0
        unsent = b""
        # Long ones fewer at a time: those in hand at the end are not counted.
        at_once = max(1, min(BURST, 16384 // len(frames[0])))
        while time.monotonic() < end:
            if not unsent:
                tally.sent += in_hand
                in_hand = budget.take(at_once)
                unsent = b"".join(frames[(at + more) % len(frames)] for more in range(in_hand))
                at = (at + in_hand) % len(frames)
            if unsent:
                with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
                    unsent = unsent[connection.send(unsent) :]
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                data = connection.recv(65536)
                if not data or CLOSE.search(data):
                    raise ConnectionResetError
            # A full socket is waited for, but not for long: answers must be read.
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
