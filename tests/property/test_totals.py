"""Processes start, count, report and end: no total falls, and each is the sum of all reports."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pushservice.metrics import Counters, Histogram
from pushservice.workers.totals import PastTotals, combined

BOUNDS = (0.001, 0.1, 1, 10)
values = st.floats(min_value=0, max_value=100, allow_nan=False)


@given(st.lists(st.tuples(values, st.integers(min_value=1, max_value=1000))))
def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it(seen):
    histogram = Histogram(BOUNDS)
    for value, times in seen:
        histogram.observe(value, times)
    for at, bound in enumerate([*BOUNDS, float("inf")]):
        at_most = sum(times for value, times in seen if value <= bound)
        assert sum(histogram.counts[: at + 1]) == at_most
    assert abs(histogram.sum - sum(value * times for value, times in seen)) < 1e-3


class Process:
    """A process that counts, and sometimes reports its counts."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.histogram = Histogram(BOUNDS)
        self.reported: dict[str, Any] = {}

    def count(self, value: float) -> None:
        self.counters.quotes_in += 1
        self.histogram.observe(value)

    def report(self) -> None:
        self.reported = {
            "clients": 1,
            "counters": self.counters.snapshot(),
            "measures": {"one": self.histogram.snapshot()},
        }


steps = st.lists(
    st.tuples(st.sampled_from(["count", "report", "end"]), st.integers(0, 2), values), max_size=60
)


@given(steps)
def test_totals_never_fall_and_include_every_report(steps):
    living = {number: Process() for number in range(3)}
    past = PastTotals()
    ended: list[Process] = []
    before = (0, [0] * (len(BOUNDS) + 1), 0.0)
    for step, number, value in steps:
        process = living[number]
        if step == "count":
            process.count(value)
        elif step == "report":
            process.report()
        else:
            # Whatever it counted since its last report is lost.
            past.ended(number, process.reported)
            ended.append(process)
            living[number] = Process()
        totals = combined((each.reported for each in living.values()), past.all())
        quotes = totals.get("counters", {}).get("quotes_in", 0)
        one = totals.get("measures", {}).get("one", {"counts": before[1], "sum": 0.0})
        counts = one["counts"]
        reports = [each.reported for each in (*living.values(), *ended) if each.reported]
        assert quotes == sum(each["counters"]["quotes_in"] for each in reports)
        assert sum(counts) == quotes
        assert quotes >= before[0]
        assert all(now >= then for now, then in zip(counts, before[1], strict=True))
        assert one["sum"] >= before[2], "not even by rounding"
        assert totals["clients"] == sum(1 for each in living.values() if each.reported)
        before = (quotes, counts, one["sum"])
