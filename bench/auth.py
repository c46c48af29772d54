"""Measures what authentication costs: nothing for quotes, a little for connections.

    .venv-bench/bin/python bench/auth.py             # about two minutes
    .venv-bench/bin/python bench/auth.py --tls --rounds 5

Three daemons run all the time: without authentication, with HS256 tokens, and with EdDSA tokens.
They are measured alternately, in both orders, so that other load on the machine affects all alike.
Two figures of each, by the CPU time of the daemon, which has a core to itself:

- a delivery in the shape "watchlist" (500 clients, each 50 of 500 symbols, closed loop): tokens may
  add less than 2%;
- a connection, of 5,000 opened at once, each with a token: the daemon has to accept at least half
  as many a second as without tokens, by wall-clock time too, which includes the load generator.

The best of all rounds counts, because the machine may be shared. Ends by itself; exit status 1 if a
figure is beyond its limit.
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
from processes import ROOT, TARGETS, Redis, Server
from run import BUILD, find_redis, make_pair
from shape import IN_FLIGHT, WARM_UP, Shape, window
from shapes import SHAPES

MAX_ADDED_COST = 0.02
MIN_SPEED = 0.5
WITHOUT_AUTH = "none"
ALGORITHMS = ("HS256", "EdDSA")


@dataclass
class Variant:
    """A daemon, its load generator, and what was measured of it."""

    name: str
    server: Server
    load: Load
    delivery_us: list[float] = field(default_factory=list)
    connection_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    #: the share of the daemon's core that other processes used meanwhile
    others: list[float] = field(default_factory=list)


def token_command(*words: object) -> str:
    """The output of `quotepush token` with these arguments."""
    code = "from pushservice.cli.token import token; token()"
    command = [str(ROOT / ".venv/bin/python"), "-c", code, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return done.stdout


def keys_of(algorithm: str, directory: Path) -> tuple[Path, str]:
    """The file of a daemon's key, and a token that the key verifies."""
    signing, verifying = directory / f"{algorithm}.key", directory / f"{algorithm}.pub"
    public = token_command("key", signing, "--algorithm", algorithm)
    verifying.write_text(public or signing.read_text())
    rights = ["--user", "ann", "--expires", "1d", "--symbols", "S*", "--symbols", "!X*"]
    return verifying, token_command("make", "--key", signing, *rights).strip()


@contextlib.contextmanager
def variants(directory: Path, pair: tuple[Path, Path] | None) -> Iterator[list[Variant]]:
    """A daemon of each variant, all fed by one Redis."""
    ours = TARGETS[0]
    program = build(BUILD)
    with contextlib.ExitStack() as stack:
        redis = Redis(find_redis(), directory)
        stack.callback(redis.close)
        found = []
        for name in (WITHOUT_AUTH, *ALGORITHMS):
            own = directory / name
            own.mkdir()
            options, token = ("--auth", "none"), None
            if name != WITHOUT_AUTH:
                key, token = keys_of(name, own)
                options = ("--auth", "token", "--token-key", str(key))
            server = Server(ours, own, redis.path, pair, (*Shape.options, *options))
            stack.callback(server.close)
            tls = pair is not None
            load = Load(program, server.port, redis.path, ours.style, tls=tls, token=token)
            stack.callback(load.close)
            found.append(Variant(name, server, load))
        yield found


def measure_delivery(variant: Variant, shape: Shape, seconds: float) -> None:
    """One window of the closed loop."""
    shape.connect(variant.load, shape.clients)
    depth = max(2, round(IN_FLIGHT / shape.audience))
    window(variant.server, variant.load, "closed", WARM_UP, depth, 0)
    figures = window(variant.server, variant.load, "closed", seconds, depth, 0)
    variant.load.ask("disconnect")
    variant.server.settle()
    variant.delivery_us.append(figures["us_per_delivery"])
    variant.others.append(figures["others_busy"])


def measure_connecting(variant: Variant, shape: Shape) -> None:
    """Connect all clients at once, then disconnect them."""
    variant.server.settle()
    cpu = variant.server.cpu()
    answer = shape.connect(variant.load, shape.clients)
    cpu = variant.server.cpu() - cpu
    variant.load.ask("disconnect")
    variant.server.settle()
    variant.connection_us.append(cpu / shape.clients * 1e6)
    variant.per_second.append(shape.clients / answer["seconds"])


def spread(values: Sequence[float]) -> float:
    """The relative difference between the highest and the lowest round."""
    return max(values) / min(values) - 1


def report(found: list[Variant]) -> bool:
    """Print a line for each variant, with ratios to the first; returns whether all are good."""
    first, *others = found
    print(
        f"{'authentication':14}{'us/delivery':>12}{'ratio':>8}{'spread':>8}"
        f"{'us/connection':>15}{'speed':>7}{'conn/s':>9}{'speed':>7}"
    )
    good = True
    for variant in found:
        delivery = min(variant.delivery_us) / min(first.delivery_us)
        by_cpu = min(first.connection_us) / min(variant.connection_us)
        by_clock = max(variant.per_second) / max(first.per_second)
        print(
            f"{variant.name:14}{min(variant.delivery_us):12.3f}{delivery:8.3f}"
            f"{spread(variant.delivery_us):8.1%}{min(variant.connection_us):15.0f}{by_cpu:7.2f}"
            f"{max(variant.per_second):9.0f}{by_clock:7.2f}"
        )
        if variant in others:
            good &= delivery < 1 + MAX_ADDED_COST and by_cpu >= MIN_SPEED and by_clock >= MIN_SPEED
    busy = statistics.mean(share for variant in found for share in variant.others)
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    print(f"others took {busy:.1%} of the daemon's core; the load average at the end is {load}")
    return good


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="bench/auth.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measured window")
    parser.add_argument("--tls", action="store_true")
    given = parser.parse_args()
    shapes = {shape.name: shape for shape in SHAPES}
    with tempfile.TemporaryDirectory(prefix="quotepush-bench-") as name:
        directory = Path(name)
        pair = make_pair(directory) if given.tls else None
        with variants(directory, pair) as found:
            for number in range(given.rounds):
                for variant in reversed(found) if number % 2 else found:
                    measure_delivery(variant, shapes["watchlist"], given.seconds)
                    measure_connecting(variant, shapes["idle"])
            return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
