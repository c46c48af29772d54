"""One feed: each message once and unchanged, one flush a read, and a dead Redis noticed."""

from __future__ import annotations

import hiredis
import pytest
import pytest_twisted
from free_ports import free_port
from twisted.internet import defer, protocol, reactor
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from waiting import until

from pushservice.feed.channels import AllPatterns
from pushservice.feed.redis_pubsub import PING_EVERY, SILENCE, TURN_BUDGET, RedisFeed, _Subscriber
from pushservice.feed.symbol_reader import SymbolReader
from pushservice.metrics import Counters, Measures
from pushservice.redis.url import RedisAddress, redis_address

CHANNEL = "test_redisfeed"


class Target:
    """Takes what a feed delivers and keeps it, turn by turn."""

    def __init__(self) -> None:
        self.turns: list[list[tuple[str, bytes]]] = []
        self.open: list[tuple[str, bytes]] = []
        self.refused: set[bytes] = set()

    def publish(self, symbol: str, payload: bytes) -> None:
        if payload in self.refused:
            raise ArithmeticError("this one is refused")
        self.open.append((symbol, payload))

    def flush(self) -> None:
        self.turns.append(self.open)
        self.open = []

    @property
    def quotes(self) -> list[tuple[str, bytes]]:
        assert not self.open, "every turn ends with a flush"
        return [quote for turn in self.turns for quote in turn]


class FeedTest:
    """A feed with its target and its counters."""

    def __init__(self, time: object, address: RedisAddress, *patterns: str, **options: str) -> None:
        self.target = Target()
        self.counters = Counters()
        #: changes of the feed, without repetitions
        self.changes: list[bool] = []
        channels = AllPatterns(patterns, SymbolReader(patterns, **options))
        self.feed = RedisFeed(
            time, address, channels, self.target, self.counters, self.feed_changed
        )

    def feed_changed(self, feed: RedisFeed, up: bool) -> None:
        assert feed is self.feed
        assert feed.up is up
        if self.changes[-1:] != [up]:
            self.changes.append(up)


@pytest.fixture
def start():
    """start(address, *patterns): a started feed that is stopped at the end."""
    started = []

    def begin(url: str, *patterns: str, **options: str) -> FeedTest:
        started.append(FeedTest(reactor, redis_address(url), *patterns, **options))
        started[-1].feed.start()
        return started[-1]

    yield begin
    for feed_test in started:
        pytest_twisted.blockon(defer.ensureDeferred(feed_test.feed.stop()))
        assert not feed_test.feed.up


# -- with a real Redis -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_every_payload_arrives_as_it_was_published_and_in_order(redis_server, start):
    feed_test = start(redis_server.url, f"{CHANNEL}.*")
    await until(lambda: feed_test.feed.up, "the feed")
    payloads = [b"12.50", b"007", b"\xff\x00", b"", b'{"last":10.50}', b"\r\n", b"x" * 200_000]
    for at, payload in enumerate(payloads):
        assert redis_server.cli("PUBLISH", f"{CHANNEL}.S{at}", payload) == b":1\r\n"
    await until(lambda: len(feed_test.target.quotes) == len(payloads), "the quotes")
    assert feed_test.target.quotes == [(f"S{at}", payload) for at, payload in enumerate(payloads)]
    assert feed_test.counters.quotes_in == len(payloads)
    assert feed_test.changes == [True]


@pytest_twisted.ensureDeferred
async def test_all_patterns_are_subscribed_and_overlaps_count_once(redis_server, start):
    patterns = (f"{CHANNEL}.*", "other_redisfeed.*", f"{CHANNEL}*.AAPL")
    feed_test = start(redis_server.socket_url, *patterns)
    await until(lambda: feed_test.feed.up, "the feed")
    assert redis_server.cli("PUBLISH", f"{CHANNEL}.AAPL", "1") == b":2\r\n"
    assert redis_server.cli("PUBLISH", "other_redisfeed.X", "2") == b":1\r\n"
    await until(lambda: len(feed_test.target.quotes) >= 2, "the quotes")
    assert feed_test.target.quotes == [("AAPL", b"1"), ("X", b"2")]


@pytest_twisted.ensureDeferred
async def test_the_same_pattern_twice_still_comes_up_and_delivers_once(redis_server, start):
    feed_test = start(redis_server.socket_url, f"{CHANNEL}.*", f"{CHANNEL}.*")
    await until(lambda: feed_test.feed.up, "the feed")
    redis_server.cli("PUBLISH", f"{CHANNEL}.A", "1")
    await until(lambda: feed_test.target.quotes, "the quote")
    assert feed_test.target.quotes == [("A", b"1")]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("way", ["killed", "dropped"])
