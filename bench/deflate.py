"""What compression costs and saves: the same turns to the same clients, compressed and plain.

    .venv/bin/python bench/deflate.py [--least 1] [--seconds 1.5]

For each shape, a hub whose clients negotiated compression and one whose clients did not alternate
over the same connections; another process, on another core, reads and discards. Quotes are those of
the simulated market, under the symbols of the shape. Shown are microseconds of CPU for a delivery,
from the publish into the kernel, and its bytes on the wire before TLS; medians of many pairs of
turns. `--least` is the number of clients from which everything is compressed, instead of the
daemon's own. Takes about a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from cryptography.hazmat.bindings._rust import _openssl
from OpenSSL import SSL
from sending import drained, send_all

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pushservice.fanout import _fanout
from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.market.simulator import Market
from pushservice.metrics import Counters
from pushservice.protocol import deflate
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON, JSON_SUBPROTOCOL, Codec
from pushservice.protocol.symbols import symbol_text
from pushservice.tls.factory import development_pair

CLIENTS = 500
EVENTS = 4000


@dataclass(frozen=True)
class Case:
    """A shape: each client watches `watched` of `symbols`; a turn has `burst` quotes."""

    name: str
    symbols: int
    watched: int
    burst: int

    @property
    def audience(self) -> int:
        """Clients that get a quote, on average."""
        return CLIENTS * self.watched // self.symbols


CASES = (
    Case("broadcast, full turns", 1, 1, 32),
    Case("broadcast, one quote a turn", 1, 1, 1),
    Case("watchlist of 8, full turns", 500, 8, 320),
    Case("watchlist of 16, full turns", 500, 16, 320),
    Case("watchlist of 32, full turns", 500, 32, 320),
    Case("watchlist of 50, full turns", 500, 50, 320),
    Case("watchlist of 100, full turns", 500, 100, 160),
    Case("watchlist of 8, one quote a turn", 500, 8, 1),
    Case("watchlist of 50, one quote a turn", 500, 50, 1),
)


class WallClock:
    """A clock for the hub."""

    seconds = staticmethod(time.time)


class BatchedOutlet:
    """An outlet whose turn is sent together with those of all other clients."""

    def __init__(self, clients: Clients, way: tuple[int, ...]) -> None:
        self._clients = clients
        self._way = way

    def post(self, pieces: list[bytes], codec: Codec, share: SharedFrames) -> None:
        self._clients.ways.append((*self._way, codec.joins))
        self._clients.turns.append(pieces)

    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self, code: CloseCode) -> None: ...
    def abort(self) -> None: ...
    def progress(self) -> None: ...


class Clients:
    """A hub whose clients use one codec, on given connections."""

    def __init__(
        self, codec: Codec, case: Case, connections: list[tuple[Any, Any]], counters: Counters
    ) -> None:
        self.ways: list[tuple[int, ...]] = []
        self.turns: list[list[bytes]] = []
        self._connections = connections
        self._secure = connections[0][1] is not None
        self.hub = Hub(WallClock(), "k", counters, TurnHooks(self._failed, self._end_of_turn))
        self.bytes = self.deliveries = 0
        names = [f"S{at:04d}" for at in range(case.symbols)]
        rng = Random(1)
        for number, (connection, secure) in enumerate(connections):
            way: tuple[int, ...] = (connection.fileno(),)
            if secure is not None:
                way = (_address(secure._ssl), _address(secure._from_ssl), *way)
            outbox = Outbox(codec, BatchedOutlet(self, way), self.hub.common, f"k-{number}")
            self.hub.enter(outbox)
            for name in rng.sample(names, case.watched):
                self.hub.subscribe(outbox, name)

    def turn(self, quotes: list[tuple[str, bytes]]) -> float:
        """Publish quotes and send them; returns microseconds of CPU per delivery."""
        self.bytes = self.deliveries = 0
        began = time.process_time()
        for symbol, payload in quotes:
            self.hub.publish(symbol, payload)
        self.hub.flush()
        return (time.process_time() - began) / max(1, self.deliveries) * 1e6

    def _end_of_turn(self, share: SharedFrames) -> None:
        send = _fanout.send_tls if self._secure else _fanout.send_plain
        _, self.deliveries, self.bytes, unsent = send(self.ways, self.turns)
        self.ways, self.turns = [], []
        for at, rest, *plain in unsent or ():
            assert not any(plain)
            send_all(self._connections[at][0], rest)

    @staticmethod
    def _failed(_outbox: Outbox, failure: Exception) -> None:
        raise failure


def _address(pointer: Any) -> int:
    return int(_openssl.ffi.cast("uintptr_t", pointer))


def market_summary() -> str:
    """How the market's events compress, each by itself."""
    counters = Counters()
    quote = deflate.codecs(counters, 1)[JSON_SUBPROTOCOL].quoting(1)
    quotes = [(symbol_text(symbol), body) for symbol, body in islice(market(), EVENTS)]
    times = []
    for _ in range(5):
        began = time.process_time()
        for number, (symbol, body) in enumerate(quotes):
            quote(symbol, number, 1_763_799_999_000 + number, body)
        times.append((time.process_time() - began) / EVENTS * 1e6)
    before = counters.deflated_bytes_in / counters.deflated_events + len(",")
    # Between two events is a stored block's LEN, NLEN and comma.
    after = counters.deflated_bytes_out / counters.deflated_events + 5
    return f"the market's events: {before:.0f} bytes, {after:.0f} compressed, {min(times):.1f} us"


