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

``/metrics`` on the admin port (``--admin``, see `operations <operations.rst>`_) is in the text
format of Prometheus. A request with ``application/openmetrics-text`` in ``Accept`` gets
OpenMetrics. A scrape reads existing numbers and does not delay clients.

::

    scrape_configs:
      - job_name: quotepush
        static_configs:
          - targets: ["127.0.0.1:8009"]

With workers the manager answers for all of them, from their latest reports, which are at most a
second old. The label ``worker`` is {WORKER.help}, and ``manager`` for the manager. Metrics without
this label are sums over all workers. Counters keep the counts of workers that have ended: no
counter decreases before the daemon itself ends.

**Quotes in** are counted by every worker, because each reads everything that Redis publishes: use
``max`` over workers, not ``sum``. **Quotes sent** are those sent in a turn or after a client had
caught up. They do not include first snapshots, answers and heartbeats.

**Time within the daemon**, ``receive_to_write``, begins with a read of Redis, which may bring many
quotes, and ends when the last client was written to. It counts once per quote sent, so its
quantiles are those of deliveries. They are upper bounds, because most clients were written to
earlier. Quotes that wait on purpose (paced, delayed, or sent after a client had caught up) are not
included.

**Time from the publisher** needs a field ``"ts"`` in payloads: an integer in milliseconds since
1970 (or micro- or nanoseconds, recognized by 16 or 19 digits). It is measured for the first quote
of each read of Redis, which has waited longest. It depends on both clocks: negative times count as
0, and times over a day are left out.

The 99th percentile of the latency, and the messages of Redis a second::

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
