"""Log events of workers: bounded, harmless, and logged as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from log_doubles import HOSTILE, NOON, failed, system_of
from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    capturedLogs,
    eventAsText,
)

from pushservice.monitoring.log_format import json_line, text_line
from pushservice.monitoring.worker_logs import (
    MAX_EVENT,
    ForwardingObserver,
    as_json,
    emit_worker_event,
)


def through(event: LogEvent, worker: int = 2) -> LogEvent:
    """`event` as the other process has it, after a pipe."""
    message = json.loads(json.dumps(as_json(event)))
    with capturedLogs() as events:
        emit_worker_event(message, worker)
    [emitted] = events
    return emitted


def test_a_workers_event_keeps_its_time_level_namespace_and_fields(captured):
    captured.log.warn("{conn} went", conn="a-1", n=7)
    event = captured.one()
    emitted = through(event)
    assert (emitted["log_time"], emitted["log_level"]) == (NOON, LogLevel.warn)
    line = text_line(emitted)
    assert line == (text_line(event) or "").replace("[", "[worker 2 ", 1)
    assert line is not None
    assert system_of(line) == "worker 2 pushservice.test#warn"
    told = json.loads(json_line(emitted) or "")
    assert told == json.loads(json_line(event) or "") | {"worker": 2}


def test_a_workers_failure_keeps_its_traceback(captured):
    event = failed(captured)
    emitted = through(event)
    assert (text_line(emitted) or "").count("builtins.KeyError") == 1
    assert json.loads(json_line(emitted) or "")["traceback"].startswith("Traceback")
    # Twisted's own observers tell it too.
    assert "Traceback" in eventAsText(emitted)


def test_hostile_text_of_a_worker_is_not_formatted_again(captured):
    captured.log.info("{text} {{conn}}", text=HOSTILE, conn="{nothing.here}", log_x=1)
    emitted = through(captured.one())
    assert "{conn}" in (text_line(emitted) or "")
    told = json.loads(json_line(emitted) or "")
    assert told["conn"] == "{nothing.here}"
    assert told["message"].endswith("{conn}")


@pytest.mark.parametrize("filling", ["x", "\x00", "é", "\U0001f4c8", "\ud800", '"', "{"])
def test_what_is_carried_is_bounded(captured, filling):
    fields = {f"{filling * 2000}{n}": filling * 100_000 for n in range(200)}
    captured.log.info("{m}", m=filling * 1_000_000, deep=[[filling * 9000] * 900] * 900, **fields)
    event = captured.one()
    event["log_namespace"] = filling * 100_000
    try:
        raise ValueError(filling * 1_000_000)
    except ValueError:
        captured.log.failure("f")
    event["log_failure"] = captured.one()["log_failure"]
    assert len(json.dumps(as_json(event), ensure_ascii=False).encode()) <= 1.1 * MAX_EVENT
    through(event)


@pytest.mark.parametrize(
    "broken",
    [{}, {"time": "x"}, {"level": "loud"}, {"fields": 1}, {"message": None}, {"time": None}],
)
def test_what_carried_did_not_make_is_refused(broken):
    sound = {"time": 1.0, "level": "info", "namespace": "n", "message": "m"}
    with capturedLogs() as events, pytest.raises(ValueError, match=r"\w"):
        emit_worker_event(sound | broken if broken else {}, 1)
    assert not events


def test_fields_of_a_worker_can_not_pose_as_the_logs_own():
    with capturedLogs() as events:
        emit_worker_event(
            {
                "time": 1.0,
                "level": "info",
                "namespace": "n",
                "message": "m",
                "fields": {"log_format": "{x}", "log_worker": 9, "worker": 8, "x": 1},
            },
            3,
        )
    told = json.loads(json_line(events[0]) or "")
    assert (told["message"], told["worker"], told["worker_"]) == ("m", 3, 8)


def test_a_worker_hands_on_what_is_at_its_level(captured):
    sent: list[dict[str, Any]] = []
    observer = ForwardingObserver(lambda event: not sent.append(event), LogLevel.warn)
    assert ILogObserver.providedBy(observer)
    captured.log.info("quiet")
    captured.log.error("loud")
    for event in captured.events:
        observer(event)
    assert [event["message"] for event in sent] == ["loud"]


def test_lines_that_could_not_be_sent_are_counted_and_told_before_the_next(captured):
    sent: list[dict[str, Any]] = []
    room = 0

    def send(event: dict[str, Any]) -> bool:
        nonlocal room
        room -= 1
        if room >= 0:
            sent.append(event)
        return room >= 0

    observer = ForwardingObserver(send)
    # How many could be sent before each line.
    for n, room_now in enumerate([1, 0, 0, 0, 1, 0, 9, 9]):
        room = room_now
        captured.log.info("line {n}", n=n)
        observer(captured.one())
    assert [event["message"] for event in sent] == [
        "line 0",
        # There was room for the warning alone: line 4 and the next are lost after it.
        "3 lines were dropped",
        "2 lines were dropped",
        "line 6",
        "line 7",
    ]
    assert sent[1]["level"] == "warn"
