"""Free TCP ports for the servers of tests, different ones for tests that run at the same time."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Final

#: Below the ports that Linux gives to outgoing connections (ip_local_port_range, 32768 on), so that
#: no connection takes a port between its choice and the start of the server that it is for.
_FIRST: Final = 10_000
_EACH: Final = 2_750
_PROCESSES: Final = 8

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
_steps = itertools.count(os.getpid() * 37)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on, not given out before.

    Each process of pytest-xdist has a range of its own, and begins somewhere in it, so that two
    runs on one machine seldom meet.
    """
    for step in itertools.islice(_steps, _EACH):
        port = _FIRST + _worker * _EACH + step % _EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
