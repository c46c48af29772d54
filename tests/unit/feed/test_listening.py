"""What is listened to: all patterns, or the channels of watched symbols and a while longer."""

from __future__ import annotations

import pytest
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pushservice.feed import listening as listening_room
from pushservice.feed.listening import DROP_AFTER, Demand, Everything, Verbatim
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


def test_everything_is_all_patterns_each_once_and_ready_when_the_last_is_confirmed():
    connection = Connection(confirming=False)
    patterns = ["a.*", "b.*", "a.*"]
    ready = Everything(patterns, SymbolReader(patterns)).begin(connection)
    connection.confirm()
    assert not ready.called
    connection.confirm()
    assert ready.called
    assert connection.commands == [("psubscribe", b"a.*"), ("psubscribe", b"b.*")]


def test_of_everything_the_symbol_is_what_the_reader_says_and_none_without_a_pattern():
    everything = Everything(["a.*"], SymbolReader(["a.*"]))
    assert everything.symbol(b"a.*", b"a.X", b"") == "X"
    assert everything.symbol(b"a.*", b"a.", b"") is None
    assert everything.symbol(None, b"a.X", b"") is None


def test_a_pattern_that_is_refused_is_no_success():
    connection = Connection(confirming=False)
    ready = Everything(["a.*"], SymbolReader(["a.*"])).begin(connection)
    connection.fail()
    failures = []
    ready.addErrback(failures.append)
    assert failures


# -- on demand -------------------------------------------------------------------------------------