async def test_a_lost_redis_is_reported_and_the_patterns_are_subscribed_again(
    own_redis, start, way
):
    server = own_redis()
    feed_test = start(server.url, "a.*", "b.*")
    await until(lambda: feed_test.feed.up, "the feed")
    if way == "killed":
        server.stop()
        await until(lambda: feed_test.changes == [True, False], "the loss")
        server = own_redis(port=server.port)
    else:
        assert server.cli("CLIENT", "KILL", "TYPE", "pubsub") == b":1\r\n"
    await until(lambda: feed_test.changes == [True, False, True], "the feed again")
    assert feed_test.feed.up
    for pattern in "ab":
        assert server.cli("PUBLISH", f"{pattern}.X", pattern) == b":1\r\n"
    await until(lambda: len(feed_test.target.quotes) == 2, "the quotes")
    assert (feed_test.counters.feed_connects, feed_test.counters.feed_losses) == (2, 1)


@pytest_twisted.ensureDeferred
async def test_the_feed_comes_up_once_the_password_is_corrected(own_redis, start):
    server = own_redis()
    server.cli("ACL", "SETUSER", "bot", "on", ">wrong", "&*", "+@all")
    with capturedLogs() as events:
        feed_test = start(f"redis://bot:right@127.0.0.1:{server.port}", "a.*")
        await until(lambda: any("WRONGPASS" in formatEvent(e) for e in events), "the refusal")
    await until(lambda: feed_test.changes, "the news of it")
    assert feed_test.changes == [False]
    server.cli("ACL", "SETUSER", "bot", ">right")
    await until(lambda: feed_test.feed.up, "the feed")
    assert server.cli("PUBLISH", "a.X", "1") == b":1\r\n"
    await until(lambda: feed_test.target.quotes == [("X", b"1")], "the quote")


@pytest_twisted.ensureDeferred
async def test_a_stopped_feed_delivers_nothing(redis_server, start):
    feed_test = start(redis_server.socket_url, f"{CHANNEL}.*")
    await until(lambda: feed_test.feed.up, "the feed")
    await feed_test.feed.stop()
    assert not feed_test.feed.up
    await until(
        lambda: redis_server.cli("PUBLISH", f"{CHANNEL}.A", "1") == b":0\r\n", "no subscriber"
    )
    assert feed_test.target.quotes == []


# -- a server that is no Redis ---------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_garbage_is_logged_and_a_redis_on_the_same_port_is_used_later(own_redis, start):
    class Garbage(protocol.Protocol):
        def connectionMade(self) -> None:
            connections.append(self)
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        def connectionLost(self, reason) -> None:
            connections.remove(self)
            lost.append(self)

    connections: list[Garbage] = []
    lost: list[Garbage] = []
    number = free_port()
    factory = protocol.Factory.forProtocol(Garbage)
    port = reactor.listenTCP(number, factory, interface="127.0.0.1")
    with capturedLogs() as events:
        feed_test = start(f"redis://127.0.0.1:{number}", "a.*")
        await until(lambda: len(lost) >= 3, "three connections dropped")
        said = [formatEvent(event) for event in events]
        assert sum("Redis sent garbage: Protocol error" in line for line in said) == 1, said
    assert feed_test.changes == [False]
    await port.stopListening()
    await until(lambda: not connections, "the last connection's end")
    server = own_redis(port=number)
    await until(lambda: feed_test.feed.up, "the feed")
    server.cli("PUBLISH", "a.X", "1")
    await until(lambda: feed_test.target.quotes == [("X", b"1")], "the quote")


# -- byte by byte ----------------------------------------------------------------------------------


def message(channel: bytes, payload: bytes, pattern: bytes = b"q.*") -> bytes:
    """A message as Redis sends it."""
    words = (b"pmessage", pattern, channel, payload)
    return b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class OfflineFeed(FeedTest):
    """A feed without a Redis: the test plays its bytes and its clock."""

    def __init__(self, *patterns: str, **options: str) -> None:
        self.time = Clock()
        super().__init__(
            self.time, RedisAddress(path="/nowhere"), *(patterns or ("q.*",)), **options
        )
        self.connection = type("Subscriber", (_Subscriber,), {"feed": self.feed})(charset=None)
        self.transport = StringTransport()
        self.connection.makeConnection(self.transport)

    def read(self, data: bytes) -> None:
        self.connection.dataReceived(data)


