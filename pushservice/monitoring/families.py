"""Every Prometheus metric, declared once: its name, kind, meaning, labels, and where it is read.

Must not know: the text format, HTTP, or how anything is counted. Data only: docs/metrics.rst and
/metrics are both made of it.

What is read are figures, as JSON: `totals.figures` says which there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What can be done with a metric's values."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Each:
    """A list in the figures: a metric has a series for each entry, with a label from its `key`."""

    path: str
    label: str
    key: str
    help: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Where a value is, names joined with dots; None there, or nothing, is no series.

    `labels` are its own; it is divided by `per`.
    """

    path: str
    labels: tuple[tuple[str, str], ...] = ()
    per: float = 1


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `name` is without _total, _info and the like, and ends with its `unit`."""

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]
    unit: str = ""
    each: Each | None = None

    @property
    def shown_name(self) -> str:
        """As it is written in queries; that of a histogram has suffixes there."""
        suffixes = {Kind.COUNTER: "_total", Kind.INFO: "_info"}
        return self.name + suffixes.get(self.kind, "")

    @property
    def labels(self) -> dict[str, list[str]]:
        """Its labels, each with the values that it may have; none where these are not known."""
        found: dict[str, list[str]] = {} if self.each is None else {self.each.label: []}
        for sample in self.samples:
            for label, value in sample.labels:
                found.setdefault(label, []).append(value)
        return found


WORKER: Final = Each("slots", "worker", "number", "the worker's number; 0 without workers")
CERTIFICATE: Final = Each("certificates", "file", "file", "the file of a certificate")

_ALL: Final = "totals."


def _counter(name: str, help: str, path: str, unit: str = "") -> Family:
    return Family(f"quotepush_{name}", Kind.COUNTER, help, (Sample(_ALL + path),), unit)


def _gauge(name: str, help: str, path: str, unit: str = "", per: float = 1) -> Family:
    sample = Sample(_ALL + path, per=per)
    return Family(f"quotepush_{name}", Kind.GAUGE, help, (sample,), unit)


def _of_worker(name: str, kind: Kind, help: str, path: str, unit: str = "") -> Family:
    return Family(f"quotepush_{name}", kind, help, (Sample(path),), unit, WORKER)


def _by(
    label: str,
    name: str,
    help: str,
    paths: dict[str, str],
    kind: Kind = Kind.COUNTER,
    unit: str = "",
) -> Family:
    """`paths` has for each value of `label` where it is in the totals."""
    samples = tuple(Sample(_ALL + path, ((label, value),)) for value, path in paths.items())
    return Family(f"quotepush_{name}", kind, help, samples, unit)


def _of_worker_by(
    label: str, name: str, help: str, paths: dict[str, str], kind: Kind = Kind.GAUGE
) -> Family:
    samples = tuple(Sample(path, ((label, value),)) for value, path in paths.items())
    return Family(f"quotepush_{name}", kind, help, samples, "", WORKER)


def _histogram(name: str, help: str, unit: str = "") -> Family:
    sample = Sample(f"{_ALL}measures.{name}")
    return Family(f"quotepush_{name}", Kind.HISTOGRAM, help, (sample,), unit)


_COLLECTIONS: Final = {str(generation): f"process.gc.{generation}" for generation in range(3)}

#: All of them by what they are about.
FAMILIES: Final[dict[str, tuple[Family, ...]]] = {
    "Clients": (
        _of_worker_by(
            "state",
            "clients",
            "Clients that are connected: flowing, or behind as they take less than is sent",
            {"flowing": "flowing", "behind": "behind"},
        ),
        _gauge(
            "connections",
            "TCP connections to the public ports, with handshakes, pages and closes",
            "connections",
        ),
        _by(
            "event",
            "connection_events",
            "TCP connections that came, went, or were refused for a limit",
            {
                "accepted": "counters.connections_accepted",
                "closed": "counters.connections_closed",
                "refused": "counters.connections_refused",
            },
        ),
        _by(
            "outcome",
            "handshakes",
            "WebSocket handshakes: accepted, refused with an HTTP status, or aborted as they took"
            " too long or there were too many",
            {
                "accepted": "counters.handshakes",
                "refused": "counters.handshakes_refused",
                "aborted": "counters.aborted_handshakes",
            },
        ),
        _by(
            "reason",
            "refusals",
            "Who was not let in: from a web page of a foreign origin, or with a token that is"
            " refused, in the handshake or after it",
            {"origin": "counters.origins_refused", "token": "counters.auth_failures"},
        ),
        _by(
            "reason",
            "closes",
            "Connections that the daemon ended: flooding, too_slow (4008), stalled (behind, took"
            " nothing), silent (no sign of life), unauthenticated (came without a token for too"
            " long), token_ended (over or revoked), fault (of the daemon)",
            {
                "flooding": "counters.closed_flooding",
                "too_slow": "counters.closed_too_slow",
                "stalled": "counters.aborted_stalled",
                "silent": "counters.aborted_silent",
                "unauthenticated": "counters.auth_too_late",
                "token_ended": "counters.shut_out",
                "fault": "counters.client_failures",
            },
        ),
        _counter("commands", "Messages from clients that were looked at", "counters.commands"),
        _counter(
            "command_errors", "Errors that clients were answered with", "counters.command_errors"
        ),
        _counter(
            "messages_refused",
            "Messages from clients that send too many",
            "counters.messages_refused",
        ),
        _counter("page_requests", "Requests for the public page", "counters.page_requests"),
    ),
    "Subscriptions and symbols": (
        _gauge("subscriptions", "Subscriptions of all clients", "subscriptions"),
        _gauge(
            "symbols",
            "Symbols that are known, watched or quoted; of the worker that knows most",
            "symbols",
        ),
    ),
    "Quotes": (
        _of_worker(
            "quotes_in",
            Kind.COUNTER,
            "Messages that came from Redis. Each worker reads all of them: not to be summed",
            "counters.quotes_in",
        ),
        _of_worker_by(
            "reason",
            "dropped",
            "Those among them that no client can get: without a symbol, or for lack of room for one"
            " more",
            {"no_symbol": "counters.symbols_missing", "no_room": "counters.symbols_dropped"},
            Kind.COUNTER,
        ),
        _of_worker(
            "payloads_not_json",
            Kind.COUNTER,
            "Those that clients of the worker watch whose payload is no JSON, and went out as a"
            " string; once more for each delay at which they watch",
            "counters.payloads_not_json",
        ),
        _counter(
            "snapshots_learnt",
            "Last values that came from the hash of snapshots",
            "counters.snapshots_learnt",
        ),
        _counter("events_sent", "Quotes that were sent to clients", "counters.events_out"),
        _counter("frames_sent", "WebSocket frames that carried them", "counters.frames_out"),
        _counter("sent_bytes", "Bytes of these frames, before TLS", "counters.bytes_out", "bytes"),
        _counter(
            "merged",
            "Quotes that clients did not get, as newer ones of the symbol took their place",
            "counters.merged",
        ),
        _counter(
            "compressed",
            "Quotes that were compressed, each once for all clients that share it",
            "counters.deflated_events",
        ),
        _by(
            "side",
            "compression_bytes",
            "Their bytes before compression, and what was sent in place of them; once each, too",
            {"before": "counters.deflated_bytes_in", "after": "counters.deflated_bytes_out"},
            unit="bytes",
        ),
        _by(
            "outcome",
            "demo_quotes",
            "Quotes of the simulated market",
            {"published": "counters.demo_published", "failed": "counters.demo_failed"},
        ),
    ),
    "Time": (
        _histogram(
            "receive_to_write_seconds",
            "From the beginning of a read of Redis until all of it was written to all clients but"
            " paced ones and those behind; counted once for each quote sent",
            "seconds",
        ),
        _histogram(
            "publish_to_write_seconds",
            "The same from when a quote was published, by its payload's ts; of the first quote of"
            " a read",
            "seconds",
        ),
        _histogram(
            "feed_lag_seconds",
            "From when a quote was published, by its payload's ts, until it was received; of the"
            " first quote of a read",
            "seconds",
        ),
        _histogram(
            "turn_seconds",
            "For how long a turn kept the reactor from all else: a read of Redis with all that is"
            " sent for it, a group of paced clients, a turn of a delay",
            "seconds",
        ),
        _histogram("turn_quotes", "Quotes that a read of Redis brought"),
        _histogram("turn_events", "Quotes that a turn sent to all its clients together"),
        _histogram(
            "reactor_delay_seconds",
            "By how much a call of the reactor came too late, ten times a second",
            "seconds",
        ),
    ),
    "Redis": (
        _of_worker(
            "feed_up",
            Kind.GAUGE,
            "1 where all that is to be listened to is, 0 where a link is down",
            "feed_up",
        ),
        _gauge(
            "feed_age_seconds",
            "Since the last message of the feed; of the worker that got it last",
            "age",
            "seconds",
            per=1000,
        ),
        _by(
            "event",
            "feed_links",
            "Links to Redis that came up, or were lost",
            {"connected": "counters.feed_connects", "lost": "counters.feed_losses"},
        ),
        _gauge(
            "registry_lag_seconds",
            "Since the oldest change that the registry in Redis may not have; of the worker that is"
            " latest",
            "registry_lag",
            "seconds",
        ),
        _counter("registry_writes", "Writes to the registry", "counters.registry_writes"),
        _counter("registry_failures", "Writes to it that failed", "counters.registry_failures"),
    ),
    "Delays": (
        _gauge("tape_bytes", "What the tape of delayed quotes uses", "tape.used", "bytes"),
        _counter(
            "tape_dropped_bytes",
            "What it has dropped for lack of room, and delayed clients miss",
            "tape.dropped",
            "bytes",
        ),
    ),
    "Processes": (
        Family(
            "quotepush_ready",
            Kind.GAUGE,
            "1 where clients should be sent here, 0 where /ready says why not",
            (Sample("ready"),),
        ),
        _of_worker_by(
            "state",
            "worker_state",
            "Processes of a worker's slot: two while one takes over from another",
            {state: f"states.{state}" for state in ("starting", "serving", "draining")},
        ),
        _of_worker(
            "worker_restarts",
            Kind.COUNTER,
            "Workers that ended by themselves, and were started again",
            "restarts",
        ),
        _of_worker(
            "process_cpu_seconds",
            Kind.COUNTER,
            "CPU that was used, in user and system mode",
            "process.cpu",
            "seconds",
        ),
        _of_worker(
            "process_resident_memory_bytes",
            Kind.GAUGE,
            "Memory that is resident",
            "process.memory",
            "bytes",
        ),
        _of_worker("process_open_files", Kind.GAUGE, "Open file descriptors", "process.files"),
        _of_worker(
            "process_start_time_seconds",
            Kind.GAUGE,
            "When the process started, in seconds since 1970",
            "process.started",
            "seconds",
        ),
        _by(
            "generation",
            "gc_collections",
            "Collections of garbage by Python, in processes that serve",
            {label: f"{path}.collections" for label, path in _COLLECTIONS.items()},
        ),
        _by(
            "generation",
            "gc_seconds",
            "The time they took",
            {label: f"{path}.seconds" for label, path in _COLLECTIONS.items()},
            unit="seconds",
        ),
        Family(
            "quotepush_certificate_days_left",
            Kind.GAUGE,
            "Whole days until a certificate ends; negative once it has",
            (Sample("days"),),
            "",
            CERTIFICATE,
        ),
        Family("quotepush_build", Kind.INFO, "The version", (Sample("version"),)),
    ),
}


def all_families() -> list[Family]:
    """Every family, in order."""
    return [family for families in FAMILIES.values() for family in families]