class Demanded:
    """A demand with its clock, its connections and what it dropped."""

    def __init__(self, *patterns: str, connections: int = 1) -> None:
        self.time = Clock()
        self.connections = [Connection() for _ in range(connections)]
        self.dropped: list[str] = []
        self.demand = Demand(
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


def test_a_watched_symbol_is_listened_to_on_every_connection_and_in_every_pattern():
    demanded = Demanded("q.*", "r.*.x", connections=2)
    demanded.watch("A")
    for connection in demanded.connections:
        assert connection.subscribed == [b"q.A", b"r.A.x"]
    assert demanded.symbol(b"q.A") == demanded.symbol(b"r.A.x") == "A"


def test_a_symbol_that_would_have_a_channel_of_the_daemons_own_has_none():
    demanded = Demanded("quote*", "q.*")
    demanded.watch("push:demand")
    [connection] = demanded.connections
    assert connection.subscribed == [b"q.push:demand"]
    assert isinstance(demanded.symbol(b"quotepush:demand"), Ignored)
    demanded.unwatch("push:demand")
    demanded.time.advance(DROP_AFTER)
    assert connection.subscribed == []


def test_further_watchers_change_nothing_and_nor_do_those_that_are_not_the_last():
    demanded = Demanded()
    demanded.watch("A")
    demanded.watch("A", first=False)
    demanded.unwatch("A", last=False)
    demanded.time.advance(10.0)
    assert demanded.connections[0].commands == [("subscribe", b"q.A")]
    assert demanded.dropped == []


def test_it_is_dropped_a_second_after_the_last_watcher_went_and_not_before():
    demanded = Demanded("q.*", "r.*")
    demanded.watch("A", "B")
    demanded.unwatch("A")
    demanded.time.advance(DROP_AFTER - 0.01)
    assert demanded.symbol(b"q.A") == "A"
    assert demanded.dropped == []
    demanded.time.advance(0.01)
    assert demanded.connections[0].subscribed == [b"q.B", b"r.B"]
    assert demanded.dropped == ["A"]
    assert DROP_AFTER == 1.0


def test_who_comes_back_within_that_second_finds_it_as_it_was():
    demanded = Demanded()
    demanded.watch("A")
    for _ in range(5):
        demanded.unwatch("A")
        demanded.time.advance(DROP_AFTER * 0.9)
        demanded.watch("A")
    demanded.time.advance(10.0)
    assert demanded.connections[0].commands == [("subscribe", b"q.A")]
    assert demanded.dropped == []
    assert demanded.time.getDelayedCalls() == []


def test_a_dropped_symbol_is_listened_to_again_when_it_is_watched_again():
    demanded = Demanded()
    demanded.watch("A")
    demanded.unwatch("A")
    demanded.time.advance(DROP_AFTER)
    demanded.watch("A")
    assert [command for command, _ in demanded.connections[0].commands] == [
        "subscribe",
        "unsubscribe",
        "subscribe",
    ]
    assert demanded.symbol(b"q.A") == "A"


def test_messages_of_a_channel_that_is_not_or_no_longer_wanted_are_ignored_and_no_fault():
    demanded = Demanded()
    demanded.watch("A")
    demanded.unwatch("A")
    demanded.time.advance(DROP_AFTER)
    assert isinstance(demanded.symbol(b"q.A"), Ignored)
    assert isinstance(demanded.symbol(b"q.B"), Ignored)


def test_where_two_patterns_make_one_channel_of_two_symbols_the_first_keeps_it():
    demanded = Demanded("q.*", "q.A*")
    demanded.watch("AB")
    assert demanded.symbol(b"q.AB") == "AB"
    demanded.watch("B")
    assert demanded.symbol(b"q.AB") == "AB"
    demanded.unwatch("B")
    demanded.time.advance(DROP_AFTER)
    assert demanded.symbol(b"q.AB") == "AB", "the other's end does not take it along"
    assert b"q.AB" in demanded.connections[0].subscribed


def test_a_connection_that_comes_later_begins_with_all_that_is_watched():
    demanded = Demanded("q.*", "r.*", connections=0)
    demanded.watch("A", "B", "C")
    demanded.unwatch("B", "C")
    demanded.time.advance(DROP_AFTER / 2)
    demanded.watch("C")
    demanded.time.advance(DROP_AFTER / 2)
    connection = Connection(confirming=False)
    ready = demanded.demand.begin(connection)
    # All at once, without waiting for each other.
    assert sorted(connection.subscribed) == [b"q.A", b"q.C", b"r.A", b"r.C"]
    assert not ready.called
    connection.confirm()
    assert ready.called


def test_a_connection_with_nothing_to_listen_to_is_ready_at_once():
    connection = Connection()
    assert Demanded().demand.begin(connection).called
    assert connection.commands == []


def test_what_comes_and_goes_while_a_connection_begins_is_not_forgotten():
    demanded = Demanded(connections=0)
    demanded.watch("A", "B")
    connection = Connection(confirming=False)
    ready = demanded.demand.begin(connection)
    demanded.watch("C")
    demanded.unwatch("B")
    demanded.time.advance(DROP_AFTER)
    connection.confirm()
    assert not ready.called
    assert sorted(connection.subscribed) == [b"q.A", b"q.C"]
    connection.confirm()
    assert ready.called


def test_a_connection_that_is_lost_as_it_begins_is_no_success():
    demanded = Demanded(connections=0)
    demanded.watch("A", "B")
    connection = Connection(confirming=False)
    failures = []
    demanded.demand.begin(connection).addErrback(failures.append)
    connection.fail()
    assert [type(failure.value) for failure in failures] == [ConnectionError]


def test_a_connection_that_is_lost_with_a_command_under_way_is_not_missed(logged_failures):
    demanded = Demanded()
    demanded.connections[0].confirming = False
    demanded.watch("A")
    demanded.connections[0].fail()
    assert demanded.symbol(b"q.A") == "A"


def test_when_stopped_nothing_is_left_with_the_clock():
    demanded = Demanded()
    demanded.watch("A", "B")
    demanded.unwatch("A", "B")
    demanded.demand.stop()
    assert demanded.time.getDelayedCalls() == []
    demanded.time.advance(10)
    assert demanded.dropped == []


@pytest.mark.parametrize("pattern", ["q", "q.*.*", "q.?", "q.[ab]*", r"q\.*"])
def test_a_pattern_that_names_no_channel_for_a_symbol_is_refused(pattern):
    with pytest.raises(ValueError, match=r"has not one \* and no other wildcard"):
        Demanded(pattern)


# -- by channel ------------------------------------------------------------------------------------


def test_verbatim_gives_the_channel_once_for_all_patterns_that_match_it():
    listening = Verbatim(["quote.*", "*", "quote.*"])
    assert listening.symbol(b"quote.*", b"quote.A B*", b"") == "quote.A B*"
    assert listening.symbol(b"*", b"quote.A B*", b"") is IGNORED
    assert listening.symbol(b"*", b"other", b"") == "other"


def test_verbatim_passes_over_what_is_ignored_and_what_has_no_name():
    listening = Verbatim(["*"], ["quotepush:demand"])
    assert listening.symbol(b"*", b"quotepush:demand", b"") is IGNORED
    assert listening.symbol(b"*", b"\xff", b"") is None
    assert listening.symbol(None, b"a", b"") is None


def test_verbatim_remembers_a_bounded_number_of_channels(monkeypatch):
    monkeypatch.setattr(listening_room, "MAX_REMEMBERED", 3)
    listening = Verbatim(["*"])
    for n in range(10):
        assert listening.symbol(b"*", b"%d" % n, b"") == str(n)
    assert len(listening._known) <= 3


def test_verbatim_refuses_a_pattern_that_nobody_means():
    with pytest.raises(ValueError, match="has no ]"):
        Verbatim(["quote.["])
