"""How log events become lines, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from log_doubles import HOSTILE, NOON, failed
from twisted.logger import (
    capturedLogs,
    eventAsText,
)
from twisted.python import log as older_log

from pushservice.monitoring.log_format import json_line, text_line


def test_a_line_for_people_looks_as_twisteds_own(captured):
    captured.log.info("{n} quotes", n=3)
    event = captured.one()
    line = text_line(event)
    assert line is not None
    assert line.endswith(" [pushservice.test#info] 3 quotes\n")
    # Twisted's own formatter, but for the newline at the end.
    assert line == eventAsText(event) + "\n"


def test_further_lines_and_tracebacks_begin_with_a_tab(captured):
    captured.log.warn("one\ntwo\nthree")
    line = text_line(captured.one())
    assert line is not None
    assert line.endswith("[pushservice.test#warn] one\n\ttwo\n\tthree\n")
    line = text_line(failed(captured))
    assert line is not None
    first, *rest = line.splitlines()
    assert first.endswith("[pushservice.test#critical] it broke: a thing")
    assert rest[0].startswith("\tTraceback")
    assert all(each.startswith("\t") for each in rest)
    assert "KeyError" in rest[-1]


def test_nothing_in_a_message_begins_a_line_or_drives_a_terminal(captured):
    captured.log.info("{text}", text=HOSTILE)
    line = text_line(captured.one())
    assert line is not None
    body = line.removesuffix("\n")
    first, second = body.split("\n")
    assert first.endswith("\\x1b[2J{conn}")
    assert second.startswith("\t2026-01-01 [forged] \\x9bevil\\x00\\u2028\\u202eline\\ud800")
    assert all(character.isprintable() or character in "\n\t" for character in body)
    line.encode()


def test_an_event_without_words_is_no_line():
    assert text_line({"log_time": NOON}) is None
    assert json_line({"log_time": NOON}) is None


def test_events_of_twisteds_older_log_are_lines_too(logged_failures):
    with capturedLogs() as events:
        older_log.msg("older {x} %s", system="reactor")
        try:
            raise ValueError("wrong")
        except ValueError:
            older_log.err(None, "why it broke")
    assert logged_failures.flush(ValueError)
    plain, broken = events
    line = text_line(plain)
    assert line is not None
    assert line.endswith(" [reactor] older {x} %s\n")
    line = text_line(broken)
    assert line is not None
    assert "] why it broke\n\tTraceback" in line
    assert line.count("ValueError: wrong") == 1
    told = json.loads(json_line(broken) or "")
    assert told["message"] == "why it broke"
    assert told["traceback"].endswith("ValueError: wrong")
    assert set(told) == {"time", "level", "namespace", "message", "traceback"}


def test_a_json_line_has_the_event_and_its_own_fields(captured):
    captured.log.info("{conn} came", conn="a-1", n=7, ratio=0.5, fine=True, none=None)
    line = json_line(captured.one())
    assert line is not None
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "time": "2025-11-22T12:00:00.250+00:00",
        "level": "info",
        "namespace": "pushservice.test",
        "message": "a-1 came",
        "conn": "a-1",
        "n": 7,
        "ratio": 0.5,
        "fine": True,
        "none": None,
    }


def test_fields_that_are_no_json_are_told_by_their_repr_and_bounded(captured):
    class Odd:
        def __repr__(self) -> str:
            return "odd" * 10_000

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    captured.log.info(
        "x",
        odd=Odd(),
        broken=Broken(),
        huge=1 << 80,
        long="x" * 100_000,
        path=Path("/a"),
        many={"a": [1, {2}, {"b": [3]}], 4: b"5"},
    )
    told = json.loads(json_line(captured.one()) or "")
    assert told["odd"].startswith("oddodd")
    assert len(told["odd"]) < 1100
    assert "Broken" in told["broken"]
    assert told["huge"] == str(1 << 80)
    assert len(told["long"]) < 1100
    assert "characters" in told["long"]
    assert told["many"] == {"a": [1, "{2}", "{'b': [3]}"], "4": "b'5'"}


def test_a_field_whose_name_is_taken_gets_an_underscore(captured):
    captured.log.info("x", time=1, message=3, worker=4)
    told = json.loads(json_line(captured.one() | {"level": 2}) or "")
    assert (told["time_"], told["level_"], told["message_"], told["worker_"]) == (1, 2, 3, 4)
    assert told["message"] == "x"
    assert "worker" not in told


def test_hostile_text_is_valid_json(captured):
    captured.log.info("{text}", text=HOSTILE)
    line = json_line(captured.one())
    assert line is not None
    assert line.count("\n") == 1
    assert json.loads(line.encode())["message"] == HOSTILE.replace("\ud800", "\\ud800")


def test_a_failure_is_in_json_with_its_traceback(captured):
    told = json.loads(json_line(failed(captured)) or "")
    assert told["message"] == "it broke: a thing"
    assert told["traceback"].startswith("Traceback")
    assert told["what"] == "a thing"
