"""A shape of load, and the measurements that apply to every server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from load import Load
from processes import Server

#: Deliveries in flight in the closed loop, whatever the shape: 32 quotes to 500 clients on one
#: symbol. With more, every server puts more into one system call.
IN_FLIGHT = 16_000
#: Deliveries a second in the open loop.
STEADY_RATE = 50_000
#: Seconds of warm-up before each measured window.
WARM_UP = 0.5
#: Seconds of the shapes in which clients do not read.
STALLED_SECONDS = 60.0

Figures = dict[str, Any]


class InvalidMeasurement(Exception):
    """Something was lost, out of order or refused in a measurement; the text says what."""


def ask(load: Load, *words: object) -> Figures:
    """Send a command; raises InvalidMeasurement unless each quote came once, in order, where due.

    Quotes are "held" if more are in flight than can be told apart. Clients are "stale" if they did
    not get the newest quotes.
    """
    answer = load.ask(*words)
    for fault in ("gone", "stale", "lost", "misordered", "unexpected", "held", "redis_errors"):
        if answer.get(fault):
            what = "clients" if fault in {"gone", "stale"} else "quotes"
            raise InvalidMeasurement(f"{answer[fault]} {what} {fault.replace('_', ' ')}: {answer}")
    return answer


@dataclass(frozen=True)
class RunSettings:
    """Settings of every measurement in a run: the length of windows, deliveries in flight, TLS."""

    seconds: float
    in_flight: int
    tls: bool
    stalled_seconds: float = STALLED_SECONDS


@dataclass(frozen=True)
class Shape:
    """Clients, each watching `watched` of `symbols` symbols.

    `loop` is "closed" (as fast as possible with a bounded number in flight), "open" (at a steady
    rate), or "idle" (connections only, on a process of its own). Other shapes have their own class.
    """

    name: str
    title: str
    loop: str
    clients: int
    symbols: int
    watched: int

    #: The servers that it is measured on: "all", those "named" on the command line, or only "ours".
    servers: ClassVar[str] = "all"
    #: Options of quotepush; the benchmark's clients connect from one address, as fast as they can.
    options: ClassVar[tuple[str, ...]] = ("--max-per-address", "0", "--connect-rate", "0")

    @property
    def alone(self) -> bool:
        """Whether it needs a server process of its own."""
        return self.loop == "idle"

    @property
    def audience(self) -> float:
        """Clients that get a quote, on average."""
        return self.clients * self.watched / self.symbols

    def measure(self, server: Server, load: Load, settings: RunSettings) -> Figures:
        """One measurement, as figures by name."""
        if self.loop == "idle":
            return self._idle(server, load, tls=settings.tls)
        connected = self.connect(load, self.clients)
        if self.loop == "closed":
            depth = max(2, round(settings.in_flight / self.audience))
            ask(load, "closed", WARM_UP, depth, 0)
            figures = window(server, load, "closed", settings.seconds, depth, 0)
        else:
            ask(load, "open", WARM_UP, STEADY_RATE / self.audience)
            figures = window(server, load, "open", settings.seconds, STEADY_RATE / self.audience)
        load.ask("disconnect")
        server.settle()
        if connected["tls"]:
            figures["tls"] = connected["tls"]
        return figures

    def connect(self, load: Load, clients: int, *crowd: int) -> Figures:
        """Connect `clients`; `crowd` are the optional arguments of `connect` in load.c."""
        answer = load.ask("connect", clients, self.symbols, self.watched, *crowd)
        if answer["ready"] != clients:
            load.ask("disconnect")
            raise InvalidMeasurement(
                f"only {answer['ready']} of {clients} clients got in: {answer}"
            )
        return answer

    def _idle(self, server: Server, load: Load, *, tls: bool) -> Figures:
        """Connect all clients; with TLS again, with resumed sessions."""
        server.settle()
        waves = [("first", "disconnect keep" if tls else "disconnect")]
        if tls:
            waves.append(("resumed", "disconnect"))
        figures: Figures = {}
        for name, disconnect in waves:
            rss, cpu = server.rss(), server.cpu()
            answer = self.connect(load, self.clients)
            cpu = server.cpu() - cpu
            figures[f"{name}_us_per_connection"] = round(cpu / self.clients * 1e6, 1)
            figures[f"{name}_connections_per_second"] = round(self.clients / answer["seconds"])
            if name == "first":
                server.settle()
                figures["bytes_per_connection"] = (server.rss() - rss) // self.clients
            else:
                figures["resumed_share"] = answer["resumed"] / self.clients
            if answer["tls"]:
                figures["tls"] = answer["tls"]
            load.ask(disconnect)
            server.settle()
        return figures


def window(server: Server, load: Load, *words: object) -> Figures:
    """Publish quotes, and measure what the server used and how the deliveries went."""
    before, others = server.cpu(), server.others_cpu()
    answer = ask(load, *words)
    cpu, others = server.cpu() - before, server.others_cpu() - others
    delivered = answer["delivered"]
    figures = {
        "delivered": delivered,
        "cpu_seconds": round(cpu, 3),
        "per_cpu_second": round(delivered / max(cpu, 0.01)),
        "us_per_delivery": round(cpu / max(delivered, 1) * 1e6, 4),
        "wall_rate": round(delivered / answer["seconds"]),
        "server_busy": round(cpu / answer["seconds"], 3),
        "load_busy": round(answer["load_cpu"] / answer["seconds"], 3),
        "others_busy": round(max(0.0, others) / answer["seconds"], 3),
        "quotes_per_frame": round(delivered / max(answer["frames"], 1), 2),
    }
    for name in ("p50_us", "p99_us", "p999_us", "max_us"):
        figures[name] = answer[name]
    return figures


def mean(windows: list[Figures], name: str) -> float:
    """The mean of one figure over several windows."""
    return float(sum(each[name] for each in windows)) / len(windows)
