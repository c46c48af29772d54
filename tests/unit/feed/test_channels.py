"""Channel selections: all patterns, or the channels of watched symbols and for a while after."""

from __future__ import annotations

import pytest
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pushservice.feed import channels as channels_module
from pushservice.feed.channels import UNSUBSCRIBE_AFTER, AllPatterns, ChannelNames, OnDemand
from pushservice.feed.symbol_reader import IGNORED, Ignored, SymbolReader


class Connection:
    """Takes commands and confirms them when the test says so; keeps what it is subscribed to."""

    def __init__(self, confirming: bool = True) -> None:
        self.confirming = confirming
        self.commands: list[tuple[str, bytes]] = []
        self.subscribed: list[bytes] = []
        self.waiting: list[defer.Deferred[None]] = []

    def _take(self, command: str, channels: list[bytes]) -> defer.Deferred[None]:
        # txredisapi pairs one reply with one command, and Redis replies once a channel.
        [channel] = channels
        self.commands.append((command, channel))
        if command.endswith("unsubscribe"):
            if channel in self.subscribed:
                self.subscribed.remove(channel)
        else:
            self.subscribed.append(channel)
        if self.confirming:
            return defer.succeed(None)
        self.waiting.append(defer.Deferred())
        return self.waiting[-1]

    def subscribe(self, channels: list[bytes]) -> defer.Deferred[None]:
        return self._take("subscribe", channels)

    def unsubscribe(self, channels: list[bytes]) -> defer.Deferred[None]:
        return self._take("unsubscribe", channels)

    def psubscribe(self, patterns: list[bytes]) -> defer.Deferred[None]:
        return self._take("psubscribe", patterns)

    def confirm(self) -> None:
        """Answer all that waits."""
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback(None)

    def fail(self) -> None:
        """The connection is lost."""
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.errback(Failure(ConnectionError("lost")))


# -- everything ------------------------------------------------------------------------------------


def test_all_patterns_are_subscribed_once_each_and_ready_when_the_last_is_confirmed():
    connection = Connection(confirming=False)
    patterns = ["a.*", "b.*", "a.*"]
    ready = AllPatterns(patterns, SymbolReader(patterns)).begin(connection)
    connection.confirm()
    assert not ready.called
    connection.confirm()
    assert ready.called
    assert connection.commands == [("psubscribe", b"a.*"), ("psubscribe", b"b.*")]


def test_the_symbol_reader_tells_the_symbol_of_a_pattern_message():
    patterns = AllPatterns(["a.*"], SymbolReader(["a.*"]))
    assert patterns.symbol(b"a.*", b"a.X", b"") == "X"
    assert patterns.symbol(b"a.*", b"a.", b"") is None
    assert patterns.symbol(None, b"a.X", b"") is None


def test_a_refused_pattern_fails_the_beginning():
    connection = Connection(confirming=False)
    ready = AllPatterns(["a.*"], SymbolReader(["a.*"])).begin(connection)
    connection.fail()
    failures = []
    ready.addErrback(failures.append)
    assert failures


# -- on demand -------------------------------------------------------------------------------------


class Watch:
    """An OnDemand with its clock, its connections and the symbols it unsubscribed."""

    def __init__(self, *patterns: str, connections: int = 1) -> None:
        self.time = Clock()
        self.connections = [Connection() for _ in range(connections)]
        self.dropped: list[str] = []
        self.demand = OnDemand(
            self.time,
            patterns or ("q.*",),
            lambda: self.connections,
            self.dropped.append,
            ["quotepush:demand"],
        )

    def watch(self, *symbols: str, first: bool = True) -> None:
        for symbol in symbols:
            self.demand.watched("c", symbol, first)

    def unwatch(self, *symbols: str, last: bool = True) -> None:
        for symbol in symbols:
            self.demand.unwatched("c", symbol, last)

    def symbol(self, channel: bytes) -> object:
        return self.demand.symbol(None, channel, b"")


def test_a_watched_symbol_is_subscribed_on_every_connection_for_every_pattern():
    watch = Watch("q.*", "r.*.x", connections=2)
    watch.watch("A")
    for connection in watch.connections:
        assert connection.subscribed == [b"q.A", b"r.A.x"]
    assert watch.symbol(b"q.A") == watch.symbol(b"r.A.x") == "A"


def test_a_channel_of_the_daemon_itself_is_never_subscribed():
    watch = Watch("quote*", "q.*")
    watch.watch("push:demand")
    [connection] = watch.connections
    assert connection.subscribed == [b"q.push:demand"]
    assert isinstance(watch.symbol(b"quotepush:demand"), Ignored)
    watch.unwatch("push:demand")
    watch.time.advance(UNSUBSCRIBE_AFTER)
    assert connection.subscribed == []


def test_only_the_first_and_the_last_watcher_change_subscriptions():
    watch = Watch()
    watch.watch("A")
    watch.watch("A", first=False)
    watch.unwatch("A", last=False)
    watch.time.advance(10.0)
    assert watch.connections[0].commands == [("subscribe", b"q.A")]
    assert watch.dropped == []


def test_a_symbol_is_unsubscribed_a_second_after_its_last_watcher_left():
    watch = Watch("q.*", "r.*")
    watch.watch("A", "B")
    watch.unwatch("A")
    watch.time.advance(UNSUBSCRIBE_AFTER - 0.01)
    assert watch.symbol(b"q.A") == "A"
    assert watch.dropped == []
    watch.time.advance(0.01)
    assert watch.connections[0].subscribed == [b"q.B", b"r.B"]
    assert watch.dropped == ["A"]
    assert UNSUBSCRIBE_AFTER == 1.0