def test_all_messages_of_one_read_make_one_turn():
    offline = OfflineFeed()
    offline.read(b"".join(message(b"q.S%d" % at, b"%d" % at) for at in range(500)))
    assert offline.target.turns == [[(f"S{at}", b"%d" % at) for at in range(500)]]
    offline.read(message(b"q.A", b"1"))
    assert offline.target.turns[1:] == [[("A", b"1")]]
    assert offline.counters.quotes_in == 501


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_messages_split_over_reads_arrive_whole(size):
    offline = OfflineFeed()
    data = message(b"q.A", b"1\r\n$3") + message(b"q.B", b"\xff\x00") + message(b"q.A", b"")
    for at in range(0, len(data), size):
        offline.read(data[at : at + size])
    assert offline.target.quotes == [("A", b"1\r\n$3"), ("B", b"\xff\x00"), ("A", b"")]
    assert offline.counters.quotes_in == 3


@pytest_twisted.ensureDeferred
async def test_replies_to_commands_are_no_messages():
    offline = OfflineFeed()
    asked = offline.connection.psubscribe([b"q.*"])
    subscribed = b"*3\r\n$10\r\npsubscribe\r\n$3\r\nq.*\r\n:1\r\n"
    offline.read(message(b"q.A", b"1") + subscribed + message(b"q.B", b"2"))
    assert await asked == [b"psubscribe", b"q.*", 1]
    assert offline.target.turns == [[("A", b"1"), ("B", b"2")]]
    assert offline.counters.quotes_in == 2


def test_an_exception_skips_one_message_and_the_rest_is_delivered(logged_failures):
    offline = OfflineFeed()
    offline.target.refused = {b"2"}
    offline.read(b"".join(message(b"q.A", b"%d" % at) for at in range(1, 5)))
    assert offline.target.turns == [[("A", b"1"), ("A", b"3"), ("A", b"4")]]
    assert not offline.transport.disconnecting
    events = logged_failures.flush(ArithmeticError)
    assert ["q.A" in formatEvent(event) for event in events] == [True]


def test_garbage_drops_the_connection_and_keeps_what_came_before_it():
    offline = OfflineFeed()
    with capturedLogs() as events:
        offline.read(message(b"q.A", b"1") + b"?garbage\r\n" + message(b"q.A", b"2"))
    assert offline.target.turns == [[("A", b"1")]]
    assert offline.transport.disconnected or offline.transport.disconnecting
    assert "Redis sent garbage: Protocol error" in formatEvent(events[0])


def test_messages_without_a_symbol_are_counted_and_logged_once_a_minute():
    offline = OfflineFeed()

    def told(count: int, data: bytes) -> list[str]:
        with capturedLogs() as events:
            offline.read(data * count)
        return [formatEvent(event) for event in events]

    nameless = message(b"q." + b"x" * 1000, b"1")
    first = told(10, nameless + message(b"q.A", b"1"))
    assert len(first) == 1
    assert "no symbol in the message on b'q.xx" in first[0]
    assert len(first[0]) < 250, "a long channel's name is cut"
    offline.time.advance(59.9)
    assert told(10, nameless) == []
    offline.time.advance(0.1)
    assert len(told(10, nameless)) == 1
    assert offline.counters.symbols_missing == 30
    assert offline.target.quotes == [("A", b"1")] * 10


def test_one_kind_of_fault_does_not_hide_another():
    offline = OfflineFeed()
    with capturedLogs() as events:
        offline.read(message(b"q.", b"1") + b"?garbage\r\n")
    assert len(events) == 2


# -- liveness of Redis ----------------------------------------------------------------------------

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"


class LivenessTest(FeedTest):
    """A feed that is up over a fake transport, with a fake clock."""

    def __init__(self) -> None:
        self.time = MemoryReactorClock()
        super().__init__(self.time, RedisAddress(path="/nowhere"), "q.*")
        self.feed.start()
        self.pings = 0
        self.transport = self.connect()

    def connect(self) -> StringTransport:
        """Accept the latest connection, and answer until the feed is up."""
        factory = self.time.unixClients[-1][1]
        connection = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.transport.protocol = connection
        connection.makeConnection(self.transport)
        assert self.transport.value() == PING
        connection.dataReceived(b"+PONG\r\n")
        connection.dataReceived(b"*3\r\n$10\r\npsubscribe\r\n$3\r\nq.*\r\n:1\r\n")
        assert self.feed.up
        self.transport.clear()
        return self.transport

    def after(self, seconds: float, *, answers: bool = True) -> None:
        """Let time pass in small steps; pings are answered, unless `answers` is false."""
        for _ in range(round(seconds / 0.05)):
            self.time.advance(0.05)
            pings = self.transport.value().count(PING)
            self.transport.clear()
            self.pings += pings
            if answers and pings:
                self.transport.protocol.dataReceived(PONG * pings)

    @property
    def dropped(self) -> bool:
        return self.transport.disconnected


