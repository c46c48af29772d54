"""Notifies systemd of the state of the service (sd_notify(3)), and reads its watchdog interval.

Must not know: what the service does, when it is ready, or what calls this; it keeps no timer.

Own code: sdnotify may block and does not read the watchdog's settings; systemd-python needs
libsystemd to build.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

#: What systemd says to this process alone. A child that inherits them would speak in its name, so
#: whoever starts children takes them out of their environment.
VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class Systemd:
    """systemd's notification socket, or nothing where the environment names none.

    Each message is one datagram, sent at once or not at all: nothing here blocks or raises. Each
    method returns whether systemd has it; False where there is no systemd, or where its queue is
    full, as it may be for a moment.

    `watchdog_interval` is how many seconds to leave between calls of `watchdog`, half of what
    systemd waits (sd_watchdog_enabled(3)); None where it does not wait for this process.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        pid: int | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`pid` is this process where None; `monotonic_ns` reads CLOCK_MONOTONIC."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._monotonic_ns = monotonic_ns
        self.watchdog_interval = _interval(environment, os.getpid() if pid is None else pid)

    def ready(self) -> bool:
        """The start, or a reload, is over."""
        return self._send("READY=1")

    def reloading(self) -> bool:
        """A reload begins; `ready` ends it. systemd ties it to its signal by the time it began."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """The stop begins."""
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`; white space of all kinds in it becomes single spaces."""
        return self._send(f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> bool:
        """The process works; to be said every `watchdog_interval`."""
        return self._send("WATCHDOG=1")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(
                    message.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address
                )
        except OSError:
            return False
        return True


def _address(text: str) -> str | None:
    """The socket's address: a path, or with @ a name in the abstract namespace; None for others."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    return text if text.startswith("/") else None


def _interval(environment: Mapping[str, str], pid: int) -> float | None:
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    asked = environment.get("WATCHDOG_USEC", "")
    microseconds = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 20 else 0
    return microseconds / 2_000_000 or None
