"""What the manager and a worker say to each other: messages over pipes, whatever pieces come."""

from __future__ import annotations

import os
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer, reactor
from waiting import until

from pushservice.workers import worker_link
from pushservice.workers.worker_link import (
    ManagerLink,
    MessageDecoder,
    encoded,
    first_message,
    tell,
)

MESSAGES = st.lists(
    st.dictionaries(st.text(), st.none() | st.integers(-(2**53), 2**53) | st.text()), max_size=5
)


@given(messages=MESSAGES, data=st.data())
def test_messages_arrive_whole_wherever_they_are_split(messages, data):
    stream = b"".join(map(encoded, messages))
    lines, heard = MessageDecoder(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        heard += lines.feed(stream[:size])
        stream = stream[size:]
    assert heard == messages


def test_a_message_is_heard_once_it_is_complete():
    lines = MessageDecoder()
    assert lines.feed(b'{"a":1}') == []
    assert lines.feed(b'\n{"b"') == [{"a": 1}]
    assert lines.feed(b":2}\n") == [{"b": 2}]


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"\n", b'{"a":\n', b"\xff\n", b"7\n"])
def test_what_is_no_message_is_refused(line):
    with pytest.raises(ValueError, match=r"."):
        MessageDecoder().feed(line)


def test_what_is_no_json_can_not_be_said():
    with pytest.raises(TypeError):
        encoded({"what": object()})


# -- the first message -----------------------------------------------------------------------------


@pytest.fixture
def pipe():
    """A pipe's two ends, of which a test may close any."""
    ends = list(os.pipe())
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_the_first_message_is_taken_and_not_a_byte_of_the_next(pipe):
    reading, writing = pipe
    os.write(writing, encoded({"number": 1}) + encoded({"do": "serve"}))
    assert first_message(reading) == {"number": 1}
    assert os.read(reading, 100) == b'{"do":"serve"}\n'


def test_without_a_manager_there_is_no_first_message(pipe):
    reading, writing = pipe
    os.write(writing, b'{"number"')
    os.close(writing)
    with pytest.raises(EOFError, match="the manager is gone"):
        first_message(reading)


def test_a_first_message_that_is_none_is_refused(pipe):
    reading, writing = pipe
    os.write(writing, b"nonsense\n")
    with pytest.raises(ValueError, match=r"."):
        first_message(reading)


# -- a worker's end --------------------------------------------------------------------------------


class Manager:
    """The manager's ends of the pipes, and a link between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told, self.tells = os.pipe()
        self.hears, says = os.pipe()
        os.set_blocking(self.hears, False)
        monkeypatch.setattr(worker_link, "COMMANDS", told)
        monkeypatch.setattr(worker_link, "MESSAGES", says)
        self.heard: list[dict[str, Any]] = []
        self.lost = 0
        self.link = ManagerLink(self.heard.append, self._lost)
        self.link.open(reactor)
        self._lines = MessageDecoder()
        self._worker_ends = [told, says]

    def _lost(self) -> None:
        self.lost += 1

    def read(self) -> list[dict[str, Any]]:
        """What was said and not read yet."""
        try:
            return self._lines.feed(os.read(self.hears, 1 << 20))
        except BlockingIOError:
            return []

    def go(self) -> None:
        for end in (self.tells, self.hears):
            os.close(end)
        self.tells = self.hears = -1


@pytest.fixture
def manager(monkeypatch):
    made = Manager(monkeypatch)
    yield made
    if made.tells >= 0:
        made.go()
    pytest_twisted.blockon(defer.ensureDeferred(_gone(made)))


async def _gone(manager: Manager) -> None:
    await until(lambda: manager.link._pipes is None, "the link's end")


@pytest_twisted.ensureDeferred
async def test_a_worker_hears_what_it_is_told_and_is_heard(manager):
    os.write(manager.tells, encoded({"do": "serve"}) + b'{"do":"dr')
    await until(lambda: manager.heard, "the first message")
    os.write(manager.tells, b'ain"}\n')
    await until(lambda: len(manager.heard) == 2, "the second")
    assert manager.heard == [{"do": "serve"}, {"do": "drain"}]
    assert manager.link.send({"is": "serving"})
    said: list[Any] = []
    await until(lambda: said.extend(manager.read()) or said, "what it said")
    assert said == [{"is": "serving"}]


@pytest_twisted.ensureDeferred
async def test_a_lagging_manager_misses_only_what_is_not_needed(manager):
    link = manager.link
    filler = {"is": "log", "event": "x" * 100_000}
    while link.send(filler, needed=False):
        await until(lambda: True, "a turn")
    assert not link.send({"is": "log", "event": "left out"}, needed=False)
    assert link.send({"is": "feed_up"})
    said: list[Any] = []
    await until(
        lambda: said.extend(manager.read()) or (said and said[-1] == {"is": "feed_up"}), "all of it"
    )
    assert {"is": "log", "event": "left out"} not in said
    await until(lambda: link.send({"is": "log", "event": "again"}, needed=False), "no lag")
    await until(lambda: said.extend(manager.read()) or said[-1].get("event") == "again", "it")


@pytest_twisted.ensureDeferred
async def test_a_manager_that_goes_is_noticed_once(manager):
    manager.go()
    await until(lambda: manager.lost, "the loss")
    assert manager.lost == 1
    assert not manager.link.send({"is": "status"})
    await manager.link.close()
    assert manager.lost == 1


@pytest_twisted.ensureDeferred
async def test_a_close_says_what_waits_first_however_much_and_is_no_loss(manager):
    link = manager.link
    for at in range(30):
        link.send({"is": "log", "event": "x" * 100_000, "at": at})
    closed, again = link.close(), link.close()
    assert not link.send({"is": "too late"})
    said: list[Any] = []
    await until(lambda: said.extend(manager.read()) or closed.called, "all of it")
    said += manager.read()
    assert [message["at"] for message in said] == list(range(30))
    assert again.called
    assert manager.lost == 0


@pytest_twisted.ensureDeferred
async def test_a_manager_that_goes_while_the_rest_is_said_ends_the_close(manager):
    for _ in range(30):
        manager.link.send({"is": "log", "event": "x" * 100_000})
    closed = manager.link.close()
    manager.go()
    await until(lambda: closed.called, "the end")
    assert manager.lost == 0


def test_a_link_that_was_never_opened_says_nothing_and_is_closed_at_once():
    link = ManagerLink(lambda _message: None, lambda: None)
    assert not link.send({"is": "feed_up"})
    assert link.close().called


class Ended:
    """The transport of a process that has closed what it was told by."""

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        raise KeyError(descriptor)


def test_telling_a_process_that_has_ended_is_no_error():
    tell(Ended(), {"do": "serve"})
