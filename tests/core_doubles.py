"""Small real implementations of what the core depends on: a clock and an outlet that records."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.interfaces import Interest, Progress
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import CODECS, JSON, Codec
from pushservice.session.session import Session


class FixedClock(Clock):
    """A clock that stands until it is moved; calls that become due on the way are made."""

    def __init__(self, now: float = 1_763_799_999.123) -> None:
        super().__init__()
        self.rightNow = now

    def pass_time(self, seconds: float) -> None:
        """Let time pass; each call is made at its very moment."""
        end = self.rightNow + seconds
        while self.calls and self.calls[0].getTime() <= end:
            self.rightNow = max(self.rightNow, self.calls[0].getTime())
            self.advance(0)
        self.rightNow = end


class RecordingOutlet:
    """Takes everything and keeps it; the test says when it is full."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.reading = True
        self.closed_with: CloseCode | None = None
        self.aborted = False
        self.broken = False
        #: the size that fills it, and what is told when it does
        self.room: int | None = None
        self.outbox: Outbox | None = None
        self.now_taken: Progress | None = Progress(0, 0)

    def write(self, data: bytes) -> None:
        if self.broken:
            raise OSError("this outlet is broken")
        self.written.append(data)
        if self.room is not None:
            self.room -= len(data)
            if self.room < 0 and self.outbox is not None:
                self.outbox.blocked()

    def post(self, pieces: list[bytes], codec: Codec, share: SharedFrames) -> None:
        data = share.wire_bytes(codec, pieces)
        pieces.clear()
        self.write(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self, code: CloseCode) -> None:
        self.closed_with = code

    def abort(self) -> None:
        self.aborted = True

    def progress(self) -> Progress | None:
        return self.now_taken

    def queued(self) -> int:
        return 0 if self.now_taken is None else self.now_taken.waiting


def unframe(data: bytes) -> list[tuple[int, bytes]]:
    """The unmasked frames in `data` as (first byte, payload); fails on anything left over."""
    frames = []
    while data:
        first, length = data[0], data[1]
        start = 2
        if length == 126:
            length, start = int.from_bytes(data[2:4]), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10]), 10
        assert len(data) >= start + length, "a frame is cut off"
        frames.append((first, data[start : start + length]))
        data = data[start + length :]
    return frames


def inflated(payload: bytes, window_bits: int = 12) -> bytes:
    """The text of a compressed message, by another implementation, with so small a window."""
    decoder = PerMessageDeflate(True, True, window_bits, 15)
    frame = decoder.decode(Frame(Opcode.TEXT, payload, rsv1=True))
    return bytes(frame.data)


class Client:
    """One client of a hub: a session over a recording outlet, read as its user would."""

    def __init__(
        self,
        hub: Hub,
        conn: str = "t-1",
        codec: Codec = JSON,
        limits: Limits | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.outlet = RecordingOutlet()
        self.outbox = self.outlet.outbox = Outbox(codec, self.outlet, hub.common, conn)
        self.session = Session(hub, self.outbox, limits or Limits(), counters or Counters())
        self.session.open()

    def say(self, command: object) -> None:
        """Send a command, or bytes as they are."""
        text = command if isinstance(command, bytes) else json.dumps(command).encode()
        self.session.receive(text)

    def frames(self) -> list[tuple[int, bytes]]:
        """The frames written since the last call."""
        data = b"".join(self.outlet.written)
        self.outlet.written.clear()
        return unframe(data)

    def texts(self) -> list[bytes]:
        """The text messages written since the last call, inflated where they are compressed."""
        texts = []
        for first, payload in self.frames():
            if first == 0xC1 and self.outbox.codec not in CODECS.values():
                texts.append(inflated(payload))
            else:
                assert first == 0x81, "only whole text messages"
                texts.append(payload)
        return texts

    def events(self) -> list[dict[str, Any]]:
        """The events written since the last call, of all messages in order."""
        events: list[dict[str, Any]] = []
        for text in self.texts():
            message = json.loads(text)
            assert isinstance(message, list), "a message is an array of events"
            events += message
        return events


def make_hub(
    clock: FixedClock | None = None,
    counters: Counters | None = None,
    limits: Limits | None = None,
    interest: Interest | None = None,
) -> Hub:
    """A hub whose clients' failures are raised at once."""

    def failed(outbox: Outbox, failure: Exception) -> None:
        raise failure

    return Hub(
        clock or FixedClock(),
        "k7f3",
        counters or Counters(),
        TurnHooks(failed),
        limits=limits,
        interest=interest,
    )


def publish(hub: Hub, *quotes: tuple[str, bytes]) -> None:
    """One turn: several quotes, then the end of the read."""
    for symbol, payload in quotes:
        hub.publish(symbol, payload)
    hub.flush()
