"""What a load came to: percentiles in little memory, rates, and how they are to be read."""

from __future__ import annotations

import json
import random

import pytest

from pushservice.cli.bench_results import Histogram, Results


def times(*milliseconds: float) -> Histogram:
    found = Histogram()
    for each in milliseconds:
        found.add(each)
    return found


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_percentiles_are_exact_to_two_percent(percent):
    source = random.Random(7)
    numbers = sorted(source.lognormvariate(1, 2) + 0.1 for _ in range(20_000))
    found = times(*numbers).percentile(percent)
    exact = numbers[len(numbers) * percent // 100 - 1]
    assert exact * 0.98 <= found <= exact * 1.021


def test_the_least_and_the_most_bound_them():
    assert times(5.0).as_dict() == {"p50": 5.0, "p90": 5.0, "p99": 5.0, "max": 5.0}
    assert times(-3.0, -3.0).as_dict()["p50"] == -3.0
    assert times().as_dict() == {"p50": None, "p90": None, "p99": None, "max": None}


def test_many_times_take_little_memory():
    found = times(*(n / 100 for n in range(1, 200_000)))
    assert len(found._buckets) < 600
    assert found.count == 199_999


def measured(**changes) -> Results:
    load = Results(3)
    for took in (10.0, 20.0):
        load.opened(took)
    load.quote(100, 2.0, 0)
    load.quote(300, 4.0, 5)
    load.seconds, load.cpu = 2.0, 0.5
    for name, value in changes.items():
        setattr(load, name, value)
    return load


def test_rates_are_for_the_time_that_was_measured():
    told = measured().as_dict()
    assert (told["clients"], told["connected"]) == (3, 2)
    assert (told["quotes"], told["quotes_per_second"], told["merged"]) == (2, 1.0, 5)
    assert (told["payload_bytes"], told["payload_bytes_per_second"]) == (400, 200)
    assert (told["connect_ms"]["max"], told["latency_ms"]["max"]) == (20.0, 4.0)
    assert told["own_cpu"] == 0.25
    json.dumps(told)


def test_words_say_the_same():
    rows = dict(measured().rows())
    assert rows["clients"] == "2 of 3 connected"
    assert rows["quotes"] == "2 (1/s)"
    assert rows["latency"].endswith("max 4.0 ms")
    assert rows["own CPU"] == "25 % of a core"
    assert set(rows) >= {"connecting", "payloads", "merged", "gaps", "lost", "errors"}
    assert dict(Results(1).rows())["latency"] == "p50 —  p90 —  p99 —  max —"


def test_connections_that_are_lost_are_counted_and_come_back():
    load = measured()
    load.closed()
    load.opened(None)
    assert (load.connected, load.most_connected, load.lost, load.connecting.count) == (2, 2, 1, 2)


def test_notes_say_what_would_mislead():
    assert list(measured().notes()) == []
    assert "no quote came" in "".join(measured(quotes=0).notes())
    assert "used most of a core" in "".join(measured(cpu=1.9).notes())
    load = measured()
    load.quote(1, -250.0, 0)
    assert load.clock_differs
    assert "ahead of this one, by 250.0 ms" in "".join(load.notes())
    load = measured()
    load.quote(1, -0.3, 0)
    assert not load.clock_differs, "times of the daemon are cut off to milliseconds"


def test_reasons_are_counted_and_the_most_frequent_reported():
    load = measured()
    for n in range(8):
        for _ in range(n):
            load.error(f"reason {n}")
    assert load.as_dict()["errors"]["reason 7"] == 7
    assert list(load.notes()) == [f"reason {n} ({n:,} times)" for n in range(7, 2, -1)]
