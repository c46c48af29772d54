"""Log events of a worker process on their way to the manager, which logs them as the worker did.

Must not know: how events travel between processes, or where the manager's log goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from constantly import NamedConstant  # type: ignore[import-untyped]  # it has no types
from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    globalLogPublisher,
)
from zope.interface import implementer

from pushservice.monitoring.log_events import (
    MAX_FIELD,
    MAX_MESSAGE,
    MAX_TRACEBACK,
    encoded_json,
    json_fields,
    level_name,
    message_and_traceback,
    shortened,
)

#: Bytes of an event of a worker, as JSON.
MAX_EVENT: Final = 64 * 1024


class _WorkerEvent(msgspec.Struct):
    """The JSON form of an event of a worker."""

    time: float
    level: str
    namespace: str
    message: str
    fields: dict[str, Any] = {}
    traceback: str | None = None


def as_json(event: LogEvent) -> dict[str, object]:
    """`event` as what JSON can hold, in at most MAX_EVENT bytes. Its text is formatted here.

    Long texts are shortened; if that is not enough, the fields of the event are left out.
    """
    message, traceback = message_and_traceback(event)
    fields = json_fields(event, MAX_FIELD)
    for share in (1, 4):
        whole: dict[str, object] = {
            "time": float(event.get("log_time") or 0.0),
            "level": level_name(event) if event.get("log_level") is not None else "info",
            "namespace": shortened(str(event.get("log_namespace", "-")), 256),
            "message": shortened(message, MAX_MESSAGE // share),
        }
        if fields and share == 1:
            whole["fields"] = fields
        if traceback is not None:
            whole["traceback"] = shortened(traceback, MAX_TRACEBACK // share)
        encoded = encoded_json(whole)
        if len(encoded) <= MAX_EVENT:
            break
    sound: dict[str, object] = msgspec.json.decode(encoded)
    return sound


def emit_worker_event(mapping: Mapping[str, object], worker: int) -> None:
    """Log here what `as_json` made in worker process number `worker`, as it was logged there.

    Raises ValueError for a mapping that `as_json` did not make.
    """
    event = msgspec.convert(mapping, _WorkerEvent)
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
        # Read by observers of other packages.
        log_system=f"worker {worker} {event.namespace}#{event.level}",
        log_worker=worker,
        # The text is already formatted, so it is a value and no format.
        log_format="{log_text}",
        log_text=event.message,
    )
    if event.traceback is not None:
        own.update(log_format="{log_text}\n{log_traceback}", log_traceback=event.traceback)
    globalLogPublisher(own)


@implementer(ILogObserver)
class ForwardingObserver:
    """The log of a worker: passes each event at `level` or above to `send`, as JSON.

    An event for which `send` returns False is dropped and counted. A warning with the count is sent
    before the next event.
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
        if self.dropped or not self._send(as_json(event)):
            self.dropped += 1

    def _warning(self, event: LogEvent) -> dict[str, object]:
        return as_json(
            {
                "log_time": event.get("log_time"),
                "log_level": LogLevel.warn,
                "log_namespace": __name__,
                "log_format": "{dropped} lines were dropped",
                "dropped": self.dropped,
            }
        )
