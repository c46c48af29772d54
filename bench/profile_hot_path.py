"""Shows how the time of a delivery is divided among the parts of quotepush.

    .venv/bin/python bench/profile_hot_path.py
    .venv/bin/python bench/profile_hot_path.py --bench results.json    # with the rest

A profiler would cost more than what it measures. So each part runs alone over the same data, in
bursts as large as the benchmark's (bench/run.py), and its CPU time is divided by deliveries.

    parse       hiredis parses a read of Redis
    symbol      the channel's name gives the symbol
    event       the quote is numbered and becomes an event, once for all clients
    append      the event is appended to each client's list
    gather      finding clients that have something to send, the loop over them, counters
    join        each client's events become one frame, shared by clients with the same events
    encrypt     TLS alone: SSL_write into a memory BIO and BIO_read out of it
    send        the system call, which includes the kernel's work for loopback
    rest        with --bench: what the server used in addition: the reactor, reading from Redis,
                the outlet's and Twisted's own Python
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import hiredis
from sending import send_parts

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.feed.symbol_reader import SymbolReader
from pushservice.metrics import Counters
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON, Codec
from pushservice.protocol.symbols import symbol_text
from pushservice.tls.factory import development_pair

PATTERN = "quote.*"
PAYLOAD = b'{"q":"@1000000000","bid":189.2500,"ask":189.2700,"last":189.2600,"size":1200}'.ljust(
    120
)
PARTS = ("parse", "symbol", "event", "append", "gather", "join", "encrypt", "send")


@dataclass(frozen=True)
class Case:
    """A shape of the benchmark, and how many quotes a read of Redis brings."""

    name: str
    clients: int
    symbols: int
    watched: int
    burst: int

    @property
    def deliveries(self) -> float:
        """Deliveries in one burst."""
        return self.burst * self.clients * self.watched / self.symbols


CASES = (
    Case("broadcast", 500, 1, 1, 32),
    Case("watchlist", 500, 500, 50, 200),
    Case("firehose", 100, 250, 250, 120),
    Case("steady", 500, 1, 1, 1),
    Case("steady-watchlist", 500, 500, 50, 1),
)


class DiscardingOutlet:
    """An outlet that discards everything but the latest frame."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data = data

    def post(self, pieces: list[bytes], codec: Codec, share: SharedFrames) -> None:
        self.data = share.wire_bytes(codec, pieces)
        pieces.clear()

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self, code: CloseCode) -> None: ...
    def abort(self) -> None: ...
    def progress(self) -> None: ...


class WallClock:
    """A clock for the hub."""

    seconds = staticmethod(time.time)


def cost(part: Callable[[], object], seconds: float = 0.3) -> float:
    """Mean CPU seconds of one call, over `seconds` of calls."""
    part()
    runs = 0
    began = time.process_time()
    while (used := time.process_time() - began) < seconds:
        part()
        runs += 1
    return used / runs


def symbols_of(case: Case) -> list[list[str]]:
    """The symbols that each client watches, the same in every run."""
    names = [f"S{at:04d}" for at in range(case.symbols)]
    rng = Random(1)
    return [rng.sample(names, case.watched) for _ in range(case.clients)]


def hub_with(watchers: Sequence[Sequence[str]]) -> Hub:
    """A hub with a client for each element of `watchers`; none is ever behind."""

    def failed(_outbox: Outbox, failure: Exception) -> None:
        raise failure

    hub = Hub(WallClock(), "profile", Counters(), TurnHooks(failed))
    for symbols in watchers:
        outbox = Outbox(JSON, DiscardingOutlet(), hub.common, "profile")
        hub.enter(outbox)
        for symbol in symbols:
            hub.subscribe(outbox, symbol)
    return hub


def bursts(case: Case) -> Iterator[list[str]]:
    """The symbols of one burst after another, without end."""
    at = 0
    while True:
        yield [f"S{(at + i) % case.symbols:04d}" for i in range(case.burst)]
        at += case.burst


