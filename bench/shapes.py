"""The shapes of load that are measured, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from load import Load
from processes import Server

#: Deliveries that may be on their way at a time in the closed loop, whatever the shape: 32 quotes
#: to 500 clients on one symbol. More lets every server put more into one system call.
IN_FLIGHT = 16_000
#: Deliveries a second in the open loop.
STEADY_RATE = 50_000
#: Seconds before each measured window, in which code and buffers get warm.
WARM_UP = 0.5
#: Quotes that fill what the kernel keeps for a client that does not read (about 3 MB on loopback).
STALLING_QUOTES = 30_000


class Unsound(Exception):
    """A measurement in which something was lost, out of order, or refused; the text says what."""


def _ask(load: Load, *words: object) -> dict[str, Any]:
    """Have quotes published; raises Unsound unless each came once, in order, and to whom it should.

    Quotes are "held" when so many are on their way that no more can be told apart.
    """
    answer = load.ask(*words)
    for fault in ("gone", "lost", "misordered", "unexpected", "held", "redis_errors"):
        if answer[fault]:
            what = "clients" if fault == "gone" else "quotes"
            raise Unsound(f"{answer[fault]} {what} {fault.replace('_', ' ')}: {answer}")
    return answer


@dataclass(frozen=True)
class Terms:
    """What holds for every measurement of a run: the length of its window, and the load's depth."""

    seconds: float
    in_flight: int
    tls: bool


@dataclass(frozen=True)
class Shape:
    """Clients, each watching `watched` of `symbols` symbols; `stalled` of them do not read.

    `loop` is "closed" (as fast as it goes, a bounded number in flight), "open" (at a steady rate),
    or "idle" (connections alone, on a process of its own).
    """

    name: str
    title: str
    loop: str
    clients: int
    symbols: int
    watched: int
    stalled: int = 0

    @property
    def audience(self) -> float:
        """Clients that read and get a quote, on average."""
        return (self.clients - self.stalled) * self.watched / self.symbols

    def measure(self, server: Server, load: Load, terms: Terms) -> dict[str, Any]:
        """One measurement, as figures by name."""
        if self.loop == "idle":
            return self._idle(server, load, terms.tls)
        connected = self._connect(load)
        rss = server.rss()
        if self.loop == "closed":
            depth = max(2, round(terms.in_flight / self.audience))
            _ask(load, "closed", WARM_UP, depth, STALLING_QUOTES if self.stalled else 0)
            before, others = server.cpu(), server.others_cpu()
            answer = _ask(load, "closed", terms.seconds, depth, 0)
        else:
            _ask(load, "open", WARM_UP, STEADY_RATE / self.audience)
            before, others = server.cpu(), server.others_cpu()
            answer = _ask(load, "open", terms.seconds, STEADY_RATE / self.audience)
        cpu, others = server.cpu() - before, server.others_cpu() - others
        grown = server.rss() - rss
        load.ask("disconnect")
        server.settle()
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
        if connected["tls"]:
            figures["tls"] = connected["tls"]
        if self.stalled:
            figures["grown_kib"] = grown // 1024
        for name in ("p50_us", "p99_us", "p999_us", "max_us"):
            figures[name] = answer[name]
        return figures

    def _connect(self, load: Load) -> dict[str, Any]:
        answer = load.ask("connect", self.clients, self.symbols, self.watched, self.stalled)
        if answer["ready"] != self.clients:
            load.ask("disconnect")
            raise Unsound(f"only {answer['ready']} of {self.clients} clients got in: {answer}")
        return answer

    def _idle(self, server: Server, load: Load, tls: bool) -> dict[str, Any]:
        """A first wave of connections; over TLS a second and a third, the latter resumed."""
        server.settle()
        waves = [("first", "disconnect keep" if tls else "disconnect")]
        if tls:
            waves.append(("resumed", "disconnect"))
        figures: dict[str, Any] = {}
        for name, farewell in waves:
            rss, cpu = server.rss(), server.cpu()
            answer = self._connect(load)
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


SHAPES = (
    Shape("broadcast", "500 clients on one symbol", "closed", 500, 1, 1),
    Shape("watchlist", "500 clients, each 50 of 500 symbols", "closed", 500, 500, 50),
    Shape("firehose", "100 clients on 250 symbols", "closed", 100, 250, 250),
    Shape("idle", "5,000 clients, no quotes", "idle", 5000, 500, 1),
    Shape("steady", "50,000 deliveries a second, 500 clients on one symbol", "open", 500, 1, 1),
    Shape("steady-watchlist", "50,000 a second, each 50 of 500 symbols", "open", 500, 500, 50),
    Shape(
        "stalled", "50 clients on 250 symbols, 10 of them not reading", "closed", 50, 250, 250, 10
    ),
)
