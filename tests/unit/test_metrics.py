"""Counters and histograms start at zero, add up and are shown; the null sink keeps nothing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import pushservice
from pushservice.metrics import Counters, Histogram, Measures, NullCounters, steps

NAMES = [counter.name for counter in dataclasses.fields(Counters)]


def test_all_counters_start_at_zero():
    assert Counters().snapshot() == dict.fromkeys(NAMES, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_counter_adds_up_and_leaves_the_others_alone(name):
    counters = Counters()
    for step in (1, 41):
        setattr(counters, name, getattr(counters, name) + step)
    assert counters.snapshot() == dict.fromkeys(NAMES, 0) | {name: 42}


def test_a_snapshot_stands_still_while_counting_goes_on():
    counters = Counters()
    before = counters.snapshot()
    counters.quotes_in += 1
    assert before["quotes_in"] == 0


def test_a_misspelt_counter_is_an_error_and_no_new_counter():
    with pytest.raises(AttributeError):
        Counters().quotes_inn = 1


def test_two_sets_of_counters_are_independent():
    first, second = Counters(), Counters()
    first.frames_out += 1
    assert second.frames_out == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_null_sink_takes_additions_and_keeps_none(name):
    counters = NullCounters()
    setattr(counters, name, getattr(counters, name) + 5)
    assert counters.snapshot() == dict.fromkeys(NAMES, 0)


def test_the_null_sink_can_stand_wherever_counters_can():
    assert isinstance(NullCounters(), Counters)
    with pytest.raises(AttributeError):
        NullCounters().quotes_inn = 1


@pytest.mark.parametrize("name", NAMES)
def test_every_counter_is_counted_somewhere(name):
    package = Path(pushservice.__file__).parent
    sources = [path for path in package.rglob("*.py") if path.name != "metrics.py"]
    assert any(re.search(rf"\.{name} \+= ", path.read_text("utf-8")) for path in sources)


# -- histograms ------------------------------------------------------------------------------------


def test_steps_are_1_2_and_5_within_their_ends():
    assert steps(0.5, 20) == (0.5, 1, 2, 5, 10, 20)
    assert steps(0.001, 0.003) == (0.001, 0.002)


def test_a_value_at_a_bound_is_within_it_and_one_above_all_is_in_the_last_bucket():
    histogram = Histogram((1, 2))
    for value in (0, 1, 1.5, 2, 2.1):
        histogram.observe(value)
    assert histogram.snapshot() == {"bounds": [1, 2], "counts": [2, 2, 1], "sum": 6.6}


def test_what_was_seen_several_times_counts_as_often():
    histogram = Histogram((1, 2))
    histogram.observe(1.5, 500)
    assert histogram.snapshot() == {"bounds": [1, 2], "counts": [0, 500, 0], "sum": 750.0}


def test_a_histograms_snapshot_stands_still_while_counting_goes_on():
    histogram = Histogram((1,))
    before = histogram.snapshot()
    histogram.observe(1)
    assert before["counts"] == [0, 0]


def test_measures_are_shown_by_name_and_none_is_anothers():
    measures = Measures()
    measures.turn_quotes.observe(3)
    shown = measures.snapshot()
    assert sum(shown["turn_quotes"]["counts"]) == 1
    assert all(sum(each["counts"]) == 0 for name, each in shown.items() if name != "turn_quotes")
    assert {
        *("receive_to_write_seconds", "publish_to_write_seconds", "feed_lag_seconds"),
        *("reactor_delay_seconds", "turn_quotes", "turn_events", "turn_seconds"),
    } == set(shown)
    assert all(list(each["bounds"]) == sorted(each["bounds"]) for each in shown.values())


def test_without_a_stopwatch_everything_takes_no_time():
    assert Measures().stopwatch() == 0.0
