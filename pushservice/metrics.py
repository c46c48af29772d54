"""Plain counters of what the daemon has done, and a sink that counts nothing.

Must not know: how they are shown, or who reads them. Counters only grow, are plain integers, and
are added to once a turn or once an event, never once per quote and client.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """Totals since the process started; every field is a count unless its name says bytes."""

    connections_accepted: int = 0
    connections_refused: int = 0
    connections_closed: int = 0
    handshakes: int = 0
    handshakes_refused: int = 0
    page_requests: int = 0
    commands: int = 0
    command_errors: int = 0
    quotes_in: int = 0
    payloads_not_json: int = 0
    symbols_missing: int = 0
    events_out: int = 0
    frames_out: int = 0
    bytes_out: int = 0
    deflated_events: int = 0
    deflated_bytes_in: int = 0
    deflated_bytes_out: int = 0
    merged: int = 0
    symbols_dropped: int = 0
    messages_refused: int = 0
    closed_flooding: int = 0
    closed_too_slow: int = 0
    aborted_stalled: int = 0
    aborted_silent: int = 0
    aborted_handshakes: int = 0
    registry_writes: int = 0
    registry_failures: int = 0
    snapshots_learnt: int = 0
    feed_connects: int = 0
    feed_losses: int = 0
    origins_refused: int = 0
    auth_failures: int = 0
    auth_too_late: int = 0
    shut_out: int = 0
    client_failures: int = 0
    demo_published: int = 0
    demo_failed: int = 0

    def snapshot(self) -> dict[str, int]:
        """All counters by name, as they stand now."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class NullCounters(Counters):
    """Takes every addition and keeps none: for embedders and benchmarks that count themselves."""

    __slots__ = ()

    def __setattr__(self, name: str, value: int) -> None:
        if not hasattr(self, name):
            # The first write comes from the dataclass's own __init__ and must land.
            object.__setattr__(self, name, 0)
