"""A progress line on the standard error, and counts and sizes for people.

Must not know: what progresses. Own code: one line; progress libraries (click, rich, tqdm) show bars
with a known end, and print nothing useful where the output is not a terminal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from twisted.logger import LogEvent


class StatusLine:
    """A line that is overwritten on a terminal; elsewhere a new line each time."""

    def __init__(
        self, stream: TextIO, *, quiet: bool = False, local: Callable[[], str] | None = None
    ) -> None:
        """With `quiet`, only warnings and summaries are written. `local` gives the local time."""
        self._stream = stream
        self._live = stream.isatty()
        self._quiet = quiet
        self._time = local or (lambda: time.strftime("%H:%M:%S"))
        self._open = False

    def say(self, text: str) -> None:
        """Show the progress."""
        if self._quiet:
            return
        text = f"{self._time()}  {text}"
        if self._live:
            # Go to the beginning of the line and clear it.
            self._write(f"\r\x1b[K{self._fitted(text)}")
            self._open = True
        else:
            self._write(f"{text}\n")

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._write(f"{self._ended()}{text}\n")

    def end(self) -> None:
        """End the progress line, so that other output begins on a new line."""
        if self._open:
            self._write(self._ended())

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Within the block, warnings and errors that are logged become lines that stay."""
        from twisted.logger import (
            FilteringLogObserver,
            ILogObserver,
            LogLevel,
            LogLevelFilterPredicate,
            formatEvent,
            globalLogPublisher,
        )
        from zope.interface import implementer

        @implementer(ILogObserver)
        def write(event: LogEvent) -> None:
            self.line(f"warning: {formatEvent(event)}")

        observer = FilteringLogObserver(write, [LogLevelFilterPredicate(LogLevel.warn)])
        globalLogPublisher.addObserver(observer)
        try:
            yield
        finally:
            globalLogPublisher.removeObserver(observer)

    def _fitted(self, text: str) -> str:
        """`text` cut to one line: of a text of two lines the next one would clear only the last."""
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            # A terminal of unknown width.
            return text
        # Some report none. The last cell stays free: some terminals go on to the next line there.
        return text if len(text) < width or not width else f"{text[: max(width - 2, 0)]}…"

    def _ended(self) -> str:
        was_open, self._open = self._open, False
        return "\n" if was_open else ""

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # Nobody reads it any more, which is no reason to stop.
            self._quiet = True


def count_of(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 error`, `1,200 errors`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size_of(size: int) -> str:
    """A number of bytes for people: `512 bytes`, `61.2 kB`, `1,204.7 MB`."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"
