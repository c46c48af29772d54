"""What several processes say, as one; those that have ended stay in what only grows."""

from __future__ import annotations

from typing import Any

import pytest

from pushservice.metrics import Counters, Histogram
from pushservice.workers.totals import (
    PastTotals,
    added,
    combined,
    cumulative,
    figures,
    slot_figures,
)


def status(clients: int = 0, **counters: int) -> dict[str, Any]:
    measure = Histogram((1, 2))
    measure.observe(clients)
    return {
        "feed": "down",
        "clients": clients,
        "flowing": clients,
        "behind": 0,
        "connections": clients + 1,
        "subscriptions": 2 * clients,
        "symbols": 10 * clients,
        "age": None,
        "registry_lag": None,
        "epoch": "k7f3",
        "counters": Counters(**counters).snapshot(),
        "measures": {"turn_quotes": measure.snapshot()},
        "process": {
            "cpu": 1.5,
            "memory": 100,
            "files": 7,
            "started": 50.0 + clients,
            "gc": {"0": {"collections": 3, "seconds": 0.25}},
        },
        "tape": None,
    }


def test_what_stands_is_of_those_that_live_each_in_its_way():
    one = status(3) | {"age": 70, "registry_lag": 0.0, "feed": "up"}
    other = status(5) | {"age": 20, "registry_lag": 2.5, "tape": {"used": 9, "dropped": 1}}
    whole = combined([one, other])
    assert whole["clients"] == 8
    assert whole["connections"] == 10
    assert whole["subscriptions"] == 16
    assert whole["symbols"] == 50, "each knows all, and one knows most"
    assert (whole["feed"], whole["age"], whole["registry_lag"]) == ("up", 20, 2.5)
    assert whole["process"]["memory"] == 200
    assert whole["process"]["started"] == 53.0
    assert whole["tape"] == {"used": 9, "dropped": 1}
    assert "epoch" not in whole


def test_where_there_is_no_process_there_is_nothing_and_the_feed_is_down():
    assert combined([]) == {
        "clients": 0,
        "flowing": 0,
        "behind": 0,
        "connections": 0,
        "subscriptions": 0,
        "symbols": 0,
        "feed": "down",
        "age": None,
        "registry_lag": None,
    }
    assert combined([{}]) == combined([]), "nor of one that has said nothing yet"


def test_what_grows_is_summed():
    whole = combined([status(1, quotes_in=5), status(2, quotes_in=7, merged=1)])
    assert (whole["counters"]["quotes_in"], whole["counters"]["merged"]) == (12, 1)
    assert whole["measures"]["turn_quotes"] == {"bounds": [1, 2], "counts": [1, 1, 0], "sum": 3.0}
    assert whole["process"]["cpu"] == 3.0
    assert whole["process"]["gc"] == {"0": {"collections": 6, "seconds": 0.5}}


def test_the_past_stays_in_what_grows_and_in_nothing_else():
    past = PastTotals()
    past.ended(1, status(3, quotes_in=5))
    past.ended(1, status(4, quotes_in=7))
    past.ended(2, status(1, quotes_in=100))
    past.ended(2, {})
    assert past.of(1)["counters"]["quotes_in"] == 12
    assert past.of(3) == {}
    whole = combined([status(2, quotes_in=1)], past.all())
    assert whole["counters"]["quotes_in"] == 113
    assert whole["clients"] == 2
    assert whole["process"]["memory"] == 100
    assert whole["process"]["cpu"] == 6.0


def test_sums_change_nothing_of_what_they_are_made_of():
    past = PastTotals()
    first = status(1, quotes_in=5)
    past.ended(1, first)
    before = cumulative(first)
    combined([first, first], past.all())
    combined([first], past.all())
    past.ended(1, first)
    assert cumulative(first) == before


def test_histograms_with_other_bounds_are_not_added_up_to_nonsense():
    with pytest.raises(ValueError, match="different bounds"):
        added(Histogram((1,)).snapshot(), Histogram((2,)).snapshot())


def test_a_slot_says_in_which_states_its_processes_are():
    old, new = status(3) | {"state": "draining"}, status(1) | {"state": "serving", "feed": "up"}
    said = slot_figures(2, 4, [old, new, {"state": "ended"}], {"counters": {"quotes_in": 7}})
    assert said["number"] == 2
    assert said["restarts"] == 4
    assert said["states"] == {"starting": 0, "serving": 1, "draining": 1}
    assert said["feed_up"] == 1
    assert said["clients"] == 4
    assert said["counters"]["quotes_in"] == 7
    assert slot_figures(1, 0, [])["feed_up"] == 0


def test_figures_have_the_manager_as_one_that_serves_nobody():
    told = {"version": "1", "certificates": [], "totals": {}, "more": 1}
    assert figures(told, [{"number": 1}])["slots"] == [{"number": 1}]
    assert figures(told, [], {"cpu": 2.0}) == {
        "version": "1",
        "certificates": [],
        "totals": {},
        "slots": [{"number": "manager", "process": {"cpu": 2.0}}],
    }


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_no_rounding_makes_a_time_fall_as_processes_end(order):
    living = {at: {"process": {"cpu": cpu}} for at, cpu in enumerate((0.1, 0.2, 0.3))}
    past = PastTotals()
    seen = [combined(living.values(), past.all())["process"]["cpu"]]
    for at in order:
        past.ended(at, living.pop(at))
        seen.append(combined(living.values(), past.all())["process"]["cpu"])
    assert seen == [seen[0]] * 4
    assert isinstance(seen[-1], float)
    assert combined([], added({}, past.of(1)))["process"]["cpu"] == 0.2
