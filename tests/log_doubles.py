"""Log events for tests, hostile text, and the contents of log files."""

from __future__ import annotations

from pathlib import Path

from twisted.logger import LogEvent, Logger, LogPublisher

NOON = 1_763_812_800.25
HOSTILE = "\x1b[2J{conn}\r\n2026-01-01 [forged] \x9bevil\x00\u2028\u202eline\ud800"


class CapturedLogger:
    """A logger's events, one at a time."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        publisher = LogPublisher(self.events.append)
        self.log = Logger("pushservice.test", observer=publisher)

    def one(self) -> LogEvent:
        [event] = self.events
        self.events.clear()
        event["log_time"] = NOON
        return event


def failed(captured: CapturedLogger) -> LogEvent:
    try:
        raise KeyError(HOSTILE)
    except KeyError:
        captured.log.failure("it broke: {what}", what="a thing")
    return captured.one()


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def system_of(line: str) -> str:
    return line[line.index("[") + 1 : line.index("]")]
