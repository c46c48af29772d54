"""The log: what lines look like, where they go, how twistd gets it, and what workers send."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    capturedLogs,
    eventAsText,
    globalLogPublisher,
)
from twisted.python import log as older_log
from twisted.scripts._twistd_unix import ServerOptions

from pushservice.config.config import Config
from pushservice.monitoring import logs
from pushservice.monitoring.logs import (
    MAX_CARRIED,
    CarryingObserver,
    LogSettings,
    RotatedFile,
    carried,
    emit_carried,
    json_line,
    text_line,
    twistd_observer,
)

NOON = 1_763_812_800.25
HOSTILE = "\x1b[2J{conn}\r\n2026-01-01 [forged] \x9bevil\x00\u2028\u202eline\ud800"


class Said:
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


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture(autouse=True)
def _utc_and_no_log_of_ours(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(logs._Ours, "settings", LogSettings())
    monkeypatch.setattr(logs._Ours, "file", None)
    yield
    if logs._Ours.file is not None:
        logs._Ours.file.close()


def failed(said: Said) -> LogEvent:
    try:
        raise KeyError(HOSTILE)
    except KeyError:
        said.log.failure("it broke: {what}", what="a thing")
    return said.one()


def system_of(line: str) -> str:
    return line[line.index("[") + 1 : line.index("]")]


# -- text ----------------------------------------------------------------------------------------


def test_a_line_for_people_looks_as_twisteds_own(said):
    said.log.info("{n} quotes", n=3)
    event = said.one()
    line = text_line(event)
    assert line is not None
    assert line.endswith(" [pushservice.test#info] 3 quotes\n")
    # Twisted's own formatter, but for the newline at the end.
    assert line == eventAsText(event) + "\n"


def test_further_lines_and_tracebacks_begin_with_a_tab(said):
    said.log.warn("one\ntwo\nthree")
    line = text_line(said.one())
    assert line is not None
    assert line.endswith("[pushservice.test#warn] one\n\ttwo\n\tthree\n")
    line = text_line(failed(said))
    assert line is not None
    first, *rest = line.splitlines()
    assert first.endswith("[pushservice.test#critical] it broke: a thing")
    assert rest[0].startswith("\tTraceback")
    assert all(each.startswith("\t") for each in rest)
    assert "KeyError" in rest[-1]


def test_nothing_in_a_message_begins_a_line_or_drives_a_terminal(said):
    said.log.info("{text}", text=HOSTILE)
    line = text_line(said.one())
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


# -- JSON ----------------------------------------------------------------------------------------


def test_a_json_line_has_the_event_and_its_own_fields(said):
    said.log.info("{conn} came", conn="a-1", n=7, ratio=0.5, fine=True, none=None)
    line = json_line(said.one())
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


def test_fields_that_are_no_json_are_told_by_their_repr_and_bounded(said):
    class Odd:
        def __repr__(self) -> str:
            return "odd" * 10_000

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    said.log.info(
        "x",
        odd=Odd(),
        broken=Broken(),
        huge=1 << 80,
        long="x" * 100_000,
        path=Path("/a"),
        many={"a": [1, {2}, {"b": [3]}], 4: b"5"},
    )
    told = json.loads(json_line(said.one()) or "")
    assert told["odd"].startswith("oddodd")
    assert len(told["odd"]) < 1100
    assert "Broken" in told["broken"]
    assert told["huge"] == str(1 << 80)
    assert len(told["long"]) < 1100
    assert "characters" in told["long"]
    assert told["many"] == {"a": [1, "{2}", "{'b': [3]}"], "4": "b'5'"}


def test_a_field_whose_name_is_taken_gets_an_underscore(said):
    said.log.info("x", time=1, message=3, worker=4)
    told = json.loads(json_line(said.one() | {"level": 2}) or "")
    assert (told["time_"], told["level_"], told["message_"], told["worker_"]) == (1, 2, 3, 4)
    assert told["message"] == "x"
    assert "worker" not in told


def test_hostile_text_is_valid_json(said):
    said.log.info("{text}", text=HOSTILE)
    line = json_line(said.one())
    assert line is not None
    assert line.count("\n") == 1
    assert json.loads(line.encode())["message"] == HOSTILE.replace("\ud800", "\\ud800")


def test_a_failure_is_in_json_with_its_traceback(said):
    told = json.loads(json_line(failed(said)) or "")
    assert told["message"] == "it broke: a thing"
    assert told["traceback"].startswith("Traceback")
    assert told["what"] == "a thing"


# -- the file ------------------------------------------------------------------------------------


@pytest.fixture
def opened() -> Iterator[Any]:
    """Opens logs that are closed in the end."""
    files: list[RotatedFile] = []

    def opened(path: Path, max_size: int = 0, keep: int = 3) -> RotatedFile:
        files.append(RotatedFile(str(path), max_size, keep))
        return files[-1]

    yield opened
    for file in files:
        file.close()


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_a_log_is_rotated_at_its_size_and_so_many_old_ones_are_kept(tmp_path, opened):
    file = opened(tmp_path / "log", max_size=10, keep=2)
    for n in range(5):
        file.write(f"line {n} ....\n")
    assert contents(tmp_path) == {
        "log": "line 4 ....\n",
        "log.1": "line 3 ....\n",
        "log.2": "line 2 ....\n",
    }


def test_a_log_without_a_size_is_never_rotated_by_itself(tmp_path, opened):
    file = opened(tmp_path / "log", max_size=0)
    file.write("x" * 5_000_000)
    file.write("y\n")
    assert list(contents(tmp_path)) == ["log"]


def test_a_log_that_was_there_is_continued(tmp_path, opened):
    (tmp_path / "log").write_text("before\n")
    file = opened(tmp_path / "log", max_size=12)
    file.write("after\n")
    assert contents(tmp_path) == {"log": "before\nafter\n"}
    file.write("anew\n")
    assert contents(tmp_path)["log"] == "anew\n"


def test_the_mode_of_a_log_stays_when_it_is_rotated(tmp_path, opened):
    (tmp_path / "log").touch(mode=0o600)
    (tmp_path / "log").chmod(0o640)
    file = opened(tmp_path / "log")
    file.write("x\n")
    file.rotate()
    file.write("y\n")
    assert contents(tmp_path) == {"log": "y\n", "log.1": "x\n"}
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


@pytest.mark.parametrize("by", ["moving", "moving and making", "deleting"])
def test_a_log_that_somebody_else_moved_is_opened_anew(tmp_path, opened, by):
    path = tmp_path / "log"
    file = opened(path)
    file.write("old\n")
    path.unlink() if by == "deleting" else path.rename(tmp_path / "log-2026")
    if by == "moving and making":
        path.touch(mode=0o604)
        path.chmod(0o604)
    file.write("late\n")
    file.reopen_or_rotate()
    file.write("new\n")
    found = contents(tmp_path)
    assert found.pop("log") == "new\n"
    assert found == ({} if by == "deleting" else {"log-2026": "old\nlate\n"})
    if by == "moving and making":
        assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_log_that_nobody_moved_is_rotated(tmp_path, opened):
    file = opened(tmp_path / "log")
    file.write("old\n")
    file.reopen_or_rotate()
    file.write("new\n")
    assert contents(tmp_path) == {"log": "new\n", "log.1": "old\n"}


def test_a_full_disk_is_told_once_until_it_is_over(tmp_path, opened, capfd):
    file = opened(Path("/dev/full"))
    file.write("one\n")
    file.write("two\n")
    complaint = capfd.readouterr().err
    assert complaint.count("\n") == 1
    assert complaint.startswith("quotepush: cannot write to the log: /dev/full: ")
    file.path = str(tmp_path / "log")
    file.reopen_or_rotate()
    file.write("three\n")
    assert (tmp_path / "log").read_text() == "three\n"
    file.path = "/dev/full"
    file.reopen_or_rotate()
    file.write("four\n")
    assert capfd.readouterr().err.count("\n") == 1


def test_a_line_that_a_full_disk_has_cut_is_ended_before_the_next(tmp_path, opened, capfd):
    file = opened(tmp_path / "log")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        file.write("whole\n")
        file.write("in two parts\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.write("after\n")
    assert (tmp_path / "log").read_text() == "whole\nin t\nafter\n"
    # No more than so much went to standard error either, which is a file here.
    assert capfd.readouterr().err == "quotepush:"


def test_a_device_is_written_to_and_never_rotated(opened, capfd):
    file = opened(Path(os.devnull), max_size=1)
    for _ in range(3):
        file.write("x\n")
    file.reopen_or_rotate()
    assert not stat.S_ISREG(Path(os.devnull).stat().st_mode)
    assert capfd.readouterr().err == ""


def hinder_rotation(directory: Path) -> None:
    """What rotation would have to move cannot be moved over a directory."""
    (directory / "log.1").mkdir()
    (directory / "log.2").mkdir()
    (directory / "log.2" / "x").touch()
    (directory / "log.3").touch()
    (directory / "log.4").mkdir()


def test_where_files_can_not_be_moved_the_log_goes_on_in_its_file(tmp_path, opened, capfd):
    file = opened(tmp_path / "log", max_size=10, keep=3)
    file.write("0123456789\n")
    hinder_rotation(tmp_path)
    for n in range(3):
        file.write(f"{n}\n")
    assert (tmp_path / "log").read_text() == "0123456789\n0\n1\n2\n"
    complaint = capfd.readouterr().err
    assert complaint.count("\n") == 1
    assert "cannot rotate the log" in complaint


def test_that_it_is_not_rotated_stands_in_the_log_once(tmp_path, opened, capfd):
    file = opened(tmp_path / "log", max_size=10)
    hinder_rotation(tmp_path)
    observer = FileLogObserver(file, text_line)
    globalLogPublisher.addObserver(observer)
    try:
        for n in range(5):
            file.write(f"line {n} of the log\n")
    finally:
        globalLogPublisher.removeObserver(observer)
    text = (tmp_path / "log").read_text()
    assert text.count("cannot rotate the log") == 1
    assert [line for line in text.splitlines() if line.startswith("line")] == [
        f"line {n} of the log" for n in range(5)
    ]
    assert capfd.readouterr().err.count("\n") == 1


def test_where_the_log_was_removed_it_is_not_rotated_by_itself(tmp_path, opened, capfd):
    file = opened(tmp_path / "log", max_size=4)
    file.write("12345\n")
    (tmp_path / "log").unlink()
    for _ in range(3):
        file.write("12345\n")
    assert capfd.readouterr().err.count("\n") == 1
    assert contents(tmp_path) == {}


def test_a_directory_that_is_gone_leaves_the_log_as_it_is(tmp_path, opened, capfd):
    directory = tmp_path / "d"
    directory.mkdir()
    file = opened(directory / "log")
    (directory / "log").unlink()
    directory.rmdir()
    file.reopen_or_rotate()
    file.write("x\n")
    assert "cannot open the log" in capfd.readouterr().err


# -- twistd --------------------------------------------------------------------------------------

DEFAULTS = ("text", "info", 10 * 1024 * 1024, 10)


def twistd_options(*arguments: str) -> ServerOptions:
    """twistd's options, as they are when a plugin's own are parsed."""
    options = ServerOptions()
    options.opts.update({"logger": None, "syslog": 0, "logfile": None, "nodaemon": 0})
    words = iter(arguments)
    for word in words:
        name = word.removeprefix("--")
        options[name] = 1 if name in ("syslog", "nodaemon") else next(words)
    return options


def test_the_defaults_are_those_of_the_options():
    config, settings = Config(), LogSettings()
    assert (config.log_format, config.log_level, config.log_max_size, config.log_keep) == DEFAULTS
    assert (settings.format, settings.level, settings.max_size, settings.keep) == DEFAULTS


def test_twistd_resolves_what_is_installed():
    options = twistd_options("--nodaemon")
    logs.install(options, *DEFAULTS)
    options.subOptions = None
    options["python"] = None
    options.postOptions()
    assert options["logger"] is twistd_observer


@pytest.mark.parametrize("theirs", [("--logger", "some.where"), ("--syslog",)])
def test_a_log_that_the_operator_gave_stays(theirs):
    options = twistd_options(*theirs)
    logs.install(options, *DEFAULTS)
    assert options["logger"] == (theirs[1] if len(theirs) > 1 else None)
    for at, (option, value) in enumerate(
        [("format", "json"), ("level", "debug"), ("max-size", 5), ("keep", 2)]
    ):
        settings: Any = [*DEFAULTS]
        settings[at] = value
        with pytest.raises(ValueError, match=f"^--log-{option} and twistd's {theirs[0]} excl"):
            logs.install(options, *settings)


def test_without_twistd_nothing_is_installed():
    logs.install(None, "json", "debug", 1, 1)
    assert logs._Ours.settings == LogSettings()


def test_a_daemon_logs_to_its_file_from_its_level_on(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    logs.install(twistd_options("--logfile", "my.log"), "json", "warn", 0, 5)
    observer = twistd_observer()
    assert ILogObserver.providedBy(observer)
    # Where the daemon goes later.
    monkeypatch.chdir("/")
    for level in ("debug", "info", "warn", "error"):
        getattr(said.log, level)("at {at}", at=level)
    for event in said.events:
        observer(event)
    lines = (tmp_path / "my.log").read_text().splitlines()
    assert [json.loads(line)["at"] for line in lines] == ["warn", "error"]
    logs.rotate()
    observer(said.events[-1])
    assert set(contents(tmp_path)) == {"my.log", "my.log.1"}


def test_what_is_below_the_level_is_not_formatted(tmp_path, said):
    class Never:
        def __str__(self) -> str:
            raise AssertionError("formatted")

        __format__ = __repr__ = __str__  # type: ignore[assignment]  # raises whatever is asked

    logs.install(twistd_options("--logfile", str(tmp_path / "log")), "text", "warn", 0, 5)
    observer = twistd_observer()
    said.log.info("{never}", never=Never())
    observer(said.one())
    assert contents(tmp_path) == {"log": ""}


def test_a_daemon_without_a_logfile_logs_to_twistd_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logs.install(twistd_options(), *DEFAULTS)
    twistd_observer()
    assert contents(tmp_path) == {"twistd.log": ""}


def test_a_daemon_can_not_log_to_standard_output():
    logs.install(twistd_options("--logfile", "-"), *DEFAULTS)
    with pytest.raises(SystemExit, match="Daemons cannot log to stdout"):
        twistd_observer()


def test_a_log_that_can_not_be_opened_ends_twistd_in_words(tmp_path):
    logs.install(twistd_options("--logfile", str(tmp_path / "none" / "log")), *DEFAULTS)
    with pytest.raises(SystemExit, match=r"cannot open the log .*none/log: No such file"):
        twistd_observer()


@pytest.mark.parametrize("arguments", [("--nodaemon",), ("--nodaemon", "--logfile", "-")])
def test_in_the_foreground_it_logs_to_standard_output(arguments, capsys, said):
    logs.install(twistd_options(*arguments), *DEFAULTS)
    observer = twistd_observer()
    said.log.info("hello")
    observer(said.one())
    logs.rotate()
    assert system_of(capsys.readouterr().out) == "pushservice.test#info"


def test_standard_output_that_is_full_is_told_once(monkeypatch, capfd, said):
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails too
    monkeypatch.setattr(sys, "stdout", full)
    logs.install(twistd_options("--nodaemon"), *DEFAULTS)
    observer = twistd_observer()
    monkeypatch.undo()
    said.log.info("hello")
    event = said.one()
    observer(event)
    observer(event)
    assert capfd.readouterr().err.count("cannot write the log to standard output") == 1
    with suppress(OSError):
        full.close()


def test_without_a_log_of_ours_rotating_does_nothing():
    logs.rotate()


# -- workers -------------------------------------------------------------------------------------


def through(event: LogEvent, worker: int = 2) -> LogEvent:
    """`event` as the other process has it, after a pipe."""
    message = json.loads(json.dumps(carried(event)))
    with capturedLogs() as events:
        emit_carried(message, worker)
    [emitted] = events
    return emitted


def test_a_workers_event_keeps_its_time_level_namespace_and_fields(said):
    said.log.warn("{conn} went", conn="a-1", n=7)
    event = said.one()
    emitted = through(event)
    assert (emitted["log_time"], emitted["log_level"]) == (NOON, LogLevel.warn)
    line = text_line(emitted)
    assert line == (text_line(event) or "").replace("[", "[worker 2 ", 1)
    assert line is not None
    assert system_of(line) == "worker 2 pushservice.test#warn"
    told = json.loads(json_line(emitted) or "")
    assert told == json.loads(json_line(event) or "") | {"worker": 2}


def test_a_workers_failure_keeps_its_traceback(said):
    event = failed(said)
    emitted = through(event)
    assert (text_line(emitted) or "").count("builtins.KeyError") == 1
    assert json.loads(json_line(emitted) or "")["traceback"].startswith("Traceback")
    # Twisted's own observers tell it too.
    assert "Traceback" in eventAsText(emitted)


def test_hostile_text_of_a_worker_is_not_formatted_again(said):
    said.log.info("{text} {{conn}}", text=HOSTILE, conn="{nothing.here}", log_x=1)
    emitted = through(said.one())
    assert "{conn}" in (text_line(emitted) or "")
    told = json.loads(json_line(emitted) or "")
    assert told["conn"] == "{nothing.here}"
    assert told["message"].endswith("{conn}")


@pytest.mark.parametrize("filling", ["x", "\x00", "é", "\U0001f4c8", "\ud800", '"', "{"])
def test_what_is_carried_is_bounded(said, filling):
    fields = {f"{filling * 2000}{n}": filling * 100_000 for n in range(200)}
    said.log.info("{m}", m=filling * 1_000_000, deep=[[filling * 9000] * 900] * 900, **fields)
    event = said.one()
    event["log_namespace"] = filling * 100_000
    try:
        raise ValueError(filling * 1_000_000)
    except ValueError:
        said.log.failure("f")
    event["log_failure"] = said.one()["log_failure"]
    assert len(json.dumps(carried(event), ensure_ascii=False).encode()) <= 1.1 * MAX_CARRIED
    through(event)


@pytest.mark.parametrize(
    "broken",
    [{}, {"time": "x"}, {"level": "loud"}, {"fields": 1}, {"message": None}, {"time": None}],
)
def test_what_carried_did_not_make_is_refused(broken):
    sound = {"time": 1.0, "level": "info", "namespace": "n", "message": "m"}
    with capturedLogs() as events, pytest.raises(ValueError, match=r"\w"):
        emit_carried(sound | broken if broken else {}, 1)
    assert not events


def test_fields_of_a_worker_can_not_pose_as_the_logs_own():
    with capturedLogs() as events:
        emit_carried(
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


def test_a_worker_hands_on_what_is_at_its_level(said):
    sent: list[dict[str, Any]] = []
    observer = CarryingObserver(lambda event: not sent.append(event), LogLevel.warn)
    assert ILogObserver.providedBy(observer)
    said.log.info("quiet")
    said.log.error("loud")
    for event in said.events:
        observer(event)
    assert [event["message"] for event in sent] == ["loud"]


def test_lines_that_could_not_be_sent_are_counted_and_told_before_the_next(said):
    sent: list[dict[str, Any]] = []
    room = 0

    def send(event: dict[str, Any]) -> bool:
        nonlocal room
        room -= 1
        if room >= 0:
            sent.append(event)
        return room >= 0

    observer = CarryingObserver(send)
    # How many could be sent before each line.
    for n, room_now in enumerate([1, 0, 0, 0, 1, 0, 9, 9]):
        room = room_now
        said.log.info("line {n}", n=n)
        observer(said.one())
    assert [event["message"] for event in sent] == [
        "line 0",
        # There was room for the warning alone: line 4 and the next are lost after it.
        "3 lines were dropped",
        "2 lines were dropped",
        "line 6",
        "line 7",
    ]
    assert sent[1]["level"] == "warn"


# -- within twistd -------------------------------------------------------------------------------


def test_twistd_starts_and_stops_with_it(tmp_path):
    """In a process of its own, as twistd's log is one for the whole process."""
    code = (
        "import os, sys; from twisted.application.app import AppLogger;"
        "from twisted.application.service import Application;"
        "from pushservice.monitoring import logs;"
        f"options = {{'logfile': {str(tmp_path / 'log')!r}, 'nodaemon': 1, 'logger': None}};"
        "logs.install(options, 'text', 'info', 0, 5);"
        "options['logger'] = logs.twistd_observer;"
        "app = AppLogger(options); app.start(Application('x'));"
        "print('through standard output'); logs.rotate(); app.stop()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = contents(tmp_path)
    assert "starting up" in found["log.1"]
    assert "#info] through standard output\n" in found["log.1"]
    assert "Server Shut Down" in found["log"]
