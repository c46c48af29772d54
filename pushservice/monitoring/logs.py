"""The log: how an event becomes a line, where lines go, and how those of worker processes join.

Must not know: what is logged, who serves clients, or how events travel between processes.

twistd makes its log from a function that its option --logger names; `install` names ours there, so
that no private name of Twisted is needed.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, TextIO, cast

import msgspec
from constantly import NamedConstant  # type: ignore[import-untyped]  # it has no types
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    formatEvent,
    formatTime,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from twisted.python.reflect import safe_repr
from zope.interface import implementer

#: Characters of a field, of a message and of a traceback; what is over is cut out.
MAX_FIELD: Final = 1024
MAX_MESSAGE: Final = 8 * 1024
MAX_TRACEBACK: Final = 16 * 1024
#: Fields of an event, and things in a field that is a list or a mapping.
MAX_FIELDS: Final = 50
#: Bytes of an event that is carried from a worker, as JSON.
MAX_CARRIED: Final = 64 * 1024

#: What ends lines, drives terminals or turns text around, but for the tab and the newline.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
#: What Twisted's older log adds to each event, beside what names itself log_...
_LEGACY: Final = frozenset({"system", "message", "time", "isError", "failure", "format", "why"})


# -- what is in an event -------------------------------------------------------------------------


def _shortened(text: str, most: int) -> str:
    """`text` with at most `most` characters: its beginning and its end."""
    if len(text) <= most:
        return text
    left_out = f" [... {len(text) - most} characters ...] "
    return text[: most // 2] + left_out + text[len(text) - most // 2 :]


def _message_and_traceback(event: LogEvent) -> tuple[str, str | None]:
    """What an event says, and where it has a failure, that one's traceback."""
    if isinstance(carried_traceback := event.get("log_traceback"), str):
        return str(event.get("log_text")), carried_traceback
    failure = event.get("log_failure")
    if failure is None and isinstance(event.get("failure"), Failure):
        # Twisted's older log puts the traceback into the text.
        return str(event.get("why") or "Unhandled Error"), _traceback(event["failure"])
    return formatEvent(event), None if failure is None else _traceback(failure)


def _traceback(failure: Failure) -> str:
    try:
        return str(failure.getTraceback()).rstrip("\n")
    except Exception as error:  # noqa: BLE001 - a failure that can't be told must not be lost
        return f"(no traceback: {safe_repr(error)})"


def _fields(event: LogEvent, most: int) -> dict[str, object]:
    """The event's own fields, as they can stand in JSON, texts with at most `most` characters."""
    legacy = _LEGACY if "isError" in event else frozenset()
    own = [name for name in event if not name.startswith("log_") and name not in legacy]
    return {
        _shortened(name, MAX_FIELD): _plain(event[name], most, depth=2) for name in own[:MAX_FIELDS]
    }