def test_a_redis_that_answers_pings_stays_connected():
    watched = LivenessTest()
    watched.after(60.0)
    assert not watched.dropped
    assert 140 <= watched.pings <= 60 / PING_EVERY
    assert watched.target.quotes == []


def test_messages_prove_redis_alive_too():
    watched = LivenessTest()
    for _ in range(20):
        watched.after(SILENCE / 2, answers=False)
        watched.transport.protocol.dataReceived(message(b"q.A", b"1"))
    assert not watched.dropped


def test_silence_drops_the_connection_within_two_seconds():
    watched = LivenessTest()
    watched.after(10.0)
    with capturedLogs() as events:
        watched.after(SILENCE - 0.05, answers=False)
        assert not watched.dropped
        watched.after(1.9 - SILENCE + 0.05, answers=False)
    assert watched.dropped
    assert [formatEvent(e) for e in events] == [f"Redis has said nothing for {SILENCE:.1f} s"]
    watched.transport.protocol.connectionLost(Failure(ConnectionAborted()))
    assert watched.changes == [True, False]
    assert not watched.feed.up


@pytest.mark.parametrize("waited", [b"", PONG, message(b"q.A", b"1")])
def test_a_process_that_was_suspended_pings_before_it_drops_the_connection(waited):
    watched = LivenessTest()
    watched.after(1.0)
    # Nothing ran for a minute; what waited in the kernel, if anything, is read after the timers.
    watched.time.advance(60.0)
    if waited:
        watched.transport.protocol.dataReceived(waited)
    else:
        assert watched.transport.value() == PING
        watched.transport.clear()
        watched.transport.protocol.dataReceived(PONG)
    watched.after(5.0)
    assert not watched.dropped
    assert watched.pings > 5 / PING_EVERY - 3, "and goes on asking"


def test_the_next_connection_is_checked_like_the_first():
    watched = LivenessTest()
    watched.after(3.0, answers=False)
    assert watched.dropped
    watched.transport.protocol.connectionLost(Failure(ConnectionAborted()))
    asked = len(watched.time.unixClients)
    watched.time.advance(3.0)
    assert len(watched.time.unixClients) == asked + 1
    watched.connect()
    assert watched.changes == [True, False, True]
    watched.after(10.0)
    assert not watched.dropped
    watched.after(1.9, answers=False)
    assert watched.dropped


def test_a_stopped_feed_leaves_no_timers():
    watched = LivenessTest()
    stopping = defer.ensureDeferred(watched.feed.stop())
    watched.transport.protocol.connectionLost(Failure(ConnectionAborted()))
    assert stopping.called
    assert watched.time.getDelayedCalls() == []


# -- the size of reads -----------------------------------------------------------------------------


def test_long_turns_make_reads_smaller_and_short_ones_larger():
    clock = Clock()
    feed_test = FeedTest(clock, RedisAddress(path="/nowhere"), f"{CHANNEL}.*")
    connection = type("Connection", (_Subscriber,), {"feed": feed_test.feed})()
    transport = StringTransport()
    transport.bufferSize = 65536
    connection.transport = transport
    connection._messages = hiredis.Reader()
    slow = [0.0]
    used = [0.0]
    feed_test.feed.cpu = lambda: used[0]
    flush = feed_test.target.flush

    def flush_slowly() -> None:
        used[0] += slow[0]
        # Other processes may have the CPU meanwhile.
        clock.advance(1.0)
        flush()

    feed_test.target.flush = flush_slowly
    words = (b"pmessage", b"test_redisfeed.*", b"test_redisfeed.A", b"1")
    message = b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    def sizes(turns: int, seconds: float) -> list[int]:
        slow[0] = seconds
        read = []
        for _ in range(turns):
            connection.dataReceived(message)
            read.append(transport.bufferSize)
        return read

    assert sizes(2, 0.001) == [65536, 65536], "never above the default"
    assert sizes(6, TURN_BUDGET * 1.1) == [32768, 16384, 8192, 4096, 4096, 4096]
    assert sizes(2, TURN_BUDGET * 0.7) == [4096, 4096], "no change within the budget"
    assert sizes(5, TURN_BUDGET * 0.1) == [8192, 16384, 32768, 65536, 65536]
    assert len(feed_test.target.quotes) == 15


