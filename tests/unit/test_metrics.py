"""Counters: every one starts at zero, adds up and is shown; the null sink keeps nothing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import pushservice
from pushservice.metrics import Counters, NullCounters

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
