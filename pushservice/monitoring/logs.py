"""The log of this process as twistd gets it: the observer that the options describe.

twistd makes its log from a function that its option --logger names; `install` names ours there, so
that no private name of Twisted is needed.

Must not know: what is logged, who serves clients, or how events travel between processes.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
)

from pushservice.monitoring.log_file import RotatedFile, StandardOutput
from pushservice.monitoring.log_format import FORMATS


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the log is like. `max_size` is in bytes, 0 for no limit; `keep` rotated files are kept.

    `logfile` and `nodaemon` are twistd's options: an empty `logfile` is twistd.log for a daemon,
    and standard output, as `-` is, in the foreground.
    """

    format: str = "text"
    level: str = "info"
    max_size: int = 10 * 1024 * 1024
    keep: int = 10
    logfile: str = ""
    nodaemon: bool = False


class _Installed:
    """The settings and the file of the log that `install` was called for."""

    settings = LogSettings()
    file: RotatedFile | None = None


def install(
    parent: MutableMapping[str, Any] | None, format: str, level: str, max_size: int, keep: int
) -> None:
    """Have twistd log by these settings; `parent` are its options, whose postOptions is yet to run.

    An operator who gave twistd --logger or --syslog keeps that log; settings other than the
    defaults then raise ValueError. Without `parent` nothing happens.
    """
    if parent is None:
        return
    theirs = next((name for name in ("logger", "syslog") if parent.get(name)), None)
    settings = LogSettings(
        format,
        level,
        max_size,
        keep,
        logfile=parent.get("logfile") or "",
        nodaemon=bool(parent.get("nodaemon")),
    )
    if theirs is not None:
        default = LogSettings()
        changed = [
            option
            for option, value, usual in (
                ("--log-format", format, default.format),
                ("--log-level", level, default.level),
                ("--log-max-size", max_size, default.max_size),
                ("--log-keep", keep, default.keep),
            )
            if value != usual
        ]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} and twistd's --{theirs} exclude each other: --{theirs} puts"
                " another log in the place of quotepush's own"
            )
        return
    _Installed.settings = settings
    parent["logger"] = f"{__name__}.{twistd_observer.__name__}"


def twistd_observer() -> ILogObserver:
    """The observer of the settings that `install` was given; called by twistd as it starts.

    Ends the process with one line where the log can not be opened.
    """
    settings = _Installed.settings
    if settings.logfile == "-" and not settings.nodaemon:
        sys.exit("Daemons cannot log to stdout, exiting!")
    out: object
    if settings.nodaemon and settings.logfile in ("", "-"):
        out = StandardOutput(sys.stdout)
    else:
        path = settings.logfile or "twistd.log"
        try:
            out = _Installed.file = RotatedFile(path, settings.max_size, settings.keep)
        except OSError as error:
            sys.exit(f"quotepush: cannot open the log {Path(path).absolute()}: {error.strerror}")
    observer = FileLogObserver(cast("IO[Any]", out), FORMATS[settings.format])
    return FilteringLogObserver(observer, [_level_filter(settings.level)])


def _level_filter(level: str) -> LogLevelFilterPredicate:
    return LogLevelFilterPredicate(LogLevel.levelWithName(level))


def rotate() -> None:
    """Rotate the log, or open it anew if it was moved: for SIGUSR1, in the reactor's thread.

    Does nothing if the log is no file, or not the one that `install` set up.
    """
    if _Installed.file is not None:
        _Installed.file.reopen_or_rotate()
