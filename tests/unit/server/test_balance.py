"""Newcomers shared out among workers: who has more than its share looks away for a moment."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from pushservice.server.balance import PART, PAUSE, SLACK, Balance
from pushservice.server.client_counts import ClientCounts
from pushservice.server.ports import Ports


class Port:
    """A listening port: whether it accepts."""

    connected = True
    accepting = True

    def stopReading(self) -> None:
        assert self.accepting, "stopped twice"
        self.accepting = False

    def startReading(self) -> None:
        assert not self.accepting, "started twice"
        self.accepting = True


class Worker:
    """One worker's ports and its part in the balance."""

    def __init__(self, clock: Clock, counts: ClientCounts, entry: int) -> None:
        self.port, self.ports, self.count = Port(), Ports(), 0
        self.ports.add(self.port)
        self.balance = Balance(clock, counts, entry, self.ports)
        self.balance.serve()

    def has(self, count: int) -> None:
        self.count = count
        self.balance.changed(count)


@pytest.fixture
def clock():
    made = Clock()
    yield made
    assert made.getDelayedCalls() == []


@pytest.fixture
def counts():
    made = ClientCounts()
    yield made
    made.close()


@pytest.fixture
def workers(clock, counts):
    made = [Worker(clock, counts, entry) for entry in range(4)]
    yield made
    for worker in made:
        worker.balance.leave()


def test_alone_a_worker_never_looks_away(clock, counts):
    worker = Worker(clock, counts, 0)
    for count in range(1000):
        worker.has(count)
        assert worker.port.accepting
    worker.balance.leave()


def test_who_has_more_than_its_share_looks_away_until_the_pause_is_over(clock, workers, counts):
    for entry in (1, 2, 3):
        counts.write(entry, 100)
    workers[0].has(112)
    assert [worker.port.accepting for worker in workers] == [True] * 4
    workers[0].has(113)
    assert [worker.port.accepting for worker in workers] == [False, True, True, True]
    workers[0].has(112)
    assert not workers[0].port.accepting, "what waited in the kernel changes nothing"
    clock.advance(PAUSE)
    assert workers[0].port.accepting


def test_who_comes_in_a_pause_makes_it_no_longer_and_begins_no_other(clock, workers):
    workers[0].has(50)
    clock.advance(PAUSE / 2)
    workers[0].has(60)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(PAUSE / 2)
    assert workers[0].port.accepting


def test_who_still_has_too_many_takes_one_more_before_it_looks_away_again(clock, workers):
    workers[0].has(50)
    assert not workers[0].port.accepting
    clock.advance(PAUSE)
    assert workers[0].port.accepting, "somebody has to, if nobody else does"
    workers[0].has(51)
    assert not workers[0].port.accepting
    clock.advance(PAUSE)


def test_a_few_more_than_the_others_are_no_more_than_a_share(workers):
    workers[0].has(SLACK)
    assert workers[0].port.accepting


def test_where_one_is_always_first_the_shares_come_out_even_all_the_same(clock, workers):
    for _ in range(2000):
        # The first that looks takes who comes.
        taker = next((worker for worker in workers if worker.port.accepting), None)
        if taker is None:
            clock.advance(PAUSE)
            continue
        taker.has(taker.count + 1)
        clock.advance(PAUSE / 50)
    counts = [worker.count for worker in workers]
    mean = sum(counts) / 4
    assert max(counts) <= mean * (1 + PART) + SLACK + PAUSE, counts
    clock.advance(PAUSE)


def test_others_are_all_but_this_one(workers, counts):
    for at, worker in enumerate(workers):
        worker.has(10 * at)
    assert workers[1].balance.others() == 50
    assert workers[0].balance.others() == 60
    workers[3].balance.leave()
    assert workers[3].balance.others() == 30, "who has left has none in the counts"
    assert counts.serving() == [0, 10, 20]


def test_before_it_serves_a_worker_does_not_count(clock, counts):
    counts.write(1, 3)
    ports = Ports()
    balance = Balance(clock, counts, 0, ports)
    balance.changed(40)
    assert counts.serving() == [3]
    assert balance.others() == 3
    balance.serve()
    assert sorted(counts.serving()) == [3, 40]
    balance.leave()


def test_who_leaves_in_a_pause_lets_its_ports_go_and_counts_no_more(clock, workers, counts):
    workers[0].has(50)
    workers[0].balance.leave()
    workers[0].balance.leave()
    assert workers[0].port.accepting
    assert clock.getDelayedCalls() == []
    workers[0].has(60)
    assert counts.serving() == [0, 0, 0]
    assert workers[0].port.accepting


def test_a_pause_does_not_open_what_is_held_for_another_reason(clock, workers):
    worker = workers[0]
    worker.ports.hold("crowded")
    worker.has(50)
    clock.advance(PAUSE)
    assert not worker.port.accepting
    worker.ports.release("crowded")
    assert worker.port.accepting