# -- what is measured ------------------------------------------------------------------------------


class MeasuredFeed:
    """A feed whose turns take as long, and send as many events, as the test sets."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1_763_799_999.5
        self.moment = 0.0
        #: seconds that the turns to come take, and the events that they send
        self.seconds, self.events = 0.0, 0
        self.feed_test = FeedTest(self.clock, RedisAddress(path="/nowhere"), f"{CHANNEL}.*")
        self.measures = self.feed_test.feed.measures = Measures(lambda: self.moment)
        self.feed_test.target.flush = self._flush
        self._connection = type("Connection", (_Subscriber,), {"feed": self.feed_test.feed})()
        self._connection.transport = StringTransport()
        self._connection._messages = hiredis.Reader()

    def _flush(self) -> None:
        self.moment += self.seconds
        self.feed_test.counters.events_out += self.events

    def read(self, *payloads: bytes, before: bytes = b"") -> None:
        """One read of quotes with these payloads."""
        data = before
        for payload in payloads:
            words = (b"pmessage", b"test_redisfeed.*", b"test_redisfeed.A", payload)
            data += b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        self._connection.dataReceived(data)

    def seen(self, name: str) -> tuple[int, float]:
        """How often a measure was taken, and the sum."""
        histogram = getattr(self.measures, name)
        return sum(histogram.counts), pytest.approx(histogram.sum)


def test_the_time_of_a_read_is_measured_once_for_each_event_sent():
    measured = MeasuredFeed()
    measured.seconds, measured.events = 0.25, 30
    measured.read(b"1", b"2", b"3")
    measured.seconds, measured.events = 0.5, 10
    measured.read(b"4")
    assert measured.seen("turn_quotes") == (2, 4)
    assert measured.seen("turn_seconds") == (2, 0.75)
    assert measured.seen("receive_to_write_seconds") == (40, 30 * 0.25 + 10 * 0.5)


def test_a_read_that_sent_nothing_has_no_time_to_write():
    measured = MeasuredFeed()
    measured.seconds = 0.25
    measured.read(b'{"ts":1763799999400}')
    assert measured.seen("turn_seconds") == (1, 0.25)
    assert measured.seen("receive_to_write_seconds") == (0, 0)
    assert measured.seen("feed_lag_seconds") == (1, 0.1)
    assert measured.seen("publish_to_write_seconds") == (0, 0)


def test_a_read_without_quotes_is_not_measured():
    measured = MeasuredFeed()
    measured.events = 3
    measured.read(before=PONG)
    for name in measured.measures.snapshot():
        assert measured.seen(name) == (0, 0), name


def test_the_lag_is_that_of_the_first_quote_of_a_read():
    measured = MeasuredFeed()
    measured.seconds, measured.events = 0.25, 7
    measured.read(b'{"ts":1763799999300}', b'{"ts":1763799999400}')
    assert measured.seen("feed_lag_seconds") == (1, 0.2)
    assert measured.seen("publish_to_write_seconds") == (1, 0.45)


@pytest.mark.parametrize("payload", [b"1", b'{"ts":1}', b'{"ts":1763713000000}', b""])
def test_without_a_plausible_timestamp_no_lag_is_measured(payload):
    measured = MeasuredFeed()
    measured.events = 7
    measured.read(payload, b'{"ts":1763799999400}')
    assert measured.seen("feed_lag_seconds") == (0, 0)
    assert measured.seen("publish_to_write_seconds") == (0, 0)
    assert measured.seen("turn_quotes") == (1, 2)


def test_the_lag_is_0_if_the_publishers_clock_is_ahead():
    measured = MeasuredFeed()
    measured.seconds, measured.events = 0.25, 1
    measured.read(b'{"ts":1763799999900}')
    assert measured.seen("feed_lag_seconds") == (1, 0)
    assert measured.seen("publish_to_write_seconds") == (1, 0.25)


@pytest.mark.parametrize("replies", [1, 2])
def test_the_lag_is_that_of_the_first_quote_after_replies_of_redis(replies):
    measured = MeasuredFeed()
    measured.events = 1
    measured.read(b'{"ts":1763799999300}', b'{"ts":1763799999400}', before=PONG * replies)
    assert measured.seen("turn_quotes") == (1, 2)
    assert measured.seen("feed_lag_seconds") == (1, 0.2)
