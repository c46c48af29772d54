# ruff: noqa: INP001 - a program beside the documents, in no package
"""Writes the page of all metrics from their declarations.

python docs/metrics_table.py > docs/metrics.rst
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Final

from list_table import list_table

from pushservice.monitoring.families import CERTIFICATE, FAMILIES, WORKER, Family

INTRODUCTION: Final = f"""\
Metrics
=======

``/metrics`` on the admin port (``--admin``, see `operations <operations.rst>`_) is text that
Prometheus reads; who asks for ``application/openmetrics-text`` in ``Accept`` gets OpenMetrics. A
scrape reads numbers that are there already, and holds up nobody.

::

    scrape_configs:
      - job_name: quotepush
        static_configs:
          - targets: ["127.0.0.1:8009"]

With workers the manager answers for all of them, from what each last said of itself, which is a
second old at most. Where there is a label ``worker``, it is {WORKER.help},
and ``manager`` for the process that serves nobody; all else is summed. What is counted stays
counted when a worker ends: no counter falls before the daemon itself ends.

**Quotes in** are counted by every worker, as each reads all that Redis publishes: take ``max`` over
workers, not ``sum``. **Quotes sent** are those that left in a turn or after a client had caught up;
first snapshots, answers and heartbeats are not among them.

**Time within the daemon**, ``receive_to_write``, begins with a read of Redis, which may bring many
quotes, and ends when the last client was written to. It counts once for each quote sent, so that
its quantiles are those of deliveries; they are upper ones, as most were written earlier. What is
paced, delayed, or sent once a client has caught up waits on purpose and is not in it.

**Time from the publisher** is known where payloads have a field ``"ts"`` with a whole number, the
milliseconds since 1970 (or micro- or nanoseconds, told by 16 or 19 digits), and of one quote for
each read of Redis, the first, which has waited longest. It is as right as both clocks: less than
nothing counts as 0, and what is more than a day off is nonsense, and left out.

Latency that 99 of 100 quotes keep within, and the messages of Redis a second::

    histogram_quantile(0.99, sum by (le) (rate(quotepush_receive_to_write_seconds_bucket[5m])))
    max(rate(quotepush_quotes_in_total[1m]))
"""


def literals(values: Iterable[str]) -> str:
    """Each of them as code."""
    return ", ".join(f"``{value}``" for value in values)


def labels(family: Family) -> str:
    """The labels of a metric with what they may be; a dash where it has none."""
    known = {WORKER.label, CERTIFICATE.label}
    found = [
        literals([label]) + ("" if label in known else f": {literals(values)}")
        for label, values in family.labels.items()
    ]
    return "; ".join(found) or "—"


def row(family: Family) -> list[str]:
    """The cells: name, kind, labels, meaning."""
    return [literals([family.shown_name]), str(family.kind), labels(family), family.help]


def table(title: str, rows: Iterable[list[str]]) -> Iterator[str]:
    """The lines of a table."""
    titles = ["Metric", "Kind", "Labels", "Meaning"]
    return list_table(title, (34, 10, 20, 36), titles, rows)


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for title, families in FAMILIES.items():
        lines += [title, "-" * len(title), ""]
        lines += table(f"Metrics: {title}", map(row, families))
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