def publish_and_flush(case: Case, hub: Hub, seconds: float = 0.6) -> tuple[float, float]:
    """CPU seconds of a burst's `publish` calls, and of the `flush` after it."""
    publishing = flushing = 0.0
    runs = 0
    clock = time.process_time
    for burst in bursts(case):
        began = clock()
        for symbol in burst:
            hub.publish(symbol, PAYLOAD)
        published = clock()
        hub.flush()
        flushing += clock() - published
        publishing += published - began
        runs += 1
        if runs == 20:  # the first runs build audiences and warm up
            publishing = flushing = 0.0
        elif publishing + flushing > seconds:
            break
    return publishing / (runs - 20), flushing / (runs - 20)


def core_parts(case: Case) -> tuple[dict[str, float], list[bytes], int]:
    """CPU microseconds of each part of a delivery up to the frames; a burst's frames and quotes."""
    channels = [b"quote." + symbol.encode() for symbol in next(bursts(case))]
    form = b"*4\r\n$8\r\npmessage\r\n$7\r\nquote.*\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
    read = b"".join(form % (len(channel), channel, len(PAYLOAD), PAYLOAD) for channel in channels)
    reader = hiredis.Reader()

    def parse() -> None:
        reader.feed(read)
        following = reader.gets
        while following() is not False:
            pass

    symbol_reader = SymbolReader([PATTERN])
    pattern = PATTERN.encode()

    def find_symbols() -> None:
        for channel in channels:
            symbol_reader.read(pattern, channel, PAYLOAD)

    watchers = symbols_of(case)
    hub = hub_with(watchers)
    publishing, flushing = publish_and_flush(case, hub)
    # One client watches all symbols: what is left is the event and one append.
    alone = hub_with([sorted({symbol for each in watchers for symbol in each})])
    event, _ = publish_and_flush(case, alone)
    # Joining alone; a list that equals the one before it is not joined again.
    pieces = {
        symbol: JSON.quote(symbol_text(symbol), 1000, 1763799999123, PAYLOAD)
        for symbol in next(bursts(case))
    }
    lists = []
    for each in watchers:
        wanted = set(each)
        lists.append([pieces[symbol] for symbol in next(bursts(case)) if symbol in wanted])
    lists = [each for each in lists if each]
    joined = [each for before, each in zip([None, *lists], lists, strict=False) if each != before]

    def join() -> None:
        frames = JSON.frames
        for each in joined:
            frames(each)

    joining = cost(join)
    parts = {
        "parse": cost(parse),
        "symbol": cost(find_symbols),
        "event": event,
        "append": max(0.0, publishing - event),
        "gather": max(0.0, flushing - joining),
        "join": joining,
    }
    parts = {name: used / case.deliveries * 1e6 for name, used in parts.items()}
    return parts, [JSON.frames(each) for each in lists], sum(map(len, lists))


# -- the table -------------------------------------------------------------------------------------


def measured(results: Path | None, case: Case, security: str) -> float | None:
    """The benchmark's microseconds for a whole delivery."""
    if results is not None:
        for summary in json.loads(results.read_text())["medians"]:
            place = summary["server"], summary["shape"], summary["security"]
            if place == ("quotepush", case.name, security) and summary["rounds"]:
                return float(summary["us_per_delivery"]["median"])
    return None


def table(rows: list[list[str]]) -> str:
    """A simple table in reStructuredText; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def main() -> None:
    """Measure and print one row for each shape, plain and TLS."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", type=Path, help="JSON of script/bench, for the rest")
    given = parser.parse_args()
    rows = [["us per delivery", *PARTS, "sum", "rest", "measured", "per frame"]]
    with tempfile.TemporaryDirectory(prefix="quotepush-bench-") as directory:
        certificate, key, _ = development_pair(Path(directory))
        usual = os.sched_getaffinity(0)
        for case in CASES:
            os.sched_setaffinity(0, {min(usual)})
            parts, frames, quotes = core_parts(case)
            os.sched_setaffinity(0, usual)
            for security, pair in (("plain", None), ("tls", (certificate, key))):
                each = parts | send_parts(frames, quotes, pair)
                total = sum(each.values())
                whole = measured(given.bench, case, security)
                row = [f"{case.name}, {'TLS' if pair else 'plain'}"]
                row += [f"{each[name]:.3f}" if name in each else "" for name in PARTS]
                row += [f"{total:.3f}"]
                row += ["", ""] if whole is None else [f"{whole - total:.3f}", f"{whole:.3f}"]
                rows.append([*row, f"{quotes / len(frames):.1f}"])
    print(table(rows))


if __name__ == "__main__":
    main()
