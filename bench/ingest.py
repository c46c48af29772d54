"""What updates of one symbol cost while every client that watches it is behind.

    .venv/bin/python bench/ingest.py

A turn of the hub with 32 updates of one symbol to 500 clients that are behind, once as implemented
and once with events built and offered anyway. There is no network: the clients read nothing.
"""

from __future__ import annotations

import time

from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.interfaces import DelayedCall, Progress
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.fanout.watchers import Watchers
from pushservice.metrics import Counters
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON, Codec

CLIENTS, UPDATES, TURNS, ROUNDS = 500, 32, 300, 5
PAYLOAD = (
    b'{"last":189.50,"bid":189.49,"ask":189.51,"volume":1234567,"ts":1763799999123,"x":"%s"}'
    % (b"x" * 40)
)


class StalledOutlet:
    """An outlet that sends nothing, and a clock that does not move."""

    def write(self, data: bytes) -> None:
        """Discard the data."""

    def post(self, pieces: list[bytes], codec: Codec, share: SharedFrames) -> None:
        """Discard the data."""

    def pause_reading(self) -> None:
        """There is nothing to read."""

    resume_reading = abort = pause_reading

    def close(self, code: CloseCode) -> None:
        """Nothing is open."""

    def progress(self) -> Progress | None:
        """Progress is unknown."""

    def seconds(self) -> float:
        """A fixed time."""
        return 1_763_799_999.0

    def callLater(self, delay: float, callable: object) -> DelayedCall:
        """No timers are needed."""
        raise NotImplementedError


def turns() -> float:
    """Microseconds of CPU for each update."""
    hub = Hub(StalledOutlet(), "k", Counters(), TurnHooks(lambda _outbox, _failure: None))
    for number in range(CLIENTS):
        outbox = Outbox(JSON, StalledOutlet(), hub.common, f"k-{number}")
        hub.enter(outbox)
        hub.subscribe(outbox, "FLOOD")
        outbox.blocked()
    began = time.process_time()
    for _ in range(TURNS):
        for _ in range(UPDATES):
            hub.publish("FLOOD", PAYLOAD)
        hub.flush()
    return (time.process_time() - began) / TURNS / UPDATES * 1e6


def main() -> None:
    """Measure both alternately; print the medians and their ratio."""
    nobody_takes = Watchers.nobody_takes
    as_it_is, always = [], []
    for _ in range(ROUNDS):
        as_it_is.append(turns())
        Watchers.nobody_takes = lambda _watchers: False  # type: ignore[method-assign]  # build always
        always.append(turns())
        Watchers.nobody_takes = nobody_takes  # type: ignore[method-assign]  # restored
    here, there = sorted(as_it_is)[ROUNDS // 2], sorted(always)[ROUNDS // 2]
    print(f"merged on ingest {here:.2f} us an update; always {there:.2f}; {here / there:.2f} x")


if __name__ == "__main__":
    main()