def test_a_watcher_that_returns_within_that_second_keeps_the_subscription():
    watch = Watch()
    watch.watch("A")
    for _ in range(5):
        watch.unwatch("A")
        watch.time.advance(UNSUBSCRIBE_AFTER * 0.9)
        watch.watch("A")
    watch.time.advance(10.0)
    assert watch.connections[0].commands == [("subscribe", b"q.A")]
    assert watch.dropped == []
    assert watch.time.getDelayedCalls() == []


def test_an_unsubscribed_symbol_is_subscribed_again_when_watched_again():
    watch = Watch()
    watch.watch("A")
    watch.unwatch("A")
    watch.time.advance(UNSUBSCRIBE_AFTER)
    watch.watch("A")
    assert [command for command, _ in watch.connections[0].commands] == [
        "subscribe",
        "unsubscribe",
        "subscribe",
    ]
    assert watch.symbol(b"q.A") == "A"


def test_messages_of_an_unsubscribed_channel_are_ignored():
    watch = Watch()
    watch.watch("A")
    watch.unwatch("A")
    watch.time.advance(UNSUBSCRIBE_AFTER)
    assert isinstance(watch.symbol(b"q.A"), Ignored)
    assert isinstance(watch.symbol(b"q.B"), Ignored)


def test_a_channel_of_two_symbols_belongs_to_the_first():
    watch = Watch("q.*", "q.A*")
    watch.watch("AB")
    assert watch.symbol(b"q.AB") == "AB"
    watch.watch("B")
    assert watch.symbol(b"q.AB") == "AB"
    watch.unwatch("B")
    watch.time.advance(UNSUBSCRIBE_AFTER)
    assert watch.symbol(b"q.AB") == "AB", "the other's end does not take it along"
    assert b"q.AB" in watch.connections[0].subscribed


def test_a_new_connection_subscribes_to_all_that_is_watched():
    watch = Watch("q.*", "r.*", connections=0)
    watch.watch("A", "B", "C")
    watch.unwatch("B", "C")
    watch.time.advance(UNSUBSCRIBE_AFTER / 2)
    watch.watch("C")
    watch.time.advance(UNSUBSCRIBE_AFTER / 2)
    connection = Connection(confirming=False)
    ready = watch.demand.begin(connection)
    # All at once, without waiting for each other.
    assert sorted(connection.subscribed) == [b"q.A", b"q.C", b"r.A", b"r.C"]
    assert not ready.called
    connection.confirm()
    assert ready.called


def test_a_connection_with_nothing_to_subscribe_is_ready_at_once():
    connection = Connection()
    assert Watch().demand.begin(connection).called
    assert connection.commands == []


def test_changes_while_a_connection_begins_are_made_up_for():
    watch = Watch(connections=0)
    watch.watch("A", "B")
    connection = Connection(confirming=False)
    ready = watch.demand.begin(connection)
    watch.watch("C")
    watch.unwatch("B")
    watch.time.advance(UNSUBSCRIBE_AFTER)
    connection.confirm()
    assert not ready.called
    assert sorted(connection.subscribed) == [b"q.A", b"q.C"]
    connection.confirm()
    assert ready.called


def test_a_connection_that_is_lost_while_it_begins_fails():
    watch = Watch(connections=0)
    watch.watch("A", "B")
    connection = Connection(confirming=False)
    failures = []
    watch.demand.begin(connection).addErrback(failures.append)
    connection.fail()
    assert [type(failure.value) for failure in failures] == [ConnectionError]


def test_a_connection_lost_with_a_command_in_flight_logs_no_failure(logged_failures):
    watch = Watch()
    watch.connections[0].confirming = False
    watch.watch("A")
    watch.connections[0].fail()
    assert watch.symbol(b"q.A") == "A"


def test_stop_cancels_all_timers():
    watch = Watch()
    watch.watch("A", "B")
    watch.unwatch("A", "B")
    watch.demand.stop()
    assert watch.time.getDelayedCalls() == []
    watch.time.advance(10)
    assert watch.dropped == []


@pytest.mark.parametrize("pattern", ["q", "q.*.*", "q.?", "q.[ab]*", r"q\.*"])
def test_a_pattern_that_names_no_channel_for_a_symbol_is_refused(pattern):
    with pytest.raises(ValueError, match=r"needs exactly one \* and no other wildcard"):
        Watch(pattern)


# -- by channel ------------------------------------------------------------------------------------


def test_channel_names_count_a_message_once_for_all_patterns_that_match():
    channels = ChannelNames(["quote.*", "*", "quote.*"])
    assert channels.symbol(b"quote.*", b"quote.A B*", b"") == "quote.A B*"
    assert channels.symbol(b"*", b"quote.A B*", b"") is IGNORED
    assert channels.symbol(b"*", b"other", b"") == "other"


def test_channel_names_skip_ignored_channels_and_names_that_are_not_utf_8():
    channels = ChannelNames(["*"], ["quotepush:demand"])
    assert channels.symbol(b"*", b"quotepush:demand", b"") is IGNORED
    assert channels.symbol(b"*", b"\xff", b"") is None
    assert channels.symbol(None, b"a", b"") is None


def test_channel_names_are_cached_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(channels_module, "MAX_CACHED", 3)
    channels = ChannelNames(["*"])
    for n in range(10):
        assert channels.symbol(b"*", b"%d" % n, b"") == str(n)
    assert len(channels._cache) <= 3


def test_channel_names_refuse_a_pattern_with_an_open_bracket():
    with pytest.raises(ValueError, match="has no ]"):
        ChannelNames(["quote.["])
