"""Encrypts and sends frames to sockets that another process, on another core, reads."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from OpenSSL import SSL


def drain(port: int, count: int, tls: bool) -> None:
    """The other process: connect `count` times, then read everything until the sockets end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    poll = select.epoll()
    open_sockets: dict[int, socket.socket] = {}
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        if tls:
            # Records after the handshake are read and discarded.
            secure = context.wrap_socket(connection)
            connection = socket.socket(fileno=secure.detach())
        connection.setblocking(False)
        open_sockets[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
    space = bytearray(1024 * 1024)
    while open_sockets:
        for descriptor, _ in poll.poll():
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                if open_sockets[descriptor].recv_into(space):
                    continue
            poll.unregister(descriptor)
            del open_sockets[descriptor]


@contextlib.contextmanager
def drained(count: int, context: SSL.Context | None) -> Iterator[list[tuple[socket.socket, Any]]]:
    """Connections whose peer reads as fast as they are written to."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, __file__, str(port), str(count)]
        if context is not None:
            command.append("--tls")
        usual = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(usual)})
        child = subprocess.Popen(command)
        os.sched_setaffinity(0, {min(usual)})
        try:
            accepted = []
            for _ in range(count):
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                secure = None if context is None else handshake(connection, context)
                connection.setblocking(False)
                accepted.append((connection, secure))
            yield accepted
            for connection, _ in accepted:
                connection.close()
            child.wait(20)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            os.sched_setaffinity(0, usual)


def handshake(connection: socket.socket, context: SSL.Context) -> SSL.Connection:
    """TLS over a memory BIO, as Twisted does it."""
    secure = SSL.Connection(context, None)
    secure.set_accept_state()
    while True:
        try:
            secure.do_handshake()
        except SSL.WantReadError:
            done = False
        else:
            done = True
        with contextlib.suppress(SSL.WantReadError):
            while True:
                connection.sendall(secure.bio_read(65536))
        if done:
            return secure
        secure.bio_write(connection.recv(65536))


def send_parts(
    frames: list[bytes], quotes: int, pair: tuple[Path, Path] | None
) -> dict[str, float]:
    """CPU microseconds, for each of `quotes`, of encrypting and sending all `frames`."""
    context = None
    if pair is not None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.use_certificate_file(str(pair[0]))
        context.use_privatekey_file(str(pair[1]))
    clock = time.process_time
    encrypting = sending = 0.0
    runs = 0
    with drained(len(frames), context) as connections:
        while encrypting + sending < 0.6:
            began = clock()
            waiting = frames
            if pair is not None:
                waiting = [
                    encrypt(secure, frame)
                    for (_, secure), frame in zip(connections, frames, strict=True)
                ]
            encrypted = clock()
            for (connection, _), data in zip(connections, waiting, strict=True):
                send_all(connection, data)
            sending += clock() - encrypted
            encrypting += encrypted - began
            runs += 1
            if runs == 3:  # TCP windows are open by now
                encrypting = sending = 0.0
    deliveries = quotes * (runs - 3)
    parts = {"send": sending / deliveries * 1e6}
    if pair is not None:
        parts["encrypt"] = encrypting / deliveries * 1e6
    return parts


def encrypt(secure: SSL.Connection, frame: bytes) -> bytes:
    """The TLS records for a frame; SSL_write makes one at a time."""
    done = secure.send(frame)
    while done < len(frame):
        done += secure.send(frame[done:])
    return bytes(secure.bio_read(len(frame) + 65536))


def send_all(connection: socket.socket, data: bytes) -> None:
    """Send; waiting for a slow reader costs time, but no CPU."""
    while data:
        try:
            data = data[connection.send(data) :]
        except BlockingIOError:
            time.sleep(0.001)


if __name__ == "__main__":
    drain(int(sys.argv[1]), int(sys.argv[2]), tls="--tls" in sys.argv)
