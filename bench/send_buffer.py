"""What --send-buffer costs and saves: memory for a client that does not read, and throughput.

    .venv-bench/bin/python bench/send_buffer.py --values 0,16384,65536 --rounds 3 [--tls]

For each value, alternately: the bytes that are written to a client that does not read until it is
behind, and what the kernel holds for it at the server's side, in bytes and in memory; then the
closed shapes. "merged" means that clients that do read fell behind there and missed quotes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from load import Load, build
from processes import TARGETS, Redis, Server, send_queues
from run import BUILD, find_redis, make_pair
from shape import IN_FLIGHT, InvalidMeasurement, RunSettings, Shape, ask
from shapes import SHAPES

VALUES = (0, 16384, 32768, 65536, 131072, 262144)
#: Clients that do not read, clients that do, and the symbols that all of them watch.
STALLED, READING, SYMBOLS = 10, 40, 250
#: Quotes that fill the largest buffers that Linux allocates by itself.
ENOUGH = 60_000
CLOSED = [shape for shape in SHAPES if shape.loop == "closed"]


def socket_memory(port: int) -> list[int]:
    """Kernel memory for sending of each connection of a port, as ss shows it."""
    try:
        command = ["ss", "-tmnH", "state", "established", f"sport = :{port}"]
        shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    except OSError:
        return []
    return [int(each) for each in re.findall(r"skmem:\(.*?,w(\d+),", shown)]


def measure_stalled(server: Server, load: Load) -> dict[str, float]:
    """KiB per client that does not read."""
    load.ask("connect", READING + STALLED, SYMBOLS, SYMBOLS, STALLED, 0, SYMBOLS)
    # Few in flight, so that clients that read do not fall behind, whatever the buffer.
    load.ask("closed", 1, 40, ENOUGH)
    held = sorted(socket_memory(server.port))[-STALLED:]
    queued = sorted(send_queues(server.port))[-STALLED:]
    settled = ask(load, "settle")
    load.ask("disconnect")
    server.settle()
    figures = {
        "swallowed": settled["swallowed"] / 1024,
        "queued": sum(queued) / STALLED / 1024,
        "frames to current": settled["most_frames"],
    }
    if held:
        figures["memory"] = sum(held) / STALLED / 1024
    return figures


@contextlib.contextmanager
def running(
    directory: Path, value: int, pair: tuple[Path, Path] | None
) -> Iterator[tuple[Server, Load]]:
    """A server with this --send-buffer, and its load generator."""
    ours = next(each for each in TARGETS if each.ours)
    options = [*Shape.options, "--send-buffer", str(value), "--stall-timeout", "300"]
    options += ["--ping-interval", "0"]
    with contextlib.ExitStack() as stack:
        redis = Redis(find_redis(), directory)
        stack.callback(redis.close)
        server = Server(ours, directory, redis.path, pair, options)
        stack.callback(server.close)
        load = Load(build(BUILD), server.port, redis.path, ours.style, tls=pair is not None)
        stack.callback(load.close)
        yield server, load


def measure(directory: Path, value: int, pair: Any, seconds: float) -> dict[str, float | None]:
    """All figures of one value, once; None if clients fell behind."""
    settings = RunSettings(seconds, IN_FLIGHT, tls=pair is not None)
    with running(directory, value, pair) as (server, load):
        figures: dict[str, float | None] = {**measure_stalled(server, load)}
    with running(directory, value, pair) as (server, load):
        for shape in CLOSED:
            try:
                figures[shape.name] = shape.measure(server, load, settings)["per_cpu_second"] / 1e6
            except InvalidMeasurement as fault:
                print(f"{value} {shape.name}: {fault}", file=sys.stderr)
                figures[shape.name] = None
                load.ask("disconnect")
                server.settle()
    return figures


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--values", default=",".join(map(str, VALUES)))
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=2.0)
    arguments.add_argument("--tls", action="store_true")
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    values = [int(value) for value in given.values.split(",")]
    results: dict[int, list[dict[str, float | None]]] = {value: [] for value in values}
    with tempfile.TemporaryDirectory(prefix="quotepush-bench-") as name:
        directory = Path(name)
        pair = make_pair(directory) if given.tls else None
        for _ in range(given.rounds):
            for value in values:
                figures = measure(directory, value, pair, given.seconds)
                results[value].append(figures)
                print(value, figures, file=sys.stderr)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    names = list(results[values[0]][0])
    print("".join(f"{name:>18}" for name in ("send-buffer", *names)))
    for value, rounds in results.items():
        cells = [f"{value:>18}"]
        for name in names:
            known = [each[name] for each in rounds]
            found = [figure for figure in known if figure is not None]
            merged = f" ({len(known) - len(found)} merged)" if len(found) < len(known) else ""
            cells.append(f"{f'{median(found):.2f}' if found else ''}{merged}".rjust(18))
        print("".join(cells))


if __name__ == "__main__":
    main()
