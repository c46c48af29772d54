"""Measures what /metrics and other pages of the admin port cost in a process that serves clients.

    .venv-bench/bin/python bench/scrape.py             # about two minutes
    .venv-bench/bin/python bench/scrape.py --rounds 9 --every 0.1

First the CPU that the daemon (--workers 0) uses for one answer, with 500 clients connected and no
quotes: for so long its reactor does nothing else. Then latency and CPU per delivery at a steady
load, in windows without and with a scraper that requests all pages every second. They alternate, so
that other load on the machine affects both alike; the ratio is what counts.

Every delivery is checked by the load generator (load.c). Ends by itself; exit status 1 if a
scrape of /metrics takes 5 ms or more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from load import Load, build
from processes import LOAD_CORE, TARGETS, Redis, Server, free_port
from run import BUILD, find_redis
from shape import STEADY_RATE, WARM_UP, Shape, ask, window
from shapes import SHAPES

PAGES = ("metrics", "status", "clients?slow=20", "symbols?top=50")
MEASURED = ("steady", "steady-watchlist")
#: Answers that are measured together, because psutil counts CPU in hundredths of a second.
ANSWERS = 200
MAX_MS = 5.0


def fetch(admin: int, path: str) -> int:
    """Request a page once; returns the size of the answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/{path}", timeout=10) as answer:
        return len(answer.read())


class Scraper:
    """Requests all pages again and again, from a thread."""

    def __init__(self, admin: int, every: float) -> None:
        self.seconds: list[float] = []
        self._admin = admin
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        os.sched_setaffinity(0, {LOAD_CORE})
        while not self._ended.wait(self._every):
            began = time.monotonic()
            for path in PAGES:
                fetch(self._admin, path)
            self.seconds.append((time.monotonic() - began) / len(PAGES))


def costs(server: Server, load: Load, admin: int) -> dict[str, float]:
    """Milliseconds of the server's CPU for one answer, by page."""
    shape = next(shape for shape in SHAPES if shape.name == "steady-watchlist")
    shape.connect(load, shape.clients)
    # So that symbols have values, and histograms and rates are not empty.
    ask(load, "open", 1.0, STEADY_RATE / shape.audience)
    found = {}
    for path in PAGES:
        size = fetch(admin, path)
        server.settle()
        before = server.cpu()
        for _ in range(ANSWERS):
            fetch(admin, path)
        found[path] = (server.cpu() - before) / ANSWERS * 1000
        print(f"/{path}: {found[path]:.2f} ms of CPU for {size} bytes")
    load.ask("disconnect")
    return found


def compare(
    server: Server, load: Load, admin: int, shape: Shape, given: argparse.Namespace
) -> dict[bool, list[dict[str, Any]]]:
    """Windows without a scraper (False) and with one (True)."""
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    rate = STEADY_RATE / shape.audience
    shape.connect(load, shape.clients)
    ask(load, "open", WARM_UP, rate)
    for number in range(given.rounds):
        # The order alternates.
        for scraped in (False, True) if number % 2 else (True, False):
            if scraped:
                with Scraper(admin, given.every):
                    figures = window(server, load, "open", given.seconds, rate)
            else:
                figures = window(server, load, "open", given.seconds, rate)
            found[scraped].append(figures)
    load.ask("disconnect")
    server.settle()
    return found


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/scrape.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measured window")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two scrapes")
    return parser.parse_args()


def main() -> int:
    """Measure and report."""
    given = options()
    if len(os.sched_getaffinity(0)) < 2:
        print("the benchmark needs two cores", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="quotepush-bench-") as name:
        directory, admin = Path(name), free_port()
        redis = Redis(find_redis(), directory)
        try:
            ours = next(each for each in TARGETS if each.ours)
            more = [*Shape.options, "--admin", f"127.0.0.1:{admin}"]
            server = Server(ours, directory, redis.path, None, more)
            try:
                load = Load(build(BUILD), server.port, redis.path, ours.style, tls=False)
                try:
                    each = costs(server, load, admin)
                    for shape in SHAPES:
                        if shape.name in MEASURED:
                            report(shape, compare(server, load, admin, shape, given))
                finally:
                    load.close()
            finally:
                server.close()
        finally:
            redis.close()
    return 0 if each["metrics"] < MAX_MS else 1


def report(shape: Shape, found: dict[bool, list[dict[str, Any]]]) -> None:
    """Print the medians of a shape, and their ratios."""
    print(f"{shape.title}: without and with a scraper, ratio of medians (ratios of each round)")
    for figure in ("p50_us", "p99_us", "p999_us", "us_per_delivery"):
        without, asked = ([each[figure] for each in found[which]] for which in (False, True))
        medians = statistics.median(without), statistics.median(asked)
        ratios = sorted(one / other for one, other in zip(asked, without, strict=True))
        rounds = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"    {figure}: {medians[0]:.2f}, {medians[1]:.2f}: {medians[1] / medians[0]:.2f} x"
            f" ({rounds})"
        )


if __name__ == "__main__":
    sys.exit(main())
