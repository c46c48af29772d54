"""What a process uses: CPU, memory, open files, and time for garbage collection.

Must not know: what the process is for. Read from the kernel by way of /proc, which Linux has; what
can't be read is None.

Own code: two files of /proc, for which psutil would be a compiled dependency.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Seconds for which a count of files holds that had to be made by listing them.
_LISTED_FOR: Final = 15.0


class ProcessStats:
    """What this process uses, from its making on."""

    def __init__(self, stopwatch: Callable[[], float] = time.perf_counter) -> None:
        """`stopwatch` gives seconds since some moment, precisely."""
        self._stopwatch = stopwatch
        self._started = time.time()
        self._began: float | None = None
        # Of each generation.
        self._collections = [0, 0, 0]
        self._seconds = [0.0, 0.0, 0.0]
        self._files: int | None = None
        self._files_listed_at: float | None = None

    def start(self) -> None:
        """Begin to time the collections of garbage."""
        gc.callbacks.append(self._collected)

    def stop(self) -> None:
        """Time no more. May be called twice."""
        with suppress(ValueError):
            gc.callbacks.remove(self._collected)

    def _collected(self, phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            self._began = self._stopwatch()
        elif self._began is not None:
            generation = about["generation"]
            self._collections[generation] += 1
            self._seconds[generation] += self._stopwatch() - self._began
            self._began = None

    def snapshot(self) -> dict[str, Any]:
        """What it uses now, as JSON.

        `cpu` is seconds since the process began, `memory` bytes that are resident, `files` what is
        open, `started` seconds since the epoch; `gc` has by generation how many collections there
        were, and the seconds they took.
        """
        return {
            "cpu": time.process_time(),
            "memory": _resident(),
            "files": self._count_files(),
            "started": self._started,
            "gc": {
                str(generation): {"collections": count, "seconds": seconds}
                for generation, (count, seconds) in enumerate(
                    zip(self._collections, self._seconds, strict=True)
                )
            },
        }

    def _count_files(self) -> int | None:
        with suppress(OSError):
            # Linux says so since 6.2 without listing them, which takes milliseconds for thousands.
            count = Path("/proc/self/fd").stat().st_size
            if count:
                return count
            now = self._stopwatch()
            if self._files_listed_at is None or now - self._files_listed_at > _LISTED_FOR:
                self._files_listed_at = now
                # Without the one by which they are listed.
                self._files = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - names alone
        return self._files


def _resident() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None