def _plain(value: object, most: int, depth: int) -> object:
    """`value` as it can stand in JSON, or its repr."""
    # Exactly these: what derives from them may do anything.
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is int and abs(cast("int", value)) < 1 << 63:
        return value
    if kind is str:
        return _shortened(cast("str", value), most)
    if depth and kind in (list, tuple, set, frozenset):
        items = list(cast("Iterable[object]", value))[:MAX_FIELDS]
        return [_plain(each, most // 4, depth - 1) for each in items]
    if depth and kind is dict:
        pairs = list(cast("dict[object, object]", value).items())[:MAX_FIELDS]
        return {
            _shortened(str(key) if type(key) is str else safe_repr(key), MAX_FIELD): _plain(
                each, most // 4, depth - 1
            )
            for key, each in pairs
        }
    return _shortened(safe_repr(value), most)


def _json(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        # Half of a surrogate pair somewhere: no UTF-8 has it.
        return msgspec.json.encode(_mended(value))


def _mended(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_mended(key): _mended(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_mended(each) for each in value]
    return value


# -- the two formats -----------------------------------------------------------------------------


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def text_line(event: LogEvent) -> str | None:
    """`event` for people; None for one that says nothing.

    Time, where it comes from and its level, message, as Twisted's own log has it. Further lines of
    the message, and the traceback, begin with a tab. Control characters are escaped, so that
    nobody's text can begin a line or drive a terminal.
    """
    message, traceback = _message_and_traceback(event)
    text = message if traceback is None else f"{message}\n{traceback}"
    if not text:
        return None
    system = _UNPRINTABLE.sub(_escape, _system(event).replace("\n", " "))
    text = _UNPRINTABLE.sub(_escape, text.rstrip("\n").replace("\r\n", "\n")).replace("\n", "\n\t")
    return f"{formatTime(event.get('log_time'))} [{system}] {text}\n"


def _system(event: LogEvent) -> str:
    if (system := event.get("log_system")) is not None:
        return str(system)
    return f"{event.get('log_namespace', '-')}#{_level_name(event)}"


def _level_name(event: LogEvent) -> str:
    return str(getattr(event.get("log_level"), "name", "-"))


def json_line(event: LogEvent) -> str | None:
    """`event` as a JSON object in one line; None for one that says nothing.

    `time` (ISO 8601, UTC, milliseconds), `level`, `namespace`, `worker` where a worker process
    logged it, `message`, the event's own fields, and `traceback` where there is a failure. A field
    that has the name of one of these gets an underscore behind it.
    """
    message, traceback = _message_and_traceback(event)
    if not message and traceback is None:
        return None
    when = event.get("log_time")
    line: dict[str, object] = {
        "time": None
        if when is None
        else datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds"),
        "level": _level_name(event),
        "namespace": event.get("log_namespace"),
    }
    if "log_worker" in event:
        line["worker"] = event["log_worker"]
    line["message"] = message
    taken = {*line, "worker", "traceback"}
    for name, value in _fields(event, MAX_FIELD).items():
        line[f"{name}_" if name in taken else name] = value
    if traceback is not None:
        line["traceback"] = traceback
    return _json(line).decode() + "\n"


#: The values of --log-format.
FORMATS: Final[Mapping[str, Callable[[LogEvent], str | None]]] = {
    "text": text_line,
    "json": json_line,
}


# -- where lines go ------------------------------------------------------------------------------


class _Complaints:
    """Says on standard error what is wrong with the log, once until it is right again."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, what: str, error: object) -> bool:
        """`what` does not work, because of `error`. False where that was said before."""
        if what in self._said:
            return False
        self._said.add(what)
        # The true standard error: Twisted puts the log in the place of the other.
        if sys.__stderr__ is not None:
            try:
                sys.__stderr__.write(f"quotepush: {what}: {error}\n")
                sys.__stderr__.flush()
            except (OSError, ValueError):
                pass
        return True

    def over(self, what: str) -> None:
        """`what` works again."""
        self._said.discard(what)


_log: Final = Logger()
_WRITE: Final = "cannot write to the log"
_ROTATE: Final = "cannot rotate the log"
_OPEN: Final = "cannot open the log"


class RotatedFile(LogFile):
    """Twisted's LogFile, rotated by size or on demand, that raises nothing once it is open.

    What can not be written is lost, and said once on standard error. Only regular files are
    rotated.
    """

    def __init__(self, path: str, max_size: int, keep: int) -> None:
        """Raises OSError where `path` can not be opened; `max_size` is in bytes, 0 for any."""
        self._complaints = _Complaints()
        self._cut = False
        self._regular = True
        absolute = Path(path).absolute()
        super().__init__(  # type: ignore[no-untyped-call]  # the library's, unannotated
            absolute.name, str(absolute.parent), rotateLength=max_size or None, maxRotatedFiles=keep
        )

    def _openFile(self) -> None:
        """Open what is at the path, or make it, for appending; called by LogFile."""
        new = not Path(self.path).exists()
        # Appending, so that nobody who truncates or shares the file makes holes in it.
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
            self._complaints.say(_WRITE, f"{self.path}: {error}")
        else:
            self._complaints.over(_WRITE)

    def rotate(self) -> None:
        """Begin the file anew; the old one gets `.1` behind its name, and so on."""
        if not self._regular:
            return
        before = self._file
        try:
            super().rotate()  # type: ignore[no-untyped-call]  # the library's, unannotated
            if self._file is before:
                # LogFile asks whether it may, and says nothing.
                self._cannot_rotate(
                    f"{self.path}: no permission to move files there, or it was moved"
                )
            else:
                self._complaints.over(_ROTATE)
        except OSError as error:
            if self._file.closed:
                self._reopen()
            self._cannot_rotate(error)

    def _cannot_rotate(self, error: object) -> None:
        # Not again at each line, but when as much again was written.
        self.size = 0
        if self._complaints.say(_ROTATE, error):
            # A daemon's standard error goes nowhere, and the log would grow in silence.
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
        """Use what is at the path now; if that can not be opened, go on as it is."""
        old = self._file
        try:
            self._openFile()
        except OSError as error:
            self._complaints.say(_OPEN, error)
        else:
            self._complaints.over(_OPEN)
            old.close()


class _Stream:
    """Standard output, as a file that raises nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._complaints = _Complaints()

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._complaints.say("cannot write the log to standard output", error)

    def flush(self) -> None:
        """Each write has done so."""


# -- how twistd gets it --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How the log is to be: `max_size` in bytes, 0 for any; of old ones `keep` are kept.

    `logfile` and `nodaemon` are twistd's options: an empty `logfile` is twistd.log for a daemon,
    and standard output, as `-` is, in the foreground.
    """

    format: str = "text"
    level: str = "info"
    max_size: int = 10 * 1024 * 1024
    keep: int = 10
    logfile: str = ""
    nodaemon: bool = False


class _Ours:
    """What this process logs to, where that is ours."""

    settings = LogSettings()
    file: RotatedFile | None = None


def install(
    parent: MutableMapping[str, Any] | None, format: str, level: str, max_size: int, keep: int
) -> None:
    """Have twistd log by these settings; `parent` are its options, whose postOptions is yet to run.

    An operator who gave twistd --logger or --syslog keeps theirs; then, settings that are no
    defaults raise ValueError. Without `parent` nothing happens.
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
    _Ours.settings = settings
    parent["logger"] = f"{__name__}.{twistd_observer.__name__}"


def twistd_observer() -> ILogObserver:
    """The observer of the settings that `install` was given; called by twistd as it starts.

    Ends the process, in words, where there is nowhere to log to.
    """
    settings = _Ours.settings
    if settings.logfile == "-" and not settings.nodaemon:
        sys.exit("Daemons cannot log to stdout, exiting!")
    out: object
    if settings.nodaemon and settings.logfile in ("", "-"):
        out = _Stream(sys.stdout)
    else:
        path = settings.logfile or "twistd.log"
        try:
            out = _Ours.file = RotatedFile(path, settings.max_size, settings.keep)
        except OSError as error:
            sys.exit(f"quotepush: cannot open the log {Path(path).absolute()}: {error.strerror}")
    observer = FileLogObserver(cast("IO[Any]", out), FORMATS[settings.format])
    return FilteringLogObserver(observer, [_level_filter(settings.level)])


def _level_filter(level: str) -> LogLevelFilterPredicate:
    return LogLevelFilterPredicate(LogLevel.levelWithName(level))


def rotate() -> None:
    """Rotate the log, or open it anew if it was moved: for SIGUSR1, in the reactor's thread.

    Does nothing where the log is not ours, or no file.
    """
    if _Ours.file is not None:
        _Ours.file.reopen_or_rotate()


# -- workers -------------------------------------------------------------------------------------


class _Carried(msgspec.Struct):
    """What a worker's event is between processes."""

    time: float
    level: str
    namespace: str
    message: str
    fields: dict[str, Any] = {}
    traceback: str | None = None


def carried(event: LogEvent) -> dict[str, object]:
    """`event` as what JSON can hold, in at most MAX_CARRIED bytes; the text is formatted here.

    What is too long is shortened; if that is not enough the event's own fields are left out.
    """
    message, traceback = _message_and_traceback(event)
    fields = _fields(event, MAX_FIELD)
    for share in (1, 4):
        whole: dict[str, object] = {
            "time": float(event.get("log_time") or 0.0),
            "level": _level_name(event) if event.get("log_level") is not None else "info",
            "namespace": _shortened(str(event.get("log_namespace", "-")), 256),
            "message": _shortened(message, MAX_MESSAGE // share),
        }
        if fields and share == 1:
            whole["fields"] = fields
        if traceback is not None:
            whole["traceback"] = _shortened(traceback, MAX_TRACEBACK // share)
        encoded = _json(whole)
        if len(encoded) <= MAX_CARRIED:
            break
    sound: dict[str, object] = msgspec.json.decode(encoded)
    return sound


def emit_carried(mapping: Mapping[str, object], worker: int) -> None:
    """Log here what `carried` made in worker process number `worker`, as it was logged there.

    Raises ValueError for a mapping that `carried` did not make.
    """
    event = msgspec.convert(mapping, _Carried)
    level = next((each for each in LogLevel.iterconstants() if each.name == event.level), None)
    if level is None:
        raise ValueError(f"{event.level!r} is no level of a log event")
    own: dict[str, Any] = {
        name: value for name, value in event.fields.items() if not name.startswith("log_")
    }
    own.update(
        log_time=event.time,
        log_level=level,
        log_namespace=event.namespace,
        # For observers that are not ours, too.
        log_system=f"worker {worker} {event.namespace}#{event.level}",
        log_worker=worker,
        # Text that was formatted is a value here, and not formatted again.
        log_format="{log_text}",
        log_text=event.message,
    )
    if event.traceback is not None:
        own.update(log_format="{log_text}\n{log_traceback}", log_traceback=event.traceback)
    globalLogPublisher(own)


@implementer(ILogObserver)
class CarryingObserver:
    """A worker's log: hands each event from `level` on to `send`, as `carried` makes it.

    An event that `send` answers with False is dropped and counted; the next that can be sent comes
    after a warning that says how many.
    """

    def __init__(
        self, send: Callable[[dict[str, object]], bool], level: NamedConstant = LogLevel.info
    ) -> None:
        self._send = send
        self._filter = LogLevelFilterPredicate(level)
        #: events dropped since the last that was sent
        self.dropped = 0

    def __call__(self, event: LogEvent) -> None:
        """Log `event`."""
        if self._filter(event) == PredicateResult.no:
            return
        if self.dropped and self._send(self._warning(event)):
            self.dropped = 0
        if self.dropped or not self._send(carried(event)):
            self.dropped += 1

    def _warning(self, event: LogEvent) -> dict[str, object]:
        return carried(
            {
                "log_time": event.get("log_time"),
                "log_level": LogLevel.warn,
                "log_namespace": __name__,
                "log_format": "{dropped} lines were dropped",
                "dropped": self.dropped,
            }
        )
