"""Shapes with clients that do not get every quote: stalled, slow and paced clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from load import Load
from processes import Server, send_queues
from shape import WARM_UP, Figures, InvalidMeasurement, RunSettings, Shape, ask, mean, window

#: Quotes a second.
RATE = 2_000
#: Seconds in which the buffers of clients that do not read fill.
FILLING = 5.0


class Memory:
    """Samples of a server's resident bytes, once a second."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = threading.Event()
        self.samples: list[int] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take samples during the context."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        while True:
            self.samples.append(self._server.rss())
            if self._ended.wait(1.0):
                return


@dataclass(frozen=True)
class Stalled(Shape):
    """Of all clients, `stalled` stop reading once subscribed, and `slow` read 1 KiB a second.

    Both watch `theirs` symbols, more than the others, so that the kernel's buffers fill soon.
    Measured are the deliveries to the other clients, compared with those without stalled and slow
    ones, half of the time before and half after; whether memory grows; and how soon stalled and
    slow clients are current once they read again.
    """

    stalled: int
    slow: int
    theirs: int

    servers: ClassVar[str] = "named"
    options: ClassVar[tuple[str, ...]] = (
        *Shape.options,
        *("--stall-timeout", "300", "--ping-interval", "0"),
    )

    @property
    def alone(self) -> bool:
        return True

    def measure(self, server: Server, load: Load, settings: RunSettings) -> Figures:
        seconds = max(1.0, settings.stalled_seconds - FILLING)
        impaired = self.stalled + self.slow
        references = [self._reference(server, load, seconds / 2)]
        connected = self.connect(load, self.clients, self.stalled, self.slow, self.theirs, 0, 0)
        server.settle()
        memory = Memory(server)
        with memory.watched():
            filling = window(server, load, "open", FILLING, RATE)
            filled = server.rss()
            figures = window(server, load, "open", seconds, RATE)
        queued = sorted(send_queues(server.port))[-impaired:]
        settled = ask(load, "settle")
        load.ask("disconnect")
        server.settle()
        references.append(self._reference(server, load, seconds / 2))
        first, last = memory.samples[0], memory.samples[-1]
        figures |= {
            "grown_kib": (last - first) // 1024,
            "grown_later_kib": (last - filled) // 1024,
            "rss_kib": [sample // 1024 for sample in memory.samples],
            "filling_p99_us": filling["p99_us"],
            "reference_busy": round(mean(references, "server_busy"), 3),
            "reference_others_busy": round(mean(references, "others_busy"), 3),
            "p99_ratio": round(figures["p99_us"] / mean(references, "p99_us"), 3),
            "queued_kib": round(sum(queued) / impaired / 1024, 1),
            "swallowed_kib": round(settled["swallowed"] / 1024, 1),
            "merged": settled["merged"],
            "caught_up": settled["caught_up"],
            "frames_to_current": settled["most_frames"],
            "current_seconds": round(settled["seconds"], 3),
        }
        for name in ("p50_us", "p99_us", "p999_us"):
            figures[f"reference_{name}"] = round(mean(references, name), 1)
        if connected["tls"]:
            figures["tls"] = connected["tls"]
        return figures

    def _reference(self, server: Server, load: Load, seconds: float) -> Figures:
        """Measure without stalled and slow clients."""
        self.connect(load, self.clients - self.stalled - self.slow)
        ask(load, "open", WARM_UP, RATE)
        figures = window(server, load, "open", seconds, RATE)
        load.ask("disconnect")
        server.settle()
        return figures


@dataclass(frozen=True)
class Paced(Shape):
    """Clients that get a symbol once in `interval` milliseconds, and the same ones unpaced."""

    interval: int

    servers: ClassVar[str] = "ours"

    @property
    def alone(self) -> bool:
        return True

    def measure(self, server: Server, load: Load, settings: RunSettings) -> Figures:
        connected = self.connect(load, self.clients)
        ask(load, "open", WARM_UP, RATE)
        unpaced = window(server, load, "open", settings.seconds, RATE)
        load.ask("disconnect")
        server.settle()
        self.connect(load, self.clients, 0, 0, 0, self.interval, 0)
        ask(load, "open", WARM_UP, RATE)
        figures = window(server, load, "open", settings.seconds, RATE)
        settled = ask(load, "settle")
        load.ask("disconnect")
        server.settle()
        each = figures["delivered"] / (self.clients * self.watched)
        # The window may contain one update more than intervals.
        if each > settings.seconds * 1000 / self.interval + 1:
            raise InvalidMeasurement(
                f"{each:.2f} updates of a symbol in {settings.seconds:g} s: {figures}"
            )
        figures |= {
            "updates_per_second": round(each / settings.seconds, 3),
            "unpaced_busy": unpaced["server_busy"],
            "unpaced_rate": unpaced["wall_rate"],
            "unpaced_p50_us": unpaced["p50_us"],
            "unpaced_p99_us": unpaced["p99_us"],
            "cpu_ratio": round(figures["server_busy"] / max(unpaced["server_busy"], 0.001), 3),
            "settled_ms": round(settled["seconds"] * 1000, 1),
        }
        if connected["tls"]:
            figures["tls"] = connected["tls"]
        return figures
