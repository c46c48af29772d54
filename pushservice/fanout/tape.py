"""The tape: every quote of the feed with the moment it came, to be read again a fixed time later.

Must not know: clients, hubs, timers, or who may see what. It keeps bytes within a budget and hands
them out to readers, each of which sees an entry once it is as old as the reader's delay.

Entries are stored one after another in segments, each after a head of a double and two lengths.
Over the budget, closed segments are compressed, the newest first, as they stay longest. If that is
not enough, the newest segment that only the slowest reader needs is dropped; readers that get there
see a hole.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections import deque
from typing import Final, TypeAlias

#: The moment in seconds since the epoch, the symbol, the payload. A mark is an entry without a
#: symbol, and its payload says which: LOST, GAP, or UNSUBSCRIBED followed by a symbol.
Entry: TypeAlias = tuple[float, str, bytes]

#: The feed was lost.
LOST: Final = b"lost"
#: Updates of any symbol may be missing before the next: the feed is back, or the tape has a hole.
GAP: Final = b"gap"
#: The feed unsubscribed from the symbol whose UTF-8 follows.
UNSUBSCRIBED: Final = b"unsubscribed "

#: Bytes of a segment, and the part of the budget that one may be.
_SEGMENT_BYTES: Final = 64 * 1024
_SEGMENTS_AT_LEAST: Final = 16
#: What a segment costs beside its bytes, about.
_SEGMENT_COST: Final = 200
#: Seconds of adjacent holes that become one.
_HOLE_SECONDS: Final = 1.0
#: The cheapest level leaves about a third of the bytes, for 1.2 us per quote; to record one takes
#: 0.6 us.
_ZLIB_LEVEL: Final = 1

_HEAD: Final = struct.Struct("<dHI")
_pack: Final = _HEAD.pack
_unpack: Final = _HEAD.unpack_from
_MOMENT: Final = struct.Struct("<d").unpack_from
#: A segment stays plain if zlib leaves more than this part of it.
_WORTH: Final = 0.9


class _Segment:
    """A piece of the tape: `data` as it is, `packed`, or neither where it was dropped."""

    __slots__ = ("data", "first_at", "last_at", "next", "number", "packed")

    def __init__(self, number: int) -> None:
        self.number = number
        self.data: bytes | bytearray | None = bytearray()
        self.packed: bytes | None = None
        self.first_at = self.last_at = 0.0
        #: None for the one that is written to
        self.next: _Segment | None = None

    @property
    def size(self) -> int:
        return _SEGMENT_COST + len(self.data or self.packed or b"")

    @property
    def dropped(self) -> bool:
        return self.data is None and self.packed is None

    def read(self) -> bytes | bytearray:
        """Its bytes; while it is open they still grow. It must not be dropped."""
        if self.packed is not None:
            return zlib.decompress(self.packed)
        assert self.data is not None, "a hole is not read"
        return self.data

    def compress(self) -> int:
        """Compress it if that pays; returns how many bytes that saves."""
        assert self.data is not None, "only what is there, and plain, is packed"
        packed = zlib.compress(self.data, _ZLIB_LEVEL)
        saved = len(self.data) - len(packed)
        if len(packed) > _WORTH * len(self.data):
            return 0
        self.data, self.packed = None, packed
        return saved


def _number(segment: _Segment) -> int:
    return segment.number


class Tape:
    """Keeps what was recorded until every reader has read it, within a budget of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        """`budget_bytes` is kept to within a segment, and one more for each reader.

        A segment has 64 KiB, or a sixteenth of the budget where that is less. Raises ValueError
        for a budget below 0.
        """
        if budget_bytes < 0:
            raise ValueError(f"a tape of {budget_bytes} bytes can't be; 0 or more are right")
        #: quotes and marks that were dropped before every reader had read them, in bytes
        self.dropped_bytes = 0
        self._segment_bytes = min(_SEGMENT_BYTES, budget_bytes // _SEGMENTS_AT_LEAST)
        self._room = budget_bytes - self._segment_bytes
        self._used = 0
        self._open = _Segment(0)
        self._data = bytearray()
        self._open.data = self._data
        # Closed and not dropped, the oldest first; and those not compressed, nor tried in vain.
        self._kept: list[_Segment] = []
        self._plain: deque[_Segment] = deque()
        self._hole: _Segment | None = None
        self._readers: list[Reader] = []

    @property
    def used_bytes(self) -> int:
        """Bytes that the tape keeps, without those that only readers hold."""
        return self._used + len(self._data)

    # -- recording -------------------------------------------------------------------------------

    def record(self, symbol: str, payload: bytes, at: float) -> None:
        """Keep a quote that came at `at`, in seconds; `symbol` is well-formed."""
        name = symbol.encode()
        data = self._data
        data += _pack(at, len(name), len(payload))
        data += name
        data += payload
        if len(data) >= self._segment_bytes:
            self._close(at)

    def mark_lost(self, at: float) -> None:
        """The feed was lost at `at`."""
        self.record("", LOST, at)

    def mark_gap(self, at: float) -> None:
        """The feed was lost, and is back at `at`."""
        self.record("", GAP, at)

    def mark_unsubscribed(self, symbol: str, at: float) -> None:
        """The feed unsubscribed from `symbol` at `at`."""
        self.record("", UNSUBSCRIBED + symbol.encode(), at)

    def reader(self, delay: float) -> Reader:
        """A new reader of all that is recorded from now on; `delay` in seconds."""
        reader = Reader(self, delay, self._open, len(self._data))
        self._readers.append(reader)
        return reader

    def no_reader(self, reader: Reader) -> None:
        """`reader` reads no more."""
        self._readers.remove(reader)
        self.release()

    # -- keeping within the budget ---------------------------------------------------------------

    def _close(self, last_at: float) -> None:
        closed = self._open
        self._open = closed.next = _Segment(closed.number + 1)
        # A reader that is in the midst of it goes on with the array; the copy is as long as needed.
        closed.data = bytes(self._data)
        closed.last_at = last_at
        (closed.first_at,) = _MOMENT(closed.data)
        self._data = bytearray()
        self._open.data = self._data
        self._used += closed.size
        self._kept.append(closed)
        self._plain.append(closed)
        self.release()
        while self._used > self._room:
            if self._plain:
                self._used -= self._plain.pop().compress()
            else:
                self._drop()

    def _drop(self) -> None:
        """Drop the newest segment that only the slowest reader has yet to read, or else the newest.

        Dropping the oldest would, with a budget that is too small for long, always drop what is
        about to be read, so that nothing would be read at all.
        """
        numbers = sorted(reader.number for reader in self._readers)
        at = len(self._kept) - 1
        if len(numbers) > 1:
            behind_all_others = bisect_left(self._kept, numbers[1], key=_number)
            at = behind_all_others - 1 if behind_all_others else at
        segment = self._kept.pop(at)
        self._used -= segment.size
        self.dropped_bytes += segment.size - _SEGMENT_COST
        segment.data = segment.packed = None
        hole = self._hole
        if (
            hole is not None
            and hole.next is segment
            and segment.last_at - hole.first_at <= _HOLE_SECONDS
            # One that is there may be reading what it began before it was dropped.
            and all(number != hole.number for number in numbers)
        ):
            # For readers that are before both; to one that is at this one it is a hole itself.
            hole.next = segment.next
            hole.last_at = max(hole.last_at, segment.last_at)
        else:
            self._hole = segment

    def release(self) -> None:
        """Free what every reader has read; called by readers."""
        needed = min((reader.number for reader in self._readers), default=self._open.number)
        count = bisect_left(self._kept, needed, key=_number)
        for segment in self._kept[:count]:
            self._used -= segment.size
            if self._plain and self._plain[0] is segment:
                self._plain.popleft()
        del self._kept[:count]
        if self._hole is not None and self._hole.number < needed:
            # It would keep all that follows.
            self._hole = None


class Reader:
    """One position on the tape: hands out each entry once it is `delay` seconds old, in order."""

    __slots__ = ("_data", "_in_hole", "_offset", "_segment", "_tape", "delay")

    def __init__(self, tape: Tape, delay: float, segment: _Segment, offset: int) -> None:
        self.delay = delay
        self._tape = tape
        self._segment = segment
        # The bytes of the segment once it was begun: then it is read to its end in any case.
        self._data: bytes | bytearray | None = segment.read()
        self._offset = offset
        # Whether nothing was read since the last hole.
        self._in_hole = False

    def close(self) -> None:
        """Read no more, so that nothing is kept for it. May be called once."""
        self._tape.no_reader(self)

    @property
    def number(self) -> int:
        """The segment it is in."""
        return self._segment.number

    def next_at(self) -> float | None:
        """When the next entry was recorded; None at the end of the tape.

        That of a hole is when what was dropped began, and once more when it ended.
        """
        while True:
            segment = self._segment
            if self._data is None:
                if segment.dropped:
                    return segment.last_at if self._in_hole else segment.first_at
                self._data, self._offset = segment.read(), 0
            if self._offset < len(self._data):
                at: float
                (at,) = _MOMENT(self._data, self._offset)
                return at
            if segment.next is None:
                return None
            self._move_on(segment.next)

    def take(self, now: float, most: int) -> list[Entry]:
        """The next entries that are due at `now`, up to about `most`: `at + delay <= now` of each.

        An entry that came after one with a later moment, as the clock was set back, waits for that
        one.
        """
        taken: list[Entry] = []
        delay = self.delay
        while len(taken) < most:
            at = self.next_at()
            if at is None or at + delay > now:
                break
            data = self._data
            if data is None:
                taken.append((at, "", GAP))
                following = self._segment.next
                assert following is not None, "the one that is written to is kept"
                # First its beginning, unless a hole has just ended there, then its end.
                if self._in_hole:
                    self._move_on(following)
                self._in_hole = True
                continue
            self._in_hole = False
            offset, end = self._offset, len(data)
            while offset < end and len(taken) < most:
                at, symbol_size, size = _unpack(data, offset)
                if at + delay > now:
                    break
                start = offset + _HEAD.size
                middle = start + symbol_size
                offset = middle + size
                taken.append((at, data[start:middle].decode(), bytes(data[middle:offset])))
            self._offset = offset
        return taken

    def _move_on(self, following: _Segment) -> None:
        self._segment = following
        self._data = None
        self._tape.release()
