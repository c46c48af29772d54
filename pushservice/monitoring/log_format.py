"""How a log event becomes a line: text for people, or a JSON object.

Must not know: where lines go, or which events are logged.

Own code: Twisted's JSON is for Twisted to read again; other programs need one flat object a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from twisted.logger import LogEvent, formatTime

from pushservice.monitoring.log_events import (
    MAX_FIELD,
    encoded_json,
    json_fields,
    level_name,
    message_and_traceback,
)

#: What ends lines, drives terminals or turns text around, but for the tab and the newline.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def text_line(event: LogEvent) -> str | None:
    """`event` for people; None if it has no text.

    Time, where it comes from and its level, message, as Twisted's own log has it. Further lines of
    the message, and the traceback, begin with a tab. Control characters are escaped, so that no
    text from outside can begin a line or control a terminal.
    """
    message, traceback = message_and_traceback(event)
    text = message if traceback is None else f"{message}\n{traceback}"
    if not text:
        return None
    system = _UNPRINTABLE.sub(_escape, _system(event).replace("\n", " "))
    text = _UNPRINTABLE.sub(_escape, text.rstrip("\n").replace("\r\n", "\n")).replace("\n", "\n\t")
    return f"{formatTime(event.get('log_time'))} [{system}] {text}\n"


def _system(event: LogEvent) -> str:
    if (system := event.get("log_system")) is not None:
        return str(system)
    return f"{event.get('log_namespace', '-')}#{level_name(event)}"


def json_line(event: LogEvent) -> str | None:
    """`event` as a JSON object in one line; None if it has no text.

    `time` (ISO 8601, UTC, milliseconds), `level`, `namespace`, `worker` where a worker process
    logged it, `message`, the event's own fields, and `traceback` where there is a failure. A field
    that has the name of one of these gets an underscore behind it.
    """
    message, traceback = message_and_traceback(event)
    if not message and traceback is None:
        return None
    when = event.get("log_time")
    line: dict[str, object] = {
        "time": None
        if when is None
        else datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds"),
        "level": level_name(event),
        "namespace": event.get("log_namespace"),
    }
    if "log_worker" in event:
        line["worker"] = event["log_worker"]
    line["message"] = message
    taken = {*line, "worker", "traceback"}
    for name, value in json_fields(event, MAX_FIELD).items():
        line[f"{name}_" if name in taken else name] = value
    if traceback is not None:
        line["traceback"] = traceback
    return encoded_json(line).decode() + "\n"


#: The values of --log-format.
FORMATS: Final[Mapping[str, Callable[[LogEvent], str | None]]] = {
    "text": text_line,
    "json": json_line,
}
