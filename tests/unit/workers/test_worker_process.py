"""One worker process as its manager sees it: started, told, heard, waited for, ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from waiting import until
from worker_doubles import FakeProcess, SpawningReactor

from pushservice.workers import worker_link, worker_process
from pushservice.workers.worker_process import WorkerEnded, WorkerProcess


@pytest.fixture
def lines():
    """What is logged, as text."""
    found: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_format"):
            found.append(event["log_format"].format_map(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


class Started:
    """A worker process that was started, and its double."""

    def __init__(self) -> None:
        self.reactor = SpawningReactor()
        self.ended: list[str] = []
        self.worker = WorkerProcess(
            self.reactor, 7, 25, lambda worker: self.ended.append(worker.state)
        )
        self.worker.start({"number": 7}, {worker_link.SOCKETS: 99}, {"A": "B"})
        [self.process] = self.reactor.workers or [None]

    def fake(self) -> FakeProcess:
        assert isinstance(self.process, FakeProcess)
        return self.process


def test_it_is_told_first_what_it_needs_and_then_what_to_do():
    started = Started()
    started.worker.tell("drain", code=1012)
    assert started.fake().told == [{"number": 7}, {"do": "drain", "code": 1012}]
    assert started.fake().descriptors[worker_link.SOCKETS] == 99
    assert started.fake().environment == {"A": "B"}
    assert started.worker.pid == 5000


def test_what_it_says_is_its_state():
    started = Started()
    worker, fake = started.worker, started.fake()
    assert (worker.state, worker.feed_up, worker.status) == ("starting", False, {})
    fake.says("feed_up")
    fake.says("serving")
    fake.says("status", status={"clients": 3})
    assert (worker.state, worker.feed_up, worker.status) == ("serving", True, {"clients": 3})
    fake.says("feed_down")
    assert not worker.feed_up
    worker.state = "draining"
    fake.says("serving")
    assert worker.state == "draining", "it has served, and does no more"


def test_each_word_says_that_it_lives():
    started = Started()
    started.reactor.advance(20)
    started.fake().says("status", status={})
    assert started.worker.last_message_at == started.reactor.seconds()
    assert started.worker.started_at == started.reactor.seconds() - 20


def test_who_waits_for_a_word_gets_the_message_and_everybody_does():
    started = Started()
    first, second = started.worker.expect("values_loaded"), started.worker.expect("values_loaded")
    other = started.worker.expect("values_dumped")
    started.fake().says("values_loaded", values=5)
    assert first.result == second.result == {"is": "values_loaded", "values": 5}
    assert not other.called
    other.addErrback(lambda failure: failure.trap(WorkerEnded))
    started.fake().ends()


def test_who_waited_too_long_is_forgotten():
    started = Started()
    waiting = started.worker.expect("values_loaded").addTimeout(5, started.reactor)
    started.reactor.advance(5)
    waiting.addErrback(lambda failure: failure.trap(defer.TimeoutError))
    started.fake().says("values_loaded", values=5)
    gone = started.worker.when_ended().addTimeout(5, started.reactor)
    started.reactor.advance(5)
    gone.addErrback(lambda failure: failure.trap(defer.TimeoutError))
    started.fake().ends()
    assert started.reactor.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ({"code": 3}, "with exit status 3"),
        ({}, "with exit status 0"),
        ({"signal": 11}, "by SIGSEGV"),
        ({"signal": 40}, "by signal 40"),
    ],
)
def test_its_end_is_told_in_words_to_all_who_wait(end, how):
    started = Started()
    waiting, gone = started.worker.expect("serving"), started.worker.when_ended()
    started.fake().says("feed_up")
    started.fake().ends(**end)
    assert started.ended == ["ended"]
    assert gone.called
    assert (started.worker.end, started.worker.pid, started.worker.feed_up) == (how, None, False)
    for each in (waiting, started.worker.expect("serving")):
        with pytest.raises(WorkerEnded, match=how):
            each.result.raiseException()
        each.addErrback(lambda _failure: None)
    assert started.worker.when_ended().called
    started.worker.tell("serve")
    started.worker.kill(with_traceback=True)
    started.reactor.advance(10)


def test_a_kill_with_last_words_asks_first_and_ends_it_then():
    started = Started()
    started.fake().ignores |= {6, 9}
    started.worker.kill(with_traceback=True)
    assert [int(number) for number in started.fake().signals] == [6]
    started.reactor.advance(2)
    assert [int(number) for number in started.fake().signals] == [6, 9]
    started.fake().ends(signal=9)


def test_what_it_writes_past_its_log_is_a_warning_of_a_bounded_length(lines):
    started = Started()
    protocol = started.worker
    protocol.childDataReceived(2, b"Fatal Python error: Aborted\n\nCurrent th")
    protocol.childDataReceived(2, b"read\n" + b"x" * 100_000)
    assert len(protocol._raw) < 10_000
    started.fake().ends(signal=6)
    written = [line for line in lines if "wrote:" in line]
    assert written[:2] == [
        "worker 7 wrote: Fatal Python error: Aborted",
        "worker 7 wrote: Current thread",
    ]
    assert written[2].endswith("xxx")
    assert len(written[2]) < 10_000


@pytest.mark.parametrize("words", [b"nonsense\n", b"{}\n", b'{"is":"log"}\n', b'{"is":"status"}\n'])
def test_one_that_makes_no_sense_is_killed(logged_failures, words):
    started = Started()
    started.worker.childDataReceived(worker_link.MESSAGES, words)
    assert [int(number) for number in started.fake().signals] == [9]
    started.fake().ends(signal=9)
    started.reactor.advance(1)
    assert logged_failures.flush(Exception)


def test_one_that_can_not_be_started_has_ended_in_the_next_turn():
    started = Started.__new__(Started)
    started.reactor, started.ended = SpawningReactor(), []
    started.reactor.fault = OSError(24, "Too many open files")
    worker = WorkerProcess(started.reactor, 1, 0, lambda worker: started.ended.append(worker.end))
    worker.start({"number": 1}, {}, {})
    assert started.ended == []
    waiting = worker.expect("serving")
    worker.tell("serve")
    started.reactor.advance(0)
    assert started.ended == ["before it began: Too many open files"]
    waiting.addErrback(lambda failure: failure.trap(WorkerEnded))


# -- with a real process ---------------------------------------------------------------------------

_ECHO = """
import os, sys
told = b""
while not told.endswith(b"\\n"):
    told += os.read(3, 1)
