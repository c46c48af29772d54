"""What the kernel knows of a connection, and how much it may buffer for one.

Must not know: Twisted, TLS, or whose connection it is. Functions return None, and do not raise,
where a kernel does not tell.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from typing import Final

from pushservice.fanout.interfaces import Progress

#: Where Linux's struct tcp_info (linux/tcp.h) has tcpi_bytes_acked.
_BYTES_ACKED: Final = struct.Struct("=120xQ")
#: And where tcpi_bytes_sent, and tcpi_bytes_retrans, which are among them.
_BYTES_SENT: Final = struct.Struct("=200xQQ")


def progress(connection: socket.socket | None) -> Progress | None:
    """How much the peer of `connection` has received, or None."""
    if connection is None:
        return None
    queue = array.array("i", [0])
    try:
        # What was sent and is not acknowledged, or for a Unix socket not read (tcp(7), unix(7)).
        fcntl.ioctl(connection, termios.TIOCOUTQ, queue)
        if connection.family == socket.AF_UNIX:
            return Progress(-queue[0], queue[0])
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        return Progress(_BYTES_ACKED.unpack(info)[0], queue[0])
    except (OSError, ValueError, AttributeError, struct.error):
        return None


def bytes_held(connection: socket.socket | None) -> int:
    """Bytes that the kernel holds for the peer of `connection`; 0 where it does not say."""
    queue = array.array("i", [0])
    try:
        if connection is not None:
            # What was sent and is not acknowledged, and what was not sent yet (tcp(7), unix(7)).
            fcntl.ioctl(connection, termios.TIOCOUTQ, queue)
    except (OSError, ValueError):
        return 0
    return queue[0]


def bytes_sent(connection: socket.socket | None) -> int | None:
    """How many bytes the kernel has sent on `connection`, each counted once; None if unknown.

    Linux tells this of TCP, from 4.19 on. Bytes that it holds and has not sent yet do not count.
    """
    if connection is None or connection.family == socket.AF_UNIX:
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_SENT.size)
        sent, again = _BYTES_SENT.unpack(info)
    except (OSError, AttributeError, struct.error):
        return None
    return int(sent - again)


def bound_send_buffer(connection: socket.socket | None, size: int) -> None:
    """Have the kernel buffer about `size` bytes for `connection`; 0 leaves its own limit.

    TCP connections inherit this from the listening socket, Unix ones don't. Linux doubles the
    number, for its own bookkeeping (socket(7)).
    """
    if connection is not None and size:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
