"""The tally: counts that all processes of a daemon see, each in its own seat."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pushservice.server.client_counts import SEATS, Tally
from pushservice.workers.manager import seats_of


@pytest.fixture
def tally():
    made = Tally()
    yield made
    made.close()


def test_nobody_serves_at_first(tally):
    assert tally.serving() == []
    assert tally.total() == 0


def test_a_seat_that_serves_counts_with_no_client_too_until_it_serves_no_more(tally):
    tally.write(3, 0)
    tally.write(1, 5)
    assert tally.serving() == [5, 0]
    assert tally.total() == 5
    tally.write(3, 2)
    assert tally.total() == 7
    tally.write(1, None)
    assert tally.serving() == [2]


def test_the_last_post_has_seats_too(tally):
    last = seats_of(256)[-1]
    assert last == SEATS - 1
    tally.write(last, 4_000_000)
    assert tally.total() == 4_000_000


def test_whoever_opens_it_by_its_descriptor_sees_the_same_counts(tally):
    other = Tally(tally.descriptor)
    other.write(0, 7)
    assert tally.serving() == [7]
    other.close()
    assert tally.serving() == [7], "what one process does with its own stays there"
    os.fstat(tally.descriptor)


def test_another_process_counts_in_it(tally):
    code = (
        "import sys; from pushservice.server.client_counts import Tally;"
        " Tally(int(sys.argv[1])).write(2, 9)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tally.descriptor)],
        check=True,
        pass_fds=[tally.descriptor],
        timeout=60,
    )
    assert tally.serving() == [9]


def test_closing_it_closes_its_descriptor_and_ends_counting():
    tally = Tally()
    descriptor = tally.descriptor
    tally.close()
    assert tally.descriptor is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(ValueError, match="released"):
        tally.write(0, 1)
