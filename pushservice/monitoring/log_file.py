"""Where log lines go: a file that is rotated, or standard output. Writing to either raises nothing.

Must not know: what lines say, or which options choose the file.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final, TextIO

from twisted.logger import Logger
from twisted.python.logfile import LogFile


class _FaultReports:
    """Reports faults of the log on standard error, each once until it is over."""

    __slots__ = ("_reported",)

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def report(self, what: str, error: object) -> bool:
        """Report that `what` failed with `error`. Returns False where that was reported before."""
        if what in self._reported:
            return False
        self._reported.add(what)
        # Not sys.stderr: Twisted redirects that one to the log.
        if sys.__stderr__ is not None:
            try:
                sys.__stderr__.write(f"quotepush: {what}: {error}\n")
                sys.__stderr__.flush()
            except (OSError, ValueError):
                pass
        return True

    def over(self, what: str) -> None:
        """`what` works again."""
        self._reported.discard(what)


_log: Final = Logger()
_WRITE: Final = "cannot write to the log"
_ROTATE: Final = "cannot rotate the log"
_OPEN: Final = "cannot open the log"


class RotatedFile(LogFile):
    """Twisted's LogFile, rotated by size or on demand, that raises nothing once it is open.

    A line that can not be written is lost, which is reported once on standard error. Only regular
    files are rotated.
    """

    def __init__(self, path: str, max_size: int, keep: int) -> None:
        """Raises OSError where `path` can not be opened; `max_size` is in bytes, 0 for any."""
        self._faults = _FaultReports()
        self._cut = False
        self._regular = True
        absolute = Path(path).absolute()
        super().__init__(  # type: ignore[no-untyped-call]  # the library's, unannotated
            absolute.name, str(absolute.parent), rotateLength=max_size or None, maxRotatedFiles=keep
        )

    def _openFile(self) -> None:
        """Open what is at the path, or make it, for appending; called by LogFile."""
        new = not Path(self.path).exists()
        # Append, so that the file has no holes when another process truncates or shares it.
        file = open(self.path, "ab", buffering=0, opener=self._opener)  # noqa: SIM115 - Path has no opener; closed by LogFile
        details = os.fstat(file.fileno())
        if new and self.defaultMode is not None:
            os.fchmod(file.fileno(), self.defaultMode)
        self._file = file
        self.closed = False
        self._cut = False
        self._regular = stat.S_ISREG(details.st_mode)
        self.size = details.st_size

    def _opener(self, path: str, flags: int) -> int:
        return os.open(path, flags, 0o666 if self.defaultMode is None else self.defaultMode)

    def shouldRotate(self) -> bool:
        """Whether it is as large as it may be."""
        return bool(self._regular and self.rotateLength and self.size >= self.rotateLength)

    def write(self, data: bytes | str) -> None:
        """Write whole lines."""
        if isinstance(data, str):
            data = data.encode("utf-8", "backslashreplace")
        try:
            if self._file.closed:
                self._openFile()
            if self.shouldRotate():
                self.rotate()
            # A full disk may have cut the last line.
            rest = memoryview(b"\n" + data if self._cut else data)
            while rest:
                written = self._file.write(rest)
                self._cut = written < len(rest)
                self.size += written
                rest = rest[written:]
        except (OSError, ValueError, TypeError) as error:
            self._faults.report(_WRITE, f"{self.path}: {error}")
        else:
            self._faults.over(_WRITE)

    def rotate(self) -> None:
        """Begin the file anew; the old one gets `.1` behind its name, and so on."""
        if not self._regular:
            return
        before = self._file
        try:
            super().rotate()  # type: ignore[no-untyped-call]  # the library's, unannotated
            if self._file is before:
                # LogFile checks permissions, and gives up without an error.
                self._cannot_rotate(
                    f"{self.path}: no permission to move files there, or it was moved"
                )
            else:
                self._faults.over(_ROTATE)
        except OSError as error:
            if self._file.closed:
                self._reopen()
            self._cannot_rotate(error)

    def _cannot_rotate(self, error: object) -> None:
        # Try again once as much has been written, not at each line.
        self.size = 0
        if self._faults.report(_ROTATE, error):
            # The standard error of a daemon goes nowhere, so the log reports it too.
            _log.error(_ROTATE + ": {reason}", reason=str(error))

    def reopen_or_rotate(self) -> None:
        """Open the path anew if somebody has moved or removed the file; rotate it if not."""
        try:
            here = os.fstat(self._file.fileno())
            moved = not os.path.samestat(here, os.stat(self.path))  # noqa: PTH116 - beside fstat
        except (OSError, ValueError):
            moved = True
        if moved:
            self._reopen()
        else:
            self.rotate()

    def _reopen(self) -> None:
        """Open the path again; keep the old file if that fails."""
        old = self._file
        try:
            self._openFile()
        except OSError as error:
            self._faults.report(_OPEN, error)
        else:
            self._faults.over(_OPEN)
            old.close()


class StandardOutput:
    """Standard output as a log file; writing to it raises nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._faults = _FaultReports()

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._faults.report("cannot write the log to standard output", error)

    def flush(self) -> None:
        """Do nothing: each write flushes."""
