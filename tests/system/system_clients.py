"""Clients for the system tests: one that hands out events, and two that say every byte themselves.

Everything that waits has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from system_harness import DEADLINE, Address, environment
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

#: The `undisturbed` fixture: undisturbed(daemon, prefix) is entered around the bad input.
Undisturbed = Callable[..., AbstractAsyncContextManager[None]]


def open_websocket(daemon: Address, subprotocol: str | None = None, **options: Any) -> connect:
    """A `websockets` client of the daemon, with everything off that the tests do not mean."""
    return connect(
        daemon.url,
        ssl=daemon.ssl_context,
        subprotocols=None if subprotocol is None else [Subprotocol(subprotocol)],
        **{
            "compression": None,
            "max_size": None,
            "ping_interval": None,
            "open_timeout": DEADLINE,
            "proxy": None,
        }
        | options,
    )


class Client:
    """A client of `quotepush.v1.json` that hands out one event after the other."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._events: deque[dict[str, Any]] = deque()

    async def event(self) -> dict[str, Any]:
        """The next event."""
        while not self._events:
            async with asyncio.timeout(DEADLINE):
                text = await self.connection.recv()
            events = json.loads(text)
            assert isinstance(events, list), f"no array of events: {text[:200]!r}"
            self._events.extend(events)
        return self._events.popleft()

    async def expect(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of `kinds`; others but heartbeats before it fail."""
        while True:
            event = await self.event()
            if event["ev"] in kinds:
                return event
            assert event["ev"] == "heartbeat", f"expected {kinds}, got {event}"

    async def send(self, message: object) -> None:
        """Send text as it is, and everything else as JSON."""
        text = message if isinstance(message, str) else json.dumps(message)
        await self.connection.send(text)

    async def subscribe(self, *symbols: str, **more: Any) -> dict[str, Any]:
        await self.send({"op": "subscribe", "symbols": symbols} | more)
        return await self.expect("subscribed")

    async def ask(self, message: object) -> dict[str, Any]:
        """Send `message` and return what comes back first."""
        await self.send(message)
        return await self.expect("error", "subscribed", "unsubscribed", "list", "pong")

    async def closed(self) -> int | None:
        """Read to the end; returns the close code."""
        async with asyncio.timeout(DEADLINE):
            await self.connection.wait_closed()
        return self.connection.close_code


@asynccontextmanager
async def client_of(daemon: Address, *symbols: str, **options: Any) -> AsyncIterator[Client]:
    """A connected client that was welcomed and has subscribed `symbols`."""
    async with open_websocket(daemon, **options) as connection:
        client = Client(connection)
        await client.expect("welcome")
        if symbols:
            await client.subscribe(*symbols)
        yield client


# -- bare connections ----------------------------------------------------------------------------

UPGRADE = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True) -> bytes:
    """A client's frame (RFC 6455, section 5.2)."""
    head = bytes([opcode | (0x80 if final else 0)])
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + len(payload).to_bytes(2)
    else:
        head += bytes([bit | 127]) + len(payload).to_bytes(8)
    if not masked:
        return head + payload
    mask = b"\x37\xfa\x21\x3d"
    repeated = mask * (len(payload) // 4 + 1)
    return head + mask + bytes(a ^ b for a, b in zip(payload, repeated, strict=False))


@dataclass
class BareSocket:
    """A connection on which a test says every byte itself."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def upgrade(self, *headers: str) -> bytes:
        """Do the opening handshake; returns the head of the answer."""
        more = "".join(f"{header}\r\n" for header in headers)
        await self.send(f"{UPGRADE}{more}\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def frame(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload."""
        async with asyncio.timeout(DEADLINE):
            first, size = await self.reader.readexactly(2)
            length = size & 0x7F
            if length > 125:
                length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8))
            return first & 0x0F, await self.reader.readexactly(length)

    async def close_code(self) -> int:
        """Skip what comes before the server's close frame; returns its code, and answers it."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                await self.send(frame(8, payload[:2]))
                return int.from_bytes(payload[:2])

    async def rest(self, seconds: float = DEADLINE) -> bytes:
        """All that comes until the server closes; a reset counts as a close."""
        received = b""
        async with asyncio.timeout(seconds):
            try:
                while data := await self.reader.read(65536):
                    received += data
            except (ConnectionError, ssl.SSLError):
                pass
        return received


@asynccontextmanager
async def bare_socket(daemon: Address, *, tls: bool | None = None) -> AsyncIterator[BareSocket]:
    """Connect without a handshake; TLS where the daemon serves it unless said otherwise."""
    context = daemon.ssl_context if tls is not False else None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1",
        daemon.port,
        ssl=context,
        server_hostname="localhost" if context else None,
    )
    try:
        yield BareSocket(reader, writer)
    finally:
        writer.transport.abort()


class Puppet:
    """A blocking connection that reads and sends only when it is told to.

    `receive_buffer` is what its kernel takes unread (SO_RCVBUF), `source` its own address.
    """

    def __init__(
        self,
        daemon: Address,
        *,
        receive_buffer: int = 0,
        source: str = "127.0.0.1",
        tls: bool | None = None,
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(DEADLINE)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", daemon.port))
        if tls is not False and (context := daemon.ssl_context):
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self._data = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_some(self, size: int) -> bool:
        """Take up to `size` bytes from the kernel, to be parsed later; False at the end."""
        self._data += (data := self.socket.recv(size))
        return bool(data)

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            assert self.read_some(65536), f"the connection ended after {bytes(self._data)!r}"
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def frame(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload."""
        first, length = self._take(2)
        if length > 125:
            length = int.from_bytes(self._take(2 if length == 126 else 8))
        return first & 0x0F, self._take(length)

    def events(self) -> list[dict[str, Any]]:
        """The events of the next text frame; pings before it are left unanswered."""
        opcode, payload = self.frame()
        assert opcode in (1, 9), f"neither text nor a ping: {opcode} {payload!r}"
        return json.loads(payload) if opcode == 1 else self.events()

    def expect(self, kind: str) -> dict[str, Any]:
        """The next event of `kind`, alone in its frame; others before it are skipped."""
        deadline = time.monotonic() + DEADLINE
        while (events := self.events())[0]["ev"] != kind:
            assert time.monotonic() < deadline, f"no {kind} in {DEADLINE} s"
        return events[0]

    def upgrade(self, *headers: str) -> dict[str, Any]:
        """Do the opening handshake; returns the welcome."""
        more = "".join(f"{header}\r\n" for header in headers)
        self.send(f"{UPGRADE}{more}\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._take(1)
        assert b" 101 " in head, head
        return self.expect("welcome")

    def subscribe(self, *symbols: str, **more: Any) -> dict[str, Any]:
        message = {"op": "subscribe", "symbols": symbols} | more
        self.send(frame(1, json.dumps(message).encode()))
        return self.expect("subscribed")

    def rest(self) -> bytes:
        """All that comes until the server closes; a reset counts as a close."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self.read_some(65536):
                continue
        return bytes(self._data)

    def abort(self) -> None:
        """End it by a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@dataclass
class Ledger:
    """Keeps a client's books: `n` only grows, and what it jumped over is what was merged."""

    last: dict[str, int] = field(default_factory=dict)
    jumped: int = 0

    def enter(self, event: dict[str, Any]) -> int:
        """Book a quote or a heartbeat; returns how many updates a quote stands for."""
        if event["ev"] == "heartbeat":
            assert event["merged"] == self.jumped, (event, self.jumped)
            return 0
        assert event["ev"] == "quote", event
        step = event["n"] - self.last.get(event["s"], 0)
        assert step > 0, f"n fell or stayed: {event} after {self.last}"
        self.last[event["s"]] = event["n"]
        self.jumped += step - 1
        return step


def node_clients(node_modules: Path, told: object, subscribed: Callable[[], None]) -> list[Any]:
    """What clients of Node's ws saw that do as they are `told`; see ws_clients.mjs.

    `subscribed` is called once they all are.
    """
    script = Path(__file__).with_name("ws_clients.mjs")
    with subprocess.Popen(
        ["node", str(script), str(node_modules)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as node:
        try:
            assert node.stdin is not None
            assert node.stdout is not None
            node.stdin.write(json.dumps(told).encode())
            node.stdin.close()
            node.stdin = None
            assert node.stdout.readline() == b"subscribed\n"
            subscribed()
            output, _ = node.communicate(timeout=60)
        finally:
            node.kill()
    assert node.returncode == 0
    seen: list[Any] = json.loads(output)["clients"]
    return seen
