"""`quotepush` as people type it: a process of its own, whose output is read as it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from system_harness import DEADLINE, environment, poll

QUOTEPUSH = str(Path(sys.executable).with_name("quotepush"))


class Command:
    """A command that runs; `out` and `err` are what it wrote so far."""

    def __init__(self, *words: str, directory: Path, stdin: int | None = None, **env: str) -> None:
        self.process = subprocess.Popen(
            [QUOTEPUSH, *words],
            cwd=directory,
            env=environment(**env),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._parts: dict[str, list[bytes]] = {"out": [], "err": []}
        streams = {"out": self.process.stdout, "err": self.process.stderr}
        self._threads = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in streams.items()
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str, stream) -> None:
        while part := stream.read1(65536):
            self._parts[name].append(part)
        stream.close()

    @property
    def out(self) -> bytes:
        return b"".join(self._parts["out"])

    @property
    def err(self) -> str:
        return b"".join(self._parts["err"]).decode()

    def wait_for(self, text: str, seconds: float = DEADLINE) -> None:
        """Wait until the standard error has `text`."""
        poll(
            lambda: text in self.err or self.process.poll() is not None,
            f"{text!r} in {self.err}",
            seconds,
        )
        self.wait_for_readers_if_ended()
        assert text in self.err, self.err

    def wait_for_readers_if_ended(self) -> None:
        if self.process.poll() is not None:
            for thread in self._threads:
                thread.join(DEADLINE)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait until it has ended; returns its exit status."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(DEADLINE)
            raise AssertionError(f"it did not end in {seconds} s: {self.err}") from None
        for thread in self._threads:
            thread.join(DEADLINE)
        return status

    def interrupt(self, number: int = signal.SIGINT) -> int:
        """Press Ctrl-C; returns its exit status."""
        self.process.send_signal(number)
        return self.wait()