def market() -> Iterator[tuple[str, bytes]]:
    """The simulated market's quotes."""
    made = Market(seed=1)
    return (made.tick(1_763_799_999_000 + 7 * number) for number in range(10**9))


def measure(case: Case, connections: list[tuple[Any, Any]], least: int, seconds: float) -> str:
    """One line of the table."""
    codec = deflate.codecs(Counters(), least)[JSON_SUBPROTOCOL]
    pair = [Clients(each, case, connections, Counters()) for each in (JSON, codec)]
    rng = Random(2)
    payloads = cycle([payload for _, payload in islice(market(), EVENTS)])
    cost: list[list[float]] = [[], []]
    size: list[list[float]] = [[], []]
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(cost[1]) < 10:
        symbols = [f"S{rng.randrange(case.symbols):04d}" for _ in range(case.burst)]
        quotes = list(zip(symbols, payloads, strict=False))
        # The order alternates.
        for at in (0, 1) if len(cost[0]) % 2 else (1, 0):
            cost[at].append(pair[at].turn(quotes))
            size[at].append(pair[at].bytes / max(1, pair[at].deliveries))
            # Gives the reader time, which is not measured.
            time.sleep(0.004)
    (plain, ours), (bytes_plain, bytes_ours) = (map(median, each) for each in (cost, size))
    return (
        f"{case.name:36}{case.audience:5}{plain:9.3f}{ours:9.3f}{ours / plain:7.2f}"
        f"{bytes_plain:9.1f}{bytes_ours:9.1f}{bytes_ours / bytes_plain:7.2f}"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--least", type=int, default=deflate.ALWAYS)
    arguments.add_argument("--seconds", type=float, default=1.5)
    given = arguments.parse_args()
    print(market_summary())
    functions = (_openssl.ffi.addressof(_openssl.lib, name) for name in ("SSL_write", "BIO_read"))
    _fanout.use_openssl(*map(_address, functions))
    with ExitStack() as stack:
        made = development_pair(
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quotepush-bench-")))
        )
        for title, secure in (("plain", False), ("TLS", True)):
            context = None
            if secure:
                context = SSL.Context(SSL.TLS_SERVER_METHOD)
                context.use_certificate_file(str(made.certificate))
                context.use_privatekey_file(str(made.key))
            print(f"{title:36} each       us  deflat.  ratio    bytes  deflat.  ratio")
            with drained(CLIENTS, context) as connections:
                for case in CASES:
                    print(measure(case, connections, given.least, given.seconds), flush=True)


if __name__ == "__main__":
    main()
