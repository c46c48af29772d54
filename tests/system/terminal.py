"""A program in a real terminal, a pseudo-terminal of ours, and what is to be seen there."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from pathlib import Path

from system_harness import DEADLINE, environment, poll


class Terminal:
    """Runs a program; `seen` is all that was written to the terminal so far."""

    def __init__(self, words: Sequence[str], directory: Path, *, width: int = 80, height: int = 24):
        self.ours, self.theirs = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(self.theirs)
        self._parts: list[bytes] = []
        self.process = subprocess.Popen(
            words,
            cwd=directory,
            env=environment(TERM="xterm-256color"),
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            # The terminal is this session's, so that Ctrl-C reaches the program.
            preexec_fn=self._lead,  # noqa: PLW1509 - it takes no lock
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @staticmethod
    def _lead() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _read(self) -> None:
        try:
            while part := os.read(self.ours, 65536):
                self._parts.append(part)
        except OSError:
            # All other ends are closed.
            return

    @property
    def seen(self) -> str:
        return b"".join(self._parts).decode("utf-8", "replace")

    def resize(self, width: int, height: int) -> None:
        """Have another size from now on."""
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, size)

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.ours, keys)

    def wait_for(self, *texts: str, after: int = 0) -> None:
        """Wait until all of `texts` were written, from a place in `seen` on."""
        poll(
            lambda: (
                all(text in self.seen[after:] for text in texts) or self.process.poll() is not None
            ),
            f"{texts} in {self.seen[after:]!r}",
        )
        assert all(text in self.seen[after:] for text in texts), self.seen

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it did not end: {self.seen!r}") from None

    @property
    def is_as_before(self) -> bool:
        """Whether the terminal's settings are those of the beginning."""
        return termios.tcgetattr(self.theirs) == self.before

    def close(self) -> None:
        """End what runs and the terminal."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)
        os.close(self.theirs)
        self._thread.join(DEADLINE)
        os.close(self.ours)
