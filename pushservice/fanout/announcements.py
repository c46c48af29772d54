"""What all clients are told, whatever they watch: heartbeats, the feed's state, gaps, goodbye.

Must not know: Twisted, sockets, Redis, or how quotes flow.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from pushservice.fanout.shared_frames import SharedFrames
from pushservice.protocol import events
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON, Codec

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub
    from pushservice.fanout.outbox import Outbox
    from pushservice.fanout.topic import Topic


class Announcements:
    """Tells the clients of one hub."""

    def __init__(
        self, hub: Hub, end_of_turn: Callable[[SharedFrames], None], late_ms: float = 0
    ) -> None:
        """`end_of_turn` is called when a round of outboxes has posted what it is told.

        `late_ms`: by how much the hub's quotes are late.
        """
        self._hub = hub
        self._late_ms = late_ms
        self._end_of_turn = end_of_turn
        #: whether the feed's link is up; None before anything is known of it
        self.feed_up: bool | None = None
        #: when it came up, in milliseconds since the epoch
        self._up_since: int | None = None
        self._next_beat = 0
        # The whole feed has gone quiet, and clients know.
        self._all_stale = False

    # -- heartbeats ------------------------------------------------------------------------------

    def beat(self) -> None:
        """Send a heartbeat to one group of connections, the next one each time.

        Called evenly, once per heartbeat interval and group, so that no call serves them all.
        """
        hub = self._hub
        group = hub.group(self._next_beat)
        self._next_beat = (self._next_beat + 1) % hub.groups
        t = hub.now()
        age = None if hub.last_message_t is None else t - hub.last_message_t
        feed_up = bool(self.feed_up)
        # Of all codecs that converse: a message need not be compressed where others are.
        frames = JSON.frames([events.heartbeat(t, feed_up, age, 0)])

        def tell(outbox: Outbox) -> None:
            if outbox.behind:
                return
            if outbox.merged:
                event = events.heartbeat(t, feed_up, age, outbox.merged)
                outbox.send(outbox.codec.frames([outbox.codec.event(event)]))
            else:
                outbox.send(frames)

        self._each(group, tell)

    # -- the feed --------------------------------------------------------------------------------

    def feed_changed(self, up: bool) -> None:
        """Tell every client that the feed was lost, or is back and what may be missing."""
        if up is self.feed_up:
            return
        self.feed_up = up
        hub = self._hub
        t = hub.now()
        if up:
            self._up_since = t
        event = events.feed(up, t)
        outboxes = list(hub.outboxes())
        self._each(outboxes, lambda outbox: outbox.tell_feed(event))
        if up:
            self.gap()

    def feed_was(self, up: bool, t: int) -> None:
        """A late hub has come to where the feed was lost, or was back at `t`, in milliseconds.

        Of how it is now its clients are told together with all others.
        """
        self.feed_up = up
        if up:
            self._up_since = t
            self.gap()

    def gap(self) -> None:
        """Tell every client of the hub that updates of each of its symbols may be missing."""
        gaps = {topic: events.gap(topic.symbol_text) for topic in self._hub.watched_topics()}
        pieces: dict[Codec, dict[Topic, bytes]] = {}
        shared = SharedFrames()

        def tell(outbox: Outbox) -> None:
            codec = outbox.codec
            if codec not in pieces:
                pieces[codec] = {topic: codec.event(event) for topic, event in gaps.items()}
            outbox.tell_gaps(pieces[codec], shared)

        self._each([outbox for outbox in self._hub.outboxes() if self._hub.serves(outbox)], tell)
        self._end_of_turn(shared)

    def gap_of(self, topic: Topic) -> None:
        """Tell who watches `topic` that updates of it may be missing."""
        event = events.gap(topic.symbol_text)

        def tell(outbox: Outbox) -> None:
            outbox.send(outbox.codec.frames([outbox.codec.event(event)]))

        self._each(self._hub.watchers(topic), tell)

    def greet(self, outbox: Outbox) -> None:
        """Tell a client that has just come what is not as it should be."""
        if self.feed_up is False:
            outbox.tell_feed(events.feed(False, self._hub.now()))
        elif self._all_stale:
            outbox.tell_all_quiet(events.quiet([], stale=True, everything=True))

    # -- quiet symbols ---------------------------------------------------------------------------

    def look_for_stale(self, symbol_ms: float | None, feed_ms: float | None) -> None:
        """Tell who watches a symbol that was quoted and is quiet for longer than `symbol_ms`.

        With `feed_ms`, tell everybody when nothing at all has come for longer, and when it is over.
        While the feed is down that is what clients know, and all that can be known.
        """
        if not self.feed_up or self._up_since is None:
            return
        if symbol_ms is not None:
            self._tell_stale(symbol_ms)
        if feed_ms is not None:
            self._tell_quiet_feed(feed_ms, self._up_since)

    def _tell_stale(self, symbol_ms: float) -> None:
        before = self._hub.now() - self._late_ms - symbol_ms
        if self._up_since is None or self._up_since >= before:
            # After an outage symbols have the whole time again.
            return
        stale = [
            topic
            for topic in self._hub.watched_topics()
            if topic.t < before and topic.payload is not None and not topic.stale
        ]
        for topic in stale:
            topic.stale = True
        found = self._hub.watchers_of(stale)
        self._each(list(found), lambda outbox: outbox.tell_quiet(found[outbox], stale=True))

    def _tell_quiet_feed(self, feed_ms: float, up_since: int) -> None:
        hub = self._hub
        quiet = hub.now() - max(up_since, hub.last_message_t or 0) > feed_ms
        if quiet is not self._all_stale:
            self._all_stale = quiet
            event = events.quiet([], stale=quiet, everything=True)
            self._each(list(hub.outboxes()), lambda outbox: outbox.tell_all_quiet(event))

    # -- goodbye ---------------------------------------------------------------------------------

    def dismiss(
        self, code: CloseCode, retry_ms: Callable[[], int | None], most: int | None = None
    ) -> None:
        """Send `bye` to every client, or to `most` of them, and begin to close each.

        `retry_ms` is asked for each when it may come back.
        """
        failures: list[tuple[Outbox, Exception]] = []
        # A copy: whom we close leaves the hub at once.
        for outbox in list(islice(self._hub.outboxes(), most)):
            try:
                codec = outbox.codec
                if codec.converses:
                    outbox.send_last(codec.frames([codec.event(events.bye(code, retry_ms()))]))
                outbox.outlet.close(code)
            except Exception as failure:  # noqa: BLE001 - one client's fault must not stop the others
                failures.append((outbox, failure))
        self._hub.report(failures)

    # -- within ----------------------------------------------------------------------------------

    def _each(self, outboxes: list[Outbox], tell: Callable[[Outbox], None]) -> None:
        """Tell each of those that converse; one client's fault must not stop the others."""
        failures: list[tuple[Outbox, Exception]] = []
        for outbox in outboxes:
            try:
                if outbox.codec.converses and not outbox.closed:
                    tell(outbox)
            except Exception as failure:  # noqa: BLE001 - see above
                failures.append((outbox, failure))
        self._hub.report(failures)
