"""Statuses of several processes combined into one, with the counts of processes that ended.

Must not know: how any of it was counted, who serves, or how it is shown. Takes and returns what
`Daemon.status` says, as JSON.

Cumulative values (counters, histograms, CPU) are summed over all processes that there ever were, so
that no sum falls when one of them ends. Gauges (clients, memory) are of processes that live.

Times are added up exactly, and rounded once: rounded at each step, a sum would depend on the order,
and fall by a trifle when a process ends, which Prometheus takes for a beginning from zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, TypeAlias

Status: TypeAlias = Mapping[str, Any]

#: Cumulative values by their paths in a status; all values below a path are summed.
CUMULATIVE: Final = (
    ("counters",),
    ("measures",),
    ("process", "cpu"),
    ("process", "gc"),
    ("tape", "dropped"),
)


def _sum(values: Sequence[Any]) -> Any:
    return sum(values)


#: Gauges by their paths, each with how those of several processes become one.
GAUGES: Final[Mapping[tuple[str, ...], Callable[[Sequence[Any]], Any]]] = {
    ("clients",): _sum,
    ("flowing",): _sum,
    ("behind",): _sum,
    ("connections",): _sum,
    ("subscriptions",): _sum,
    # Each of them knows all.
    ("symbols",): max,
    ("feed",): lambda values: "up" if "up" in values else "down",
    ("age",): min,
    ("registry_lag",): max,
    ("process", "memory"): _sum,
    ("process", "files"): _sum,
    ("process", "started"): min,
    ("tape", "used"): _sum,
}
#: The gauges where there is no process.
_NO_PROCESS: Final[Status] = {
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


def combined(statuses: Iterable[Status], past: Status | None = None) -> dict[str, Any]:
    """One status of several processes that live; `past` is what has grown in those that do not."""
    known = list(statuses)
    outcome = dict(_NO_PROCESS)
    for path, choose in GAUGES.items():
        found = [value for value in (_at(each, path) for each in known) if value is not None]
        if found:
            _put(outcome, path, choose(found))
    for path in CUMULATIVE:
        summed: Any = None
        for each in [*([] if past is None else [past]), *known]:
            value = _at(each, path)
            if value is not None:
                summed = value if summed is None else added(summed, value)
        if summed is not None:
            _put(outcome, path, _rounded(summed))
    return outcome


#: States of processes that are counted.
STATES: Final = ("starting", "serving", "draining")


def slot_figures(
    number: int, restarts: int, processes: Iterable[Status], past: Status | None = None
) -> dict[str, Any]:
    """What there is to say of a worker's slot, where several processes may be.

    `processes` are those on it, each with its `state` beside what it says; `past` is what has grown
    in those that were.
    """
    known = list(processes)
    states = dict.fromkeys(STATES, 0)
    for each in known:
        if each["state"] in states:
            states[each["state"]] += 1
    summed = combined(known, past)
    return {
        "number": number,
        "restarts": restarts,
        "states": states,
        "feed_up": int(summed["feed"] == "up"),
    } | summed


def figures(
    status: Status, slots: Iterable[Status], manager: Status | None = None
) -> dict[str, Any]:
    """What monitoring/families.py reads: of a whole daemon, from its status, and of each slot.

    `manager` is what the process uses that serves nobody, if there is one.
    """
    return {
        "version": status["version"],
        "certificates": status["certificates"],
        "totals": status["totals"],
        "slots": [
            *slots,
            *([] if manager is None else [{"number": "manager", "process": manager}]),
        ],
    }


def cumulative(status: Status) -> dict[str, Any]:
    """Of a status, what is to be kept once its process has ended."""
    kept: dict[str, Any] = {}
    for path in CUMULATIVE:
        value = _at(status, path)
        if value is not None:
            _put(kept, path, value)
    return kept


def added(one: Any, other: Any) -> Any:
    """The sum of two of a kind: numbers, histograms, or objects of them, which may lack some.

    That of fractions of numbers is a Fraction, so that nothing is lost.
    """
    if not isinstance(one, Mapping):
        whole = isinstance(one, int) and isinstance(other, int)
        return one + other if whole else Fraction(one) + Fraction(other)
    if "bounds" in one and "bounds" in other:
        return _added_histograms(one, other)
    return {
        key: added(one[key], other[key])
        if key in one and key in other
        else one.get(key, other.get(key))
        for key in [*one, *(key for key in other if key not in one)]
    }


def _added_histograms(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    if list(one["bounds"]) != list(other["bounds"]):
        raise ValueError("histograms with different bounds can't be added")
    counts = [mine + its for mine, its in zip(one["counts"], other["counts"], strict=True)]
    total = added(one["sum"], other["sum"])
    return {"bounds": list(one["bounds"]), "counts": counts, "sum": total}


def _rounded(value: Any) -> Any:
    """The same as JSON."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return float(value) if isinstance(value, Fraction) else value


class PastTotals:
    """What has grown in processes that have ended, by the number of their slot; to be added."""

    def __init__(self) -> None:
        self._of: dict[int, dict[str, Any]] = {}

    def ended(self, number: int, status: Status) -> None:
        """A process on slot `number` has ended; `status` is the last that was heard of it."""
        self._of[number] = added(self.of(number), cumulative(status))

    def of(self, number: int) -> dict[str, Any]:
        """What has grown on one slot."""
        return self._of.get(number, {})

    def all(self) -> dict[str, Any]:
        """What has grown on all slots."""
        outcome: dict[str, Any] = {}
        for each in self._of.values():
            outcome = added(outcome, each)
        return outcome


def _at(status: Status, path: tuple[str, ...]) -> Any:
    found: Any = status
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _put(status: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        status = status.setdefault(name, {})
    status[path[-1]] = value
