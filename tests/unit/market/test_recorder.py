"""What a feed delivers is written down in order, and what may be missing is marked."""

from __future__ import annotations

import pytest

from pushservice.market.recorder import Recorder
from pushservice.market.recording_format import Header, Mark, Message, read_header, read_line


class Time:
    now = 1_000_000

    def __call__(self) -> int:
        return self.now


class Lines(list):
    """Takes lines until there is no room."""

    room = 1000

    def write(self, line: bytes) -> None:
        if len(self) >= self.room:
            raise OSError(28, "No space left on device")
        self.append(line)


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def lines():
    return Lines()


def test_the_header_is_there_before_anything_came(time, lines):
    Recorder(lines, ("quote.*",), time)
    [header] = lines
    assert read_header(header) == Header(1_000_000, ("quote.*",))


def test_messages_are_written_with_the_time_they_came(time, lines):
    recorder = Recorder(lines, ("*",), time)
    recorder.publish("quote.A", b"1.50")
    time.now = 1_000_007
    recorder.publish("quote.B", b"\xff")
    recorder.flush()
    assert list(map(read_line, lines[1:])) == [
        Message(1_000_000, "quote.A", b"1.50"),
        Message(1_000_007, "quote.B", b"\xff"),
    ]
    assert (recorder.messages, recorder.size) == (2, 5)


def test_a_clock_that_is_set_back_does_not_turn_the_recording_back(time, lines):
    recorder = Recorder(lines, ("*",), time)
    time.now = 500
    recorder.publish("a", b"1")
    assert read_line(lines[1]).at == 1_000_000


def test_a_loss_and_its_end_are_marked_and_the_first_connection_is_none(time, lines):
    recorder = Recorder(lines, ("*",), time)
    for up in (False, True, True, False, False, True):
        time.now += 1
        recorder.feed_changed(up)
    assert list(map(read_line, lines[1:])) == [Mark(1_000_004, up=False), Mark(1_000_006, up=True)]
    assert recorder.losses == 1


def test_it_is_done_after_its_count_and_writes_no_more(time, lines):
    recorder = Recorder(lines, ("*",), time, 2)
    recorder.publish("a", b"1")
    assert not recorder.done.called
    recorder.publish("a", b"2")
    assert recorder.done.called
    recorder.publish("a", b"3")
    recorder.feed_changed(True)
    recorder.feed_changed(False)
    assert (len(lines), recorder.messages, recorder.losses) == (3, 2, 0)


def test_once_it_is_finished_nothing_is_written(time, lines):
    recorder = Recorder(lines, ("*",), time)
    recorder.finish()
    recorder.finish()
    recorder.publish("a", b"1")
    assert len(lines) == 1


def test_a_line_that_cannot_be_written_ends_it(time, lines):
    lines.room = 2
    recorder = Recorder(lines, ("*",), time)
    recorder.publish("a", b"1")
    recorder.publish("a", b"2")
    recorder.publish("a", b"3")
    recorder.fail(OSError(5, "more"))
    found = []
    recorder.done.addErrback(found.append)
    assert found[0].value.strerror == "No space left on device"
    assert recorder.messages == 1


def test_a_header_that_cannot_be_written_is_an_error_at_once(time, lines):
    lines.room = 0
    with pytest.raises(OSError, match="No space"):
        Recorder(lines, ("*",), time)
