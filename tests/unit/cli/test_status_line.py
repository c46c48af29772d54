"""How it goes is one line on a terminal, and a line each time elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios

import pytest
from twisted.logger import Logger

from pushservice.cli.status_line import StatusLine, count_of, size_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_elsewhere_than_on_a_terminal_each_is_a_line():
    out = io.StringIO()
    status = StatusLine(out, local=lambda: "12:00:00")
    status.say("one")
    status.say("two")
    status.line("the end")
    assert out.getvalue() == "12:00:00  one\n12:00:00  two\nthe end\n"


def test_on_a_terminal_it_is_one_line_until_one_that_stays():
    out = Terminal()
    status = StatusLine(out, local=lambda: "12:00:00")
    status.say("one")
    status.say("two")
    status.line("the end")
    status.line("really")
    assert out.getvalue() == "\r\x1b[K12:00:00  one\r\x1b[K12:00:00  two\nthe end\nreally\n"


@pytest.mark.parametrize(
    ("width", "shown"),
    [(17, "12:00:00  so far"), (16, "12:00:00  so f…"), (1, "…"), (0, "12:00:00  so far")],
)
def test_on_a_terminal_it_is_no_longer_than_a_line(width, shown):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with os.fdopen(theirs, "w") as out, os.fdopen(ours, "rb", 0) as screen:
        StatusLine(out, local=lambda: "12:00:00").say("so far")
        assert screen.read(100).decode() == f"\r\x1b[K{shown}"


def test_quiet_is_only_what_stays():
    out = io.StringIO()
    status = StatusLine(out, quiet=True)
    status.say("one")
    status.line("the end")
    assert out.getvalue() == "the end\n"


def test_warnings_that_are_logged_become_lines_and_the_rest_does_not():
    out, log = io.StringIO(), Logger()
    status = StatusLine(out)
    with status.warnings():
        log.info("nobody asks")
        log.warn("no {what}", what="Redis")
    log.warn("too late")
    assert out.getvalue() == "warning: no Redis\n"


def test_a_closed_stream_does_not_end_the_command():
    status = StatusLine(Closed())
    status.say("one")
    status.line("two")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 errors"), (1, "1 error"), (1200, "1,200 errors")]
)
def test_numbers_have_their_words(number, text):
    assert count_of(number, "error") == text
    assert count_of(number, "box", "boxes").endswith("box" if number == 1 else "boxes")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (61_240, "61.2 kB"), (1_204_700_000, "1,204.7 MB")],
)
def test_sizes_are_for_people(size, text):
    assert size_of(size) == text
