"""The bytes of a connection for the conformance suite: over TCP or TLS, and how they end."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Final

#: Seconds in which whatever is waited for must come.
DEADLINE: Final = 15
_CHUNK: Final = 256 * 1024


class Link:
    """The bytes of a connection, over TCP or TLS; reads while it writes."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._ready = select.poll()
        self._received: list[bytes] = []
        self._broken = False
        #: how the server ended it: "in order", or in other words what was wrong; "" while open
        self.end = ""
        self._tls: ssl.SSLObject | None = None
        if tls is not None:
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls.wrap_bio(self._in, self._out, server_hostname="localhost")
            self._shake_hands(self._tls)

    def _shake_hands(self, tls: ssl.SSLObject) -> None:
        while not self.end:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self._write(self._out.read())
                self._wait(select.POLLIN)
            else:
                self._write(self._out.read())
                return

    def send(self, data: bytes) -> None:
        """Send all of `data`, or as much as the server takes before it ends the connection."""
        if self._tls is None:
            self._write(data)
        elif data and not self.end and not self._broken:
            self._tls.write(data)
            self._write(self._out.read())

    def receive(self) -> bytes:
        """What has come, at least a byte; nothing at the end, or when the deadline has passed."""
        while not self._received and not self.end:
            self._wait(select.POLLIN)
        data = b"".join(self._received)
        self._received.clear()
        return data

    def hang_up(self) -> None:
        """Send nothing more: under TLS its own end, else that of the stream."""
        if self._tls is None:
            self._broken = True
            # The server may have been first.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        elif not self._broken:
            self._say_goodbye(self._tls)

    def close(self) -> None:
        """Free the socket."""
        self._socket.close()

    def _say_goodbye(self, tls: ssl.SSLObject) -> None:
        # The answer has not come yet, and the stream's end is what counts.
        with contextlib.suppress(ssl.SSLError):
            tls.unwrap()
        self._write(self._out.read())
        self._broken = True

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left and not self._broken:
            try:
                left = left[self._socket.send(left[:_CHUNK]) :]
            except BlockingIOError:
                self._wait(select.POLLIN | select.POLLOUT)
                self._broken = self._broken or bool(self.end)
            except ConnectionError:
                # What came before can still be read.
                self._broken = True

    def _wait(self, interest: int) -> None:
        """Wait for the server, and read what is there."""
        self._ready.register(self._socket, interest)
        events = self._ready.poll(DEADLINE * 1000)
        if not events:
            self.end = f"still open after {DEADLINE} s"
        elif events[0][1] != select.POLLOUT:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except ConnectionError as error:
                self._ended(f"a broken connection, {error}")
                return
            if not data:
                self._ended("in order" if self._tls is None else "TCP ended without TLS's goodbye")
            elif self._tls is None:
                self._received.append(data)
            else:
                self._decrypt(self._tls, data)

    def _decrypt(self, tls: ssl.SSLObject, data: bytes) -> None:
        self._in.write(data)
        try:
            while data := tls.read(_CHUNK):
                self._received.append(data)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            self._ended(f"a broken TLS stream, {error}")
            return
        # The server's goodbye is answered, so that it can end the TCP connection.
        if not self._broken:
            self._say_goodbye(tls)
        self._wait_for_tcp()

    def _wait_for_tcp(self) -> None:
        while not self.end:
            self._ready.register(self._socket, select.POLLIN)
            if not self._ready.poll(DEADLINE * 1000):
                self._ended(f"TCP still open {DEADLINE} s after TLS's goodbye")
                return
            try:
                ended = not self._socket.recv(_CHUNK)
            except ConnectionError:
                ended = True
            if ended:
                self._ended("in order")

    def _ended(self, how: str) -> None:
        self.end = self.end or how
