"""The log as twistd gets it: by its options, in its file or on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from log_doubles import contents, system_of
from twisted.logger import (
    ILogObserver,
)
from twisted.scripts._twistd_unix import ServerOptions

from pushservice.config.config import Config
from pushservice.monitoring import logs
from pushservice.monitoring.logs import LogSettings, twistd_observer


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(logs._Installed, "settings", LogSettings())
    monkeypatch.setattr(logs._Installed, "file", None)
    yield
    if logs._Installed.file is not None:
        logs._Installed.file.close()


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
    assert logs._Installed.settings == LogSettings()


def test_a_daemon_logs_to_its_file_from_its_level_on(tmp_path, monkeypatch, captured):
    monkeypatch.chdir(tmp_path)
    logs.install(twistd_options("--logfile", "my.log"), "json", "warn", 0, 5)
    observer = twistd_observer()
    assert ILogObserver.providedBy(observer)
    # Where the daemon goes later.
    monkeypatch.chdir("/")
    for level in ("debug", "info", "warn", "error"):
        getattr(captured.log, level)("at {at}", at=level)
    for event in captured.events:
        observer(event)
    lines = (tmp_path / "my.log").read_text().splitlines()
    assert [json.loads(line)["at"] for line in lines] == ["warn", "error"]
    logs.rotate()
    observer(captured.events[-1])
    assert set(contents(tmp_path)) == {"my.log", "my.log.1"}


def test_what_is_below_the_level_is_not_formatted(tmp_path, captured):
    class Never:
        def __str__(self) -> str:
            raise AssertionError("formatted")

        __format__ = __repr__ = __str__  # type: ignore[assignment]  # raises whatever is asked

    logs.install(twistd_options("--logfile", str(tmp_path / "log")), "text", "warn", 0, 5)
    observer = twistd_observer()
    captured.log.info("{never}", never=Never())
    observer(captured.one())
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
def test_in_the_foreground_it_logs_to_standard_output(arguments, capsys, captured):
    logs.install(twistd_options(*arguments), *DEFAULTS)
    observer = twistd_observer()
    captured.log.info("hello")
    observer(captured.one())
    logs.rotate()
    assert system_of(capsys.readouterr().out) == "pushservice.test#info"


def test_standard_output_that_is_full_is_told_once(monkeypatch, capfd, captured):
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails too
    monkeypatch.setattr(sys, "stdout", full)
    logs.install(twistd_options("--nodaemon"), *DEFAULTS)
    observer = twistd_observer()
    monkeypatch.undo()
    captured.log.info("hello")
    event = captured.one()
    observer(event)
    observer(event)
    assert capfd.readouterr().err.count("cannot write the log to standard output") == 1
    with suppress(OSError):
        full.close()


def test_without_a_log_of_ours_rotating_does_nothing():
    logs.rotate()


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
