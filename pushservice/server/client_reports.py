"""Reports for operators about single clients and symbols: the slowest and the busiest, as rows.

Must not know: who asks, how a report is sent, other processes beyond their reports, or Twisted.

Reports are made in steps, as generators, so that a process with many clients or symbols serves its
clients between two steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub
    from pushservice.fanout.outbox import Outbox
    from pushservice.fanout.topic import Topic

#: As JSON: the rows under their name, and how many there are in `total`.
Report: TypeAlias = dict[str, Any]
#: Makes a report and returns it; each `yield` ends a step.
Steps: TypeAlias = Generator[None, None, Report]

#: Clients or symbols that are looked at in one step, and rows that are made in one: about a
#: millisecond each.
_LOOKED_AT: Final = 1000
_MADE: Final = 100
#: Seconds over which a rate is counted at least: of two that ask at about the same time, the second
#: does not get a rate over the moment between them.
_RATE_OVER: Final = 1.0


class About(NamedTuple):
    """Of a client, what only its connection knows: its address, its user, and its age."""

    address: str | None
    user: str | None
    seconds: float


# -- clients ---------------------------------------------------------------------------------------


def clients(
    hub: Hub, about: Callable[[str], About | None], now: float, most: int, worker: int
) -> Steps:
    """The slowest clients: those behind for longest first, then those with most merged updates.

    `about` gives what a connection knows, by its id; `now` is in seconds since the epoch.
    """
    slowest: list[tuple[float, int, int, Outbox]] = []
    outboxes = list(hub.outboxes())
    for start in range(0, len(outboxes), _LOOKED_AT):
        some = [
            # The position decides between equals, so that outboxes are never compared.
            (_seconds_behind(outbox, now), outbox.merged, -at, outbox)
            for at, outbox in enumerate(outboxes[start : start + _LOOKED_AT], start)
        ]
        slowest = heapq.nlargest(most, [*slowest, *some])
        yield
    rows: list[dict[str, Any]] = []
    for behind, _, _, outbox in slowest:
        known = about(outbox.conn)
        if known is not None and not outbox.closed:
            rows.append(
                {
                    "conn": outbox.conn,
                    "worker": worker,
                    "address": known.address,
                    "user": known.user,
                    "protocol": outbox.codec.name,
                    "seconds": round(known.seconds, 1),
                    "behind": None if behind < 0 else round(behind, 3),
                    "merged": outbox.merged_by_now(),
                    "queued": outbox.queued(),
                    "symbols": len(outbox.topics),
                }
            )
            if len(rows) % _MADE == 0:
                yield
    return {"clients": rows, "total": hub.count_outboxes()}


def _seconds_behind(outbox: Outbox, now: float) -> float:
    """For how long it has been behind; -1 where it is not."""
    since = outbox.behind_since
    return -1.0 if since is None else max(0.0, now - since)


def merged_clients(reports: Iterable[Report], most: int) -> Report:
    """One report of those of several processes."""
    known = list(reports)
    rows = [row for report in known for row in report["clients"]]
    slowest = heapq.nlargest(
        most,
        rows,
        key=lambda row: (-1.0 if row["behind"] is None else row["behind"], row["merged"]),
    )
    return {"clients": slowest, "total": sum(report["total"] for report in known)}


# -- symbols ---------------------------------------------------------------------------------------


class Symbols:
    """The symbols of one process, with how often each was quoted since somebody asked before."""

    def __init__(self, hub: Hub, late: Sequence[Hub] = ()) -> None:
        """`late` are the hubs of delays, whose clients count as watchers too."""
        self._hub = hub
        self._late = late
        # The symbols' numbers with their time: the latest, and those before, for a request soon
        # after.
        self._kept: list[tuple[float, dict[str, int]]] = []

    def busiest(self, now: float, most: int) -> Steps:
        """The symbols quoted most often; where no rate is known yet, those with most quotes.

        A rate is counted over the time since somebody asked before, and over a second at least
        where that was not the first time. `now` is in seconds since the epoch.
        """
        kept = self._kept
        before_at, before = next(
            (each for each in reversed(kept) if now - each[0] >= _RATE_OVER),
            kept[0] if kept else (now, {}),
        )
        seconds = now - before_at
        numbers: dict[str, int] = {}
        busiest: list[tuple[float, int, str, Topic, float | None]] = []
        topics = self._hub.topics()
        for start in range(0, len(topics), _LOOKED_AT):
            some = topics[start : start + _LOOKED_AT]
            numbers.update((topic.symbol, topic.n) for topic in some)
            rated = ((topic, _rate(topic, before, seconds)) for topic in some)
            busiest = heapq.nlargest(
                most,
                [
                    *busiest,
                    *((rate or 0.0, topic.n, topic.symbol, topic, rate) for topic, rate in rated),
                ],
                key=lambda each: each[:3],
            )
            yield
        if self._kept is kept and not (kept and 0 <= now - kept[-1][0] < _RATE_OVER):
            # After the clock was set back, older numbers are useless.
            earlier = kept[-1:] if seconds >= 0 else []
            self._kept = [*earlier, (now, numbers)]
        rows: list[dict[str, Any]] = []
        for _, _, _, topic, rate in busiest:
            rows.append(self._row(topic, rate, now))
            if len(rows) % _MADE == 0:
                yield
        return {"symbols": rows, "total": len(topics)}

    def named(self, now: float, symbols: Iterable[str]) -> Report:
        """Those of `symbols` that are known here, without rates."""
        topics = [topic for topic in map(self._hub.topic, symbols) if topic is not None]
        rows = [self._row(topic, None, now) for topic in topics]
        return {"symbols": rows, "total": self._hub.count_topics()}

    def _row(self, topic: Topic, rate: float | None, now: float) -> dict[str, Any]:
        age = None if topic.payload is None else max(0, int(now * 1000) - topic.t)
        return {
            "symbol": topic.symbol,
            "n": topic.n,
            "watchers": topic.watcher_count
            + sum(late.watcher_count for late in self._topics_of_late(topic.symbol)),
            "rate": None if rate is None else round(rate, 3),
            "age": age,
            "stale": topic.stale,
        }

    def _topics_of_late(self, symbol: str) -> Iterator[Topic]:
        for hub in self._late:
            topic = hub.topic(symbol)
            if topic is not None:
                yield topic


def _rate(topic: Topic, before: Mapping[str, int], seconds: float) -> float | None:
    """Quotes a second since `before`; None where that is not known."""
    number = before.get(topic.symbol)
    if number is None or topic.n < number or seconds <= 0:
        return None
    return (topic.n - number) / seconds


def merged_symbols(reports: Iterable[Report], most: int) -> Report:
    """One report of those of several processes, each of which gets every quote."""
    rows: dict[str, dict[str, Any]] = {}
    total = 0
    for report in reports:
        total = max(total, report["total"])
        for row in report["symbols"]:
            known = rows.get(row["symbol"])
            rows[row["symbol"]] = row if known is None else _merged_symbol(known, row)
    busiest = heapq.nlargest(
        most, rows.values(), key=lambda row: (row["rate"] or 0.0, row["n"], row["symbol"])
    )
    return {"symbols": busiest, "total": total}


def _merged_symbol(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {
        "symbol": one["symbol"],
        "n": max(one["n"], other["n"]),
        "watchers": one["watchers"] + other["watchers"],
        "rate": _best(max, one["rate"], other["rate"]),
        "age": _best(min, one["age"], other["age"]),
        "stale": one["stale"] or other["stale"],
    }


def _best(choose: Callable[[list[float]], float], *values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None
