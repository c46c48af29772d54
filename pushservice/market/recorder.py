"""Records what a feed delivers: a line for each message, and marks where Redis was lost.

Must not know: how lines are stored, or when they are flushed. The feed calls it with channels
in place of symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet import defer

from pushservice.market.recording_format import (
    Header,
    Mark,
    Message,
    header_line,
    mark_line,
    message_line,
)


class Lines(Protocol):
    """Stores lines."""

    def write(self, line: bytes) -> None:
        """Write a line; raises OSError when that fails."""
        ...


class Recorder:
    """Writes the header at once, then each message. `now` gives microseconds since the epoch.

    `done` fires after `count` messages, if given, and fails with an OSError once a line can't be
    written; nothing is written after either. Raises OSError when the header can't be written.
    """

    def __init__(
        self,
        lines: Lines,
        channels: tuple[str, ...],
        now: Callable[[], int],
        count: int | None = None,
    ) -> None:
        self._lines = lines
        self._now = now
        self._left = count
        self._last = now()
        self._was_up = False
        #: how often Redis was lost during the recording
        self.losses = 0
        self.messages = 0
        #: bytes of payloads
        self.size = 0
        self.done: defer.Deferred[None] = defer.Deferred()
        lines.write(header_line(Header(self._last, channels)))

    def publish(self, channel: str, payload: bytes) -> None:
        """See Publish."""
        if self.done.called:
            return
        if self._write(message_line(Message(self._time(), channel, payload))):
            self.messages += 1
            self.size += len(payload)
            if self.messages == self._left:
                self.done.callback(None)

    def flush(self) -> None:
        """See Publish; lines are flushed by the clock."""

    def feed_changed(self, up: bool) -> None:
        """The feed came up or was lost; a mark is written where messages may be missing."""
        if up == self._was_up or self.done.called:
            return
        self._was_up = up
        self.losses += not up
        if self.losses:
            self._write(mark_line(Mark(self._time(), up)))

    def _time(self) -> int:
        # A clock may be set back, but the times of a recording never decrease.
        self._last = max(self._last, self._now())
        return self._last

    def finish(self) -> None:
        """Write no more."""
        if not self.done.called:
            self.done.callback(None)

    def fail(self, error: OSError) -> None:
        """Lines can't be stored any more."""
        if not self.done.called:
            self.done.errback(error)

    def _write(self, line: bytes) -> bool:
        try:
            self._lines.write(line)
        except OSError as error:
            self.fail(error)
            return False
        return True
