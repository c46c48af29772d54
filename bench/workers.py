"""Measures whether two workers deliver twice what one does, and what their manager uses.

    .venv-bench/bin/python bench/workers.py            # about a minute
    .venv-bench/bin/python bench/workers.py --tls --rounds 5

With free cores, throughput would tell. On two cores the load generator and Redis use a good part of
one, so the CPU time of a delivery is measured instead, with workers that are always busy:

- one worker with all clients, on the first core, which it has to itself;
- two workers at once, the second on the other core, beside the load generator and Redis. This
  includes all that they cost each other: locks, shared structures, caches, and that each parses all
  quotes for half of the clients. The first often waits for the second, and then gets fewer quotes
  at a time, which cost more each, while the second gets more: so their costs are added up. With a
  core each, two workers deliver 2 / cost;
- one worker with half of the clients, as each of two has. It is always busy, but the load generator
  has little to do, sleeps, and has to be woken up, which costs the worker.

CPU time does not show workers that wait for each other. So the throughput in wall-clock time is
shown too, next to what it would be without waiting. Both daemons run all the time and are measured
alternately; the lowest cost of all rounds counts, because the machine may be shared.

Every delivery is checked by the load generator (load.c). Ends by itself; exit status 1 if two
workers deliver less than 1.7 times what one does, or the manager uses more than 1% of a core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from load import Load, build
from processes import ROOT, DidNotStart, Redis, free_port, stop
from run import BUILD, find_redis, make_pair
from shape import WARM_UP, Shape, ask
from shapes import SHAPES

MEASURED = ("broadcast", "watchlist")
MIN_SPEEDUP = 1.7
MAX_MANAGER = 0.01
#: Deliveries in flight; see shape.py.
IN_FLIGHT = 16_000
_START_SECONDS = 30


@dataclass(frozen=True)
class Setup:
    """How many workers there are, and by what the shape's number of clients is divided."""

    title: str
    workers: int
    part: int


ALONE, HALF, BOTH = Setup("alone", 1, 1), Setup("half", 1, 2), Setup("two", 2, 1)
SETUPS = (ALONE, BOTH, HALF)
#: Windows by the shape's name and the setup.
Found = dict[tuple[str, Setup], list[dict[str, Any]]]


