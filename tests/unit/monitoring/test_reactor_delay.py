"""How late calls come: a clock that stands still for a while is late by that."""

from __future__ import annotations

import pytest
from core_doubles import FixedClock

from pushservice.metrics import SHORT_TIMES, Histogram
from pushservice.monitoring.reactor_delay import CHECK_INTERVAL, ReactorDelay


def watched() -> tuple[FixedClock, Histogram, ReactorDelay]:
    clock, late = FixedClock(1000.0), Histogram(SHORT_TIMES)
    reactor_delay = ReactorDelay(clock, late)
    reactor_delay.start()
    return clock, late, reactor_delay


def test_a_reactor_in_time_is_late_by_nothing():
    clock, late, _ = watched()
    clock.pass_time(1.0 + CHECK_INTERVAL / 2)
    assert late.counts[0] == sum(late.counts) == 10
    assert late.sum == pytest.approx(0, abs=1e-6)


def test_a_reactor_that_was_kept_is_late_by_as_much():
    clock, late, _ = watched()
    clock.advance(CHECK_INTERVAL + 0.3)
    assert sum(late.counts) == 1
    assert late.sum == pytest.approx(0.3)
    # From there on it is in time again.
    clock.pass_time(CHECK_INTERVAL)
    assert late.sum == pytest.approx(0.3)


def test_a_clock_that_is_set_back_makes_nothing_less():
    clock, late, _ = watched()
    clock.rightNow -= CHECK_INTERVAL
    # Due by the clock as it was, and early by what it is.
    (call,) = clock.getDelayedCalls()
    call.reset(0)
    clock.advance(0)
    assert late.sum == 0
    assert late.counts[0] == 1


def test_once_stopped_nothing_is_left_with_the_clock():
    clock, _, reactor_delay = watched()
    reactor_delay.stop()
    reactor_delay.stop()
    assert clock.getDelayedCalls() == []
