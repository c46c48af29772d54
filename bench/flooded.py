"""The shape in which one client floods the server while others are served."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from load import Load
from processes import LOAD_CORE, Server, pinned, stop
from shape import STEADY_RATE, WARM_UP, Figures, RunSettings, Shape, ask, mean, window

PROGRAM = Path(__file__).with_name("flood.py")
#: The floods, as flood.py names them.
KINDS = ("connects", "subscribes", "pings", "fragments", "texts")
#: The figures that are kept of each window.
KEPT = ("p50_us", "p99_us", "p999_us", "max_us", "server_busy", "load_busy", "others_busy")
#: Seconds by which a flood begins before its window and ends after it.
LEAD = 0.3


class Flooder:
    """The running flooder: one flood at a time."""

    def __init__(self, port: int, *, tls: bool) -> None:
        command = [sys.executable, str(PROGRAM), str(port), "tls" if tls else "plain"]
        with pinned(LOAD_CORE):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

    @contextmanager
    def flooding(self, kind: str, seconds: float) -> Iterator[Figures]:
        """Flood during the context, for at most `seconds`; the counts are filled in at its end."""
        assert self._process.stdin is not None, "opened as a pipe"
        assert self._process.stdout is not None, "opened as a pipe"
        self._process.stdin.write(f"{kind} {seconds + 2 * LEAD}\n")
        self._process.stdin.flush()
        time.sleep(LEAD)
        counts: Figures = {}
        yield counts
        counts |= json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        stop(self._process)


@dataclass(frozen=True)
class Flooded(Shape):
    """Clients at a steady rate while one from another address floods, for a window with each flood.

    Each flood is compared with the windows without one before and after it. The other clients have
    an address each, so that the server's default limits per address apply.
    """

    servers: ClassVar[str] = "ours"
    options: ClassVar[tuple[str, ...]] = ()

    @property
    def alone(self) -> bool:
        return True

    def measure(self, server: Server, load: Load, settings: RunSettings) -> Figures:
        rate = STEADY_RATE / self.audience
        connected = self.connect(load, self.clients, 0, 0, 0, 0, 1)
        ask(load, "open", WARM_UP, rate)
        flooder = Flooder(server.port, tls=settings.tls)
        try:
            windows = [window(server, load, "open", settings.seconds, rate)]
            all_counts = []
            for kind in KINDS:
                with flooder.flooding(kind, settings.seconds) as counts:
                    windows.append(window(server, load, "open", settings.seconds, rate))
                all_counts.append(counts)
                server.settle()
                windows.append(window(server, load, "open", settings.seconds, rate))
        finally:
            flooder.close()
        load.ask("disconnect")
        server.settle()
        figures: Figures = {"tls": connected["tls"]} if connected["tls"] else {}
        quiet = windows[::2]
        for name in KEPT:
            figures[f"quiet_{name}"] = round(mean(quiet, name), 3)
        for at, (kind, counts) in enumerate(zip(KINDS, all_counts, strict=True)):
            before, flooded, after = windows[2 * at : 2 * at + 3]
            for name in KEPT:
                figures[f"{kind}_{name}"] = flooded[name]
            figures[f"{kind}_p99_ratio"] = round(
                flooded["p99_us"] / mean([before, after], "p99_us"), 3
            )
            figures[f"{kind}_more_busy"] = round(
                flooded["server_busy"] - mean([before, after], "server_busy"), 3
            )
            figures[f"{kind}_per_second"] = round(counts["sent"] / counts["seconds"])
            for name in ("connects", "closed", "refused"):
                figures[f"{kind}_{name}"] = counts[name]
        figures["worst_p99_ratio"] = max(figures[f"{kind}_p99_ratio"] for kind in KINDS)
        return figures
