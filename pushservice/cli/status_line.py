"""How it goes, said once a second on the standard error by what runs in a terminal.

Must not know: what goes on.
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
    """One line on a terminal, that is written anew; elsewhere a line each time."""

    def __init__(
        self, stream: TextIO, *, quiet: bool = False, local: Callable[[], str] | None = None
    ) -> None:
        """With `quiet`, only warnings and what is said last are written. `local` is the time."""
        self._stream = stream
        self._live = stream.isatty()
        self._quiet = quiet
        self._time = local or (lambda: time.strftime("%H:%M:%S"))
        self._open = False

    def say(self, text: str) -> None:
        """How it goes now."""
        if self._quiet:
            return
        text = f"{self._time()}  {text}"
        if self._live:
            # To the line's beginning, and what was there is cleared.
            self._write(f"\r\x1b[K{self._fitted(text)}")
            self._open = True
        else:
            self._write(f"{text}\n")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._write(f"{self._ended()}{text}\n")

    def end(self) -> None:
        """What others write begins on a line of its own."""
        if self._open:
            self._write(self._ended())

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """What is logged as a warning or worse becomes a line that stays."""
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
        """As much as one line has room for: of two lines the next text would clear the last."""
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            # A terminal of which nobody knows the width.
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
            # Nobody reads it any more, which is no reason to end.
            self._quiet = True


def count_of(number: int, one: str, many: str | None = None) -> str:
    """A number with its word: `1 error`, `1,200 errors`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size_of(size: int) -> str:
    """A number of bytes for people: `512 bytes`, `61.2 kB`, `1,204.7 MB`."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"
