"""Measures quotepush against other WebSocket servers, alternately, on this machine.

    script/bench                                  # everything: three rounds, plain and TLS
    script/bench --quick                          # one short round of the three closed shapes
    script/bench --servers quotepush,socketify --shapes broadcast --rounds 5 --plain
    script/bench --shapes stalled,paced,flood     # slow clients, pacing, a hostile client

The server under test has one core to itself; Redis and the load generator share another. Each round
measures every server in every shape before the next round begins, so that other load on the machine
affects all alike. The medians of the rounds are shown, with ratios to quotepush. Everything is on
the loopback interface, and every process ends with the benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import report
from load import Load, LoadFailed, build
from processes import ROOT, TARGETS, DidNotStart, Redis, Server, Target
from shape import IN_FLIGHT, STALLED_SECONDS, InvalidMeasurement, RunSettings, Shape
from shapes import SHAPES

QUICK_SHAPES = "broadcast,watchlist,firehose"
DEFAULT_SHAPES = "broadcast,watchlist,firehose,idle,steady,steady-watchlist"
BUILD = Path(sys.prefix) / "build"
PACKAGES = ("Twisted", "autobahn", "websockets", "picows", "uvloop", "socketify", "txredisapi")
#: Errors that end one server's measurements but not the benchmark.
FAULTS = (DidNotStart, LoadFailed, InvalidMeasurement, psutil.Error)


def options() -> argparse.Namespace:
    """The command line, fully checked."""
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measured window")
    parser.add_argument(
        "--in-flight", type=int, default=IN_FLIGHT, help="deliveries in flight in the closed loop"
    )
    parser.add_argument(
        "--shapes",
        default=DEFAULT_SHAPES,
        help=f"of: {','.join(shape.name for shape in SHAPES)}; default: all but the last three."
        " stalled: clients that stop reading, or read slowly (other servers only when named by"
        " --servers); paced: one update of a symbol in 250 ms; flood: one hostile client (both:"
        " quotepush alone)",
    )
    parser.add_argument(
        "--stalled-seconds", type=float, default=STALLED_SECONDS, help="of the shape stalled"
    )
    parser.add_argument(
        "--servers", help=f"of: {','.join(each.name for each in TARGETS)}; default: all"
    )
    security = parser.add_mutually_exclusive_group()
    security.add_argument("--plain", action="store_const", const="plain", dest="security")
    security.add_argument("--tls", action="store_const", const="tls", dest="security")
    security.add_argument("--both", action="store_const", const="plain,tls", dest="security")
    parser.add_argument("--json", type=Path, help="write every figure of every round here")
    parser.add_argument("--chart", type=Path, help="write a chart (PNG) here")
    parser.add_argument("--quick", action="store_true", help="under three minutes, rough")
    parser.set_defaults(security="plain,tls")
    given = parser.parse_args()
    if given.quick:
        given.rounds = 1
        given.seconds = min(given.seconds, 1.0)
        given.stalled_seconds = min(given.stalled_seconds, 10.0)
        if given.shapes == DEFAULT_SHAPES:
            given.shapes = QUICK_SHAPES
    given.shapes = _choose(parser, given.shapes, SHAPES)
    given.named = given.servers is not None
    every = ",".join(each.name for each in TARGETS)
    given.servers = _choose(parser, given.servers or every, TARGETS)
    given.security = given.security.split(",")
    return given


def _choose(parser: argparse.ArgumentParser, names: str, known: Sequence[Any]) -> list[Any]:
    by_name = {each.name: each for each in known}
    for name in names.split(","):
        if name not in by_name:
            parser.error(f"{name!r} is none of: {', '.join(by_name)}")
    return [by_name[name] for name in names.split(",")]


def make_pair(directory: Path) -> tuple[Path, Path]:
    """A certificate (ECDSA P-256, self-signed) and its key, the same for every server."""
    certificate, key = directory / "bench.crt", directory / "bench.key"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def find_redis() -> str:
    """The redis-server that quotepush itself would embed."""
    code = "from pushservice.redis.embedded import find_redis_server; print(find_redis_server())"
    command = [ROOT / ".venv/bin/python", "-c", code]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Bench:
    """One run of the benchmark."""

    def __init__(self, given: argparse.Namespace, directory: Path) -> None:
        self._given = given
        self._directory = directory
        self._program = build(BUILD)
        self._pair = make_pair(directory)
        self._redis = find_redis()
        self.results: list[dict[str, Any]] = []
        self.began = time.time()

    def run(self) -> None:
        """Measure every server in every shape, in each round."""
        for round_number in range(1, self._given.rounds + 1):
            for security in self._given.security:
                for target in self._given.servers:
                    self._measure(round_number, security, target)

    def _measure(self, round_number: int, security: str, target: Target) -> None:
        """Measure one server in its shapes; some shapes get a server process of their own."""
        shapes = [shape for shape in self._given.shapes if self._is_for(shape, target)]
        settings = RunSettings(
            self._given.seconds,
            self._given.in_flight,
            tls=security == "tls",
            stalled_seconds=self._given.stalled_seconds,
        )
        fresh = [[shape] for shape in shapes if shape.alone]
        shared = [shape for shape in shapes if not shape.alone]
        for group in [*fresh, shared] if shared else fresh:
            waiting = list(group)
            options = group[0].options
            try:
                with self._running(target, security, options) as (server, load):
                    while waiting:
                        shape = waiting.pop(0)
                        figures = shape.measure(server, load, settings)
                        self._store(round_number, security, target, shape, figures)
            except FAULTS as fault:
                for left in [shape, *waiting] if len(waiting) < len(group) else group:
                    figures = {"fault": str(fault)}
                    self._store(round_number, security, target, left, figures)

    def _is_for(self, shape: Shape, target: Target) -> bool:
        return (
            target.ours
            or shape.servers == "all"
            or (shape.servers == "named" and self._given.named)
        )

    @contextlib.contextmanager
    def _running(
        self, target: Target, security: str, options: Sequence[str]
    ) -> Iterator[tuple[Server, Load]]:
        with contextlib.ExitStack() as stack:
            redis = Redis(self._redis, self._directory)
            stack.callback(redis.close)
            pair = self._pair if security == "tls" else None
            server = Server(target, self._directory, redis.path, pair, options)
            stack.callback(server.close)
            load = Load(self._program, server.port, redis.path, target.style, tls=pair is not None)
            stack.callback(load.close)
            yield server, load

    def _store(
        self,
        round_number: int,
        security: str,
        target: Target,
        shape: Shape,
        figures: dict[str, Any],
    ) -> None:
        where = {
            "round": round_number,
            "security": security,
            "server": target.name,
            "shape": shape.name,
        }
        self.results.append(where | figures)
        print(f"{time.time() - self.began:6.0f} s  {report.line(where, figures)}", file=sys.stderr)

    def document(self) -> dict[str, Any]:
        """This run's results and what they were measured on, as JSON."""
        return {
            "machine": {
                "cpu": _cpu_model(),
                "cores": os.cpu_count(),
                "kernel": platform.release(),
                "python": platform.python_version(),
            },
            "versions": versions(),
            "outlet": os.environ.get("QUOTEPUSH_OUTLET", "auto"),
            "rounds": self._given.rounds,
            "window_seconds": self._given.seconds,
            "in_flight": self._given.in_flight,
            "seconds": round(time.time() - self.began),
            "medians": report.medians(self.results),
            "results": self.results,
        }


