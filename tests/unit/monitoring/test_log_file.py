"""The file of the log: rotated, opened anew, and never in the way when it can not be written."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from log_doubles import contents
from twisted.logger import (
    FileLogObserver,
    globalLogPublisher,
)

from pushservice.monitoring.log_file import RotatedFile
from pushservice.monitoring.log_format import text_line


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
