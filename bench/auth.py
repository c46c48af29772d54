"""Measures what it costs to ask who clients are: nothing for quotes, a little for connections.

    .venv-bench/bin/python bench/auth.py             # about two minutes
    .venv-bench/bin/python bench/auth.py --tls --rounds 5

A daemon that asks nobody, one with tokens of HS256 and one with tokens of EdDSA live all the time
and are measured in turns, forwards and backwards, so that what disturbs the machine disturbs all
alike. Two figures of each, by the CPU time of the daemon, which has a core of its own:

- a delivery in the shape "watchlist" (500 clients, each 50 of 500 symbols, closed loop): asking may
  change it by less than 2%;
- a connection, of 5,000 that come at once, each with a token: the daemon is to take at least half
  as many a second as without tokens. By the clock too, where the load generator and Redis count.

Of all rounds the best counts, as others use the machine too. Ends by itself; exit status 1 when a
figure is beyond what it may be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from load import Load, build
from processes import CONTESTANTS, ROOT, Redis, Server
from run import BUILD, find_redis, make_pair
from shape import IN_FLIGHT, WARM_UP, Shape, window
from shapes import SHAPES

MOST_MORE = 0.02
LEAST_SPEED = 0.5
NOBODY = "none"
ALGORITHMS = ("HS256", "EdDSA")


@dataclass
class Kind:
    """A daemon, its load generator, and what was measured of it."""

    name: str
    server: Server
    load: Load
    delivery_us: list[float] = field(default_factory=list)
    connection_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    #: how busy others kept the daemon's core meanwhile, as a part of it
    others: list[float] = field(default_factory=list)


def by_hand(*words: object) -> str:
    """What `quotepush token` prints."""
    code = "from pushservice.cli.token import token; token()"
    command = [str(ROOT / ".venv/bin/python"), "-c", code, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return done.stdout


def keys_of(algorithm: str, directory: Path) -> tuple[Path, str]:
    """The key that a daemon is given, and a token that it takes."""
    signing, verifying = directory / f"{algorithm}.key", directory / f"{algorithm}.pub"
    public = by_hand("key", signing, "--algorithm", algorithm)
    verifying.write_text(public or signing.read_text())
    rights = ["--user", "ann", "--expires", "1d", "--symbols", "S*", "--symbols", "!X*"]
    return verifying, by_hand("make", "--key", signing, *rights).strip()


@contextlib.contextmanager
def kinds(directory: Path, pair: tuple[Path, Path] | None) -> Iterator[list[Kind]]:
    """Daemons of every kind, fed by one Redis."""
    ours = CONTESTANTS[0]
    program = build(BUILD)
    with contextlib.ExitStack() as stack:
        redis = Redis(find_redis(), directory)
        stack.callback(redis.close)
        found = []
        for name in (NOBODY, *ALGORITHMS):
            own = directory / name
            own.mkdir()
            options, token = ("--auth", "none"), None
            if name != NOBODY:
                key, token = keys_of(name, own)
                options = ("--auth", "token", "--token-key", str(key))
            server = Server(ours, own, redis.path, pair, (*Shape.options, *options))
            stack.callback(server.close)
            tls = pair is not None
            load = Load(program, server.port, redis.path, ours.style, tls=tls, token=token)
            stack.callback(load.close)
            found.append(Kind(name, server, load))
        yield found


def measure_delivery(kind: Kind, shape: Shape, seconds: float) -> None:
    """One window of the closed loop."""
    shape.connect(kind.load, shape.clients)
    depth = max(2, round(IN_FLIGHT / shape.audience))
    window(kind.server, kind.load, "closed", WARM_UP, depth, 0)
    figures = window(kind.server, kind.load, "closed", seconds, depth, 0)
    kind.load.ask("disconnect")
    kind.server.settle()
    kind.delivery_us.append(figures["us_per_delivery"])
    kind.others.append(figures["others_busy"])


def measure_connecting(kind: Kind, shape: Shape) -> None:
    """All clients come at once, and go."""
    kind.server.settle()
    cpu = kind.server.cpu()
    answer = shape.connect(kind.load, shape.clients)
    cpu = kind.server.cpu() - cpu
    kind.load.ask("disconnect")
    kind.server.settle()
    kind.connection_us.append(cpu / shape.clients * 1e6)
    kind.per_second.append(shape.clients / answer["seconds"])


def spread(values: Sequence[float]) -> float:
    """How far apart the rounds were."""
    return max(values) / min(values) - 1


def report(found: list[Kind]) -> bool:
    """A line for each kind, in ratios to the first; whether all is as it may be."""
    first, *others = found
    print(
        f"{'who is asked':14}{'us/delivery':>12}{'ratio':>8}{'spread':>8}"
        f"{'us/connection':>15}{'speed':>7}{'conn/s':>9}{'speed':>7}"
    )
    good = True
    for kind in found:
        delivery = min(kind.delivery_us) / min(first.delivery_us)
        by_cpu = min(first.connection_us) / min(kind.connection_us)
        by_clock = max(kind.per_second) / max(first.per_second)
        print(
            f"{kind.name:14}{min(kind.delivery_us):12.3f}{delivery:8.3f}"
            f"{spread(kind.delivery_us):8.1%}{min(kind.connection_us):15.0f}{by_cpu:7.2f}"
            f"{max(kind.per_second):9.0f}{by_clock:7.2f}"
        )
        if kind in others:
            good &= delivery < 1 + MOST_MORE and by_cpu >= LEAST_SPEED and by_clock >= LEAST_SPEED
    busy = statistics.mean(share for kind in found for share in kind.others)
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"others took {busy:.1%} of the daemon's core; the load average at the end is {load}")
    return good


def main() -> int:
    """Measure, and report."""
    parser = argparse.ArgumentParser(prog="bench/auth.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measured window")
    parser.add_argument("--tls", action="store_true")
    given = parser.parse_args()
    shapes = {shape.name: shape for shape in SHAPES}
    with tempfile.TemporaryDirectory(prefix="quotepush-bench-") as name:
        directory = Path(name)
        pair = make_pair(directory) if given.tls else None
        with kinds(directory, pair) as found:
            for number in range(given.rounds):
                for kind in reversed(found) if number % 2 else found:
                    measure_delivery(kind, shapes["watchlist"], given.seconds)
                    measure_connecting(kind, shapes["idle"])
            return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