def versions() -> dict[str, str]:
    """Versions of the packages that were measured and of what they use."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    for name in ("ws", "ioredis"):
        with contextlib.suppress(OSError):
            text = (Path(sys.prefix) / "node_modules" / name / "package.json").read_text()
            found[name] = json.loads(text)["version"]
    return found


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def main() -> int:
    """Run and report; exit status 1 if a measurement failed."""
    given = options()
    if len(os.sched_getaffinity(0)) < 2:
        print("the benchmark needs two cores", file=sys.stderr)
        return 2
    if shutil.which("node") is None:
        given.servers = [each for each in given.servers if each.name != "node-ws"]
        print("no node: Node's ws is left out", file=sys.stderr)
    # After SIGTERM too it ends its processes and shows the results so far.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="quotepush-bench-") as directory:
        try:
            bench = Bench(given, Path(directory))
        except LoadFailed as failure:
            print(failure, file=sys.stderr)
            return 2
        try:
            bench.run()
        except KeyboardInterrupt:
            print("interrupted; these are the results so far", file=sys.stderr)
    document = bench.document()
    print(report.tables(document))
    if given.json:
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    if given.chart:
        report.chart(document, given.chart)
    return 1 if any("fault" in result for result in bench.results) else 0


if __name__ == "__main__":
    sys.exit(main())