@dataclass
class WorkerDaemon:
    """A running daemon: its manager, and its workers."""

    port: int
    admin: int
    manager: psutil.Process
    workers: list[psutil.Process]

    def cpu(self) -> tuple[float, list[float]]:
        """Seconds of CPU used so far by the manager, and by each worker."""
        return _cpu(self.manager), [_cpu(worker) for worker in self.workers]

    def clients(self) -> list[int]:
        """The number of clients of each worker, at most a second old."""
        return [each["clients"] for each in _workers(self.admin)]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def running(
    count: int, directory: Path, redis: Path, pair: tuple[Path, Path] | None
) -> Iterator[WorkerDaemon]:
    """A daemon with `count` workers, all of which serve and have a feed."""
    port, admin = free_port(), free_port()
    command = [str(ROOT / ".venv/bin/twistd"), "-n", "--pidfile=", "quotepush"]
    command += ["--interface", "127.0.0.1", "--port", str(port), "--admin", f"127.0.0.1:{admin}"]
    command += ["--redis", f"unix://{redis}", "--workers", str(count), "--max-symbols", "5000"]
    command += ["--cert", str(pair[0]), "--key", str(pair[1])] if pair else ["--plain"]
    command += ["--max-per-address", "0", "--connect-rate", "0", "--no-page"]
    command += ["--affinity"]
    log = directory / f"quotepush{count}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while len(workers := _workers(admin)) < count:
            if process.poll() is not None or time.monotonic() > deadline:
                raise DidNotStart(f"the daemon did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        processes = [psutil.Process(each["pid"]) for each in workers]
        yield WorkerDaemon(port, admin, psutil.Process(process.pid), processes)
    finally:
        # With clients connected it would take its time to say goodbye.
        stop(process)


def _workers(admin: int) -> list[dict[str, Any]]:
    """What the workers that are fed last said of themselves, by number."""
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/status", timeout=5) as answer:
            found = json.load(answer)["workers"]
        fed = [each for each in found if each.get("feed") == "up"]
        return sorted(fed, key=lambda each: each["number"])
    return []


def measure(
    daemon: WorkerDaemon, load: Load, shape: Shape, clients: int, seconds: float
) -> dict[str, Any]:
    """One window in the closed loop, with as many deliveries in flight whatever `clients` is."""
    shape.connect(load, clients)
    depth = max(2, round(IN_FLIGHT / shape.audience))
    ask(load, "closed", WARM_UP, depth, 0)
    manager, workers = daemon.cpu()
    began = time.monotonic()
    answer = ask(load, "closed", seconds, depth, 0)
    lasted = time.monotonic() - began
    manager_after, workers_after = daemon.cpu()
    shares = daemon.clients()
    load.ask("disconnect")
    used = [after - before for before, after in zip(workers, workers_after, strict=True)]
    return {
        "cost": sum(used) / answer["delivered"] * 1e6,
        # Each client gets as many quotes as any other.
        "costs": [
            each / (answer["delivered"] * share / sum(shares)) * 1e6
            for each, share in zip(used, shares, strict=True)
        ],
        "load_cost": answer["load_cpu"] / answer["delivered"] * 1e6,
        "wall": answer["delivered"] / answer["seconds"] / 1e6,
        "clients": shares,
        "manager_seconds": manager_after - manager,
        "seconds": lasted,
        "per_frame": answer["delivered"] / max(answer["frames"], 1),
    }


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/workers.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measured window")
    parser.add_argument("--tls", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Measure one worker and two alternately, and report."""
    given = options()
    if len(os.sched_getaffinity(0)) < 2:
        print("the benchmark needs two cores", file=sys.stderr)
        return 2
    shapes = [shape for shape in SHAPES if shape.name in MEASURED]
    found: Found = {}
    with (
        tempfile.TemporaryDirectory(prefix="quotepush-bench-") as name,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        program = build(BUILD)
        pair = make_pair(directory) if given.tls else None
        daemons: dict[int, tuple[WorkerDaemon, Load]] = {}
        for count in (1, 2):
            own = directory / str(count)
            own.mkdir()
            redis = Redis(find_redis(), own)
            stack.callback(redis.close)
            daemon = stack.enter_context(running(count, own, redis.path, pair))
            load = Load(program, daemon.port, redis.path, "json", tls=given.tls)
            stack.callback(load.close)
            daemons[count] = daemon, load
        for _ in range(given.rounds):
            for shape in shapes:
                for setup in SETUPS:
                    daemon, load = daemons[setup.workers]
                    clients = shape.clients // setup.part
                    figures = measure(daemon, load, shape, clients, given.seconds)
                    found.setdefault((shape.name, setup), []).append(figures)
    return report([shape.name for shape in shapes], found)


def report(shapes: list[str], found: Found) -> int:
    """Print the results; returns the exit status."""

    def best(shape: str, setup: Setup) -> dict[str, Any]:
        return min(found[shape, setup], key=lambda window: window["cost"])

    good = True
    print("microseconds of CPU per delivery, million deliveries a second")
    for shape in shapes:
        alone, half, both = (best(shape, setup)["cost"] for setup in (ALONE, HALF, BOTH))
        good = good and 2 * alone / both >= MIN_SPEEDUP
        print(
            f"{shape}: {alone:.3f} us alone, {both:.3f} us of two at once: with a core each, two"
            f" deliver {2 / both:.2f} million, {2 * alone / both:.2f} times the {1 / alone:.2f} of"
            f" one; {half:.3f} us with half of the clients: {2 * alone / half:.2f} times"
        )
        for setup in SETUPS:
            window = best(shape, setup)
            cost, load = window["cost"], window["load_cost"]
            # One worker has a core and the load the other; two share both with the load.
            bound = 1 / max(cost, load) if setup.workers == 1 else 2 / (cost + load)
            each = " and ".join(f"{cost:.3f}" for cost in window["costs"])
            rounds = " ".join(f"{each['cost']:.3f}" for each in found[shape, setup])
            print(
                f"    {setup.title}: wall clock {window['wall']:.2f}, and {bound:.2f} without"
                f" waiting: {each} us of workers and {load:.3f} of the load;"
                f" {window['per_frame']:.0f} quotes a frame; clients {window['clients']};"
                f" all rounds: {rounds}"
            )
    each = [window for windows in found.values() for window in windows]
    took = sum(window["manager_seconds"] for window in each)
    manager = took / sum(window["seconds"] for window in each)
    print(f"the manager: {took:.2f} s of CPU while quotes flowed, {manager:.2%} of a core")
    return 0 if good and manager <= MAX_MANAGER else 1


if __name__ == "__main__":
    sys.exit(main())