os.write(4, b'{"is":"status","status":' + told.strip() + b'}\\n')
print("to", "stdout", flush=True)
told = os.read(3, 100)
sys.exit(3)
"""


@pytest_twisted.ensureDeferred
async def test_a_real_process_hears_is_heard_and_ends(monkeypatch, lines):
    monkeypatch.setattr(worker_process, "_LAUNCH", _ECHO)
    open_after = []
    for _ in range(3):
        worker = WorkerProcess(reactor, 1, 0, lambda _worker: None)
        worker.start({"number": 1}, {}, dict(os.environ))
        await until(lambda worker=worker: worker.status == {"number": 1}, "its answer")
        worker.tell("serve")
        await worker.when_ended()
        assert worker.end == "with exit status 3"
        open_after.append(len(list(Path("/proc/self/fd").iterdir())))
    assert lines.count("worker 1 wrote: to stdout") == 3
    assert open_after[0] == open_after[1] == open_after[2], "no descriptor stays"


def test_what_it_is_asked_it_answers_by_the_questions_number():
    started = Started()
    worker, fake = started.worker, started.fake()
    first, second = worker.ask("clients", most=3), worker.ask("symbols", most=4)
    one, other = fake.told[1:]
    assert one == {"do": "report", "id": one["id"], "what": "clients", "most": 3}
    fake.says("report", id=other["id"], report={"total": 2})
    fake.says("report", id=one["id"], report={"total": 1})
    assert (first.result, second.result) == ({"total": 1}, {"total": 2})
    fake.says("report", id=one["id"], report={"total": 9})
    assert worker.state == "starting", "an answer twice is no nonsense"


def test_an_answer_that_comes_too_late_is_nobodys():
    started = Started()
    late = started.worker.ask("clients", most=3).addTimeout(2, started.reactor)
    failures: list[Failure] = []
    late.addErrback(failures.append)
    started.reactor.advance(2)
    assert failures[0].check(defer.TimeoutError)
    started.fake().says("report", id=started.fake().told[-1]["id"], report={})
    assert not started.fake().signals


def test_who_ends_answers_nobody_any_more():
    started = Started()
    failures: list[Failure] = []
    started.worker.ask("clients", most=3).addErrback(failures.append)
    started.fake().ends(3)
    started.worker.ask("clients", most=3).addErrback(failures.append)
    assert [str(failure.value) for failure in failures] == [
        "worker 7 ended: with exit status 3"
    ] * 2
