"""The counts: counts that all processes of a daemon see, each in its own entry."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pushservice.server.client_counts import ENTRIES, ClientCounts
from pushservice.workers.launcher import entries_of


@pytest.fixture
def counts():
    made = ClientCounts()
    yield made
    made.close()


def test_nobody_serves_at_first(counts):
    assert counts.serving() == []
    assert counts.total() == 0


def test_an_entry_counts_while_its_worker_serves_even_without_clients(counts):
    counts.write(3, 0)
    counts.write(1, 5)
    assert counts.serving() == [5, 0]
    assert counts.total() == 5
    counts.write(3, 2)
    assert counts.total() == 7
    counts.write(1, None)
    assert counts.serving() == [2]


def test_the_last_slot_has_entries_too(counts):
    last = entries_of(256)[-1]
    assert last == ENTRIES - 1
    counts.write(last, 4_000_000)
    assert counts.total() == 4_000_000


def test_whoever_opens_it_by_its_descriptor_sees_the_same_counts(counts):
    other = ClientCounts(counts.descriptor)
    other.write(0, 7)
    assert counts.serving() == [7]
    other.close()
    assert counts.serving() == [7], "what one process does with its own stays there"
    os.fstat(counts.descriptor)


def test_another_process_counts_in_it(counts):
    code = (
        "import sys; from pushservice.server.client_counts import ClientCounts;"
        " ClientCounts(int(sys.argv[1])).write(2, 9)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(counts.descriptor)],
        check=True,
        pass_fds=[counts.descriptor],
        timeout=60,
    )
    assert counts.serving() == [9]


def test_closing_it_closes_its_descriptor_and_ends_counting():
    counts = ClientCounts()
    descriptor = counts.descriptor
    counts.close()
    assert counts.descriptor is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(ValueError, match="released"):
        counts.write(0, 1)
