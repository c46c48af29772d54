"""What a shape of load is, and the measurements that suit every server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from load import Load
from processes import Server

#: Deliveries that may be on their way at a time in the closed loop, whatever the shape: 32 quotes
#: to 500 clients on one symbol. More lets every server put more into one system call.
IN_FLIGHT = 16_000
#: Deliveries a second in the open loop.
STEADY_RATE = 50_000
#: Seconds before each measured window, in which code and buffers get warm.
WARM_UP = 0.5
#: Seconds of the shapes in which clients do not read.
STALLED_SECONDS = 60.0

Figures = dict[str, Any]


class Unsound(Exception):
    """A measurement in which something was lost, out of order, or refused; the text says what."""


def ask(load: Load, *words: object) -> Figures:
    """Have quotes published; raises Unsound unless each came once, in order, and to whom it should.

    Quotes are "held" when so many are on their way that no more can be told apart. Clients are
    "stale" that did not get the newest quotes.
    """
    answer = load.ask(*words)
    for fault in ("gone", "stale", "lost", "misordered", "unexpected", "held", "redis_errors"):
        if answer.get(fault):
            what = "clients" if fault in {"gone", "stale"} else "quotes"
            raise Unsound(f"{answer[fault]} {what} {fault.replace('_', ' ')}: {answer}")
    return answer


@dataclass(frozen=True)
class Terms:
    """What holds for every measurement of a run: the length of its windows, the load's depth."""

    seconds: float
    in_flight: int
    tls: bool
    stalled_seconds: float = STALLED_SECONDS


@dataclass(frozen=True)
class Shape:
    """Clients, each watching `watched` of `symbols` symbols.

    `loop` is "closed" (as fast as it goes, a bounded number in flight), "open" (at a steady rate),
    or "idle" (connections alone, on a process of its own). Other shapes are classes of their own.
    """

    name: str
    title: str
    loop: str
    clients: int
    symbols: int
    watched: int

    #: Whether it is measured on: "all" servers, those that are "named" on the command line, or
    #: "ours" alone.
    servers: ClassVar[str] = "all"
    #: Options of quotepush; the benchmark's clients come from one address, as fast as they can.
    options: ClassVar[tuple[str, ...]] = ("--max-per-address", "0", "--connect-rate", "0")

    @property
    def alone(self) -> bool:
        """Whether it gets a server process of its own."""
        return self.loop == "idle"

    @property
    def audience(self) -> float:
        """Clients that get a quote, on average."""
        return self.clients * self.watched / self.symbols

    def measure(self, server: Server, load: Load, terms: Terms) -> Figures:
        """One measurement, as figures by name."""
        if self.loop == "idle":
            return self._idle(server, load, tls=terms.tls)
        connected = self.connect(load, self.clients)
        if self.loop == "closed":
            depth = max(2, round(terms.in_flight / self.audience))
            ask(load, "closed", WARM_UP, depth, 0)
            figures = window(server, load, "closed", terms.seconds, depth, 0)
        else:
            ask(load, "open", WARM_UP, STEADY_RATE / self.audience)
            figures = window(server, load, "open", terms.seconds, STEADY_RATE / self.audience)
        load.ask("disconnect")
        server.settle()
        if connected["tls"]:
            figures["tls"] = connected["tls"]
        return figures

    def connect(self, load: Load, clients: int, *crowd: int) -> Figures:
        """Connect `clients`; see load.c for what may follow `watched`."""
        answer = load.ask("connect", clients, self.symbols, self.watched, *crowd)
        if answer["ready"] != clients:
            load.ask("disconnect")
            raise Unsound(f"only {answer['ready']} of {clients} clients got in: {answer}")
        return answer

    def _idle(self, server: Server, load: Load, *, tls: bool) -> Figures:
        """A first wave of connections; over TLS a second and a third, the latter resumed."""
        server.settle()
        waves = [("first", "disconnect keep" if tls else "disconnect")]
        if tls:
            waves.append(("resumed", "disconnect"))
        figures: Figures = {}
        for name, farewell in waves:
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
            load.ask(farewell)
            server.settle()
        return figures


def window(server: Server, load: Load, *words: object) -> Figures:
    """Have quotes published, and see what the server and the deliveries took meanwhile."""
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
