"""One feed: every message once, its bytes untouched, one flush a read, a dead Redis noticed."""

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

from pushservice.feed.listening import Everything
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


class Fed:
    """A feed with its target and its counters."""

    def __init__(self, time: object, address: RedisAddress, *patterns: str, **ways: str) -> None:
        self.target = Target()
        self.counters = Counters()
        #: what was told of the feed, repetitions left out
        self.changes: list[bool] = []
        listening = Everything(patterns, SymbolReader(patterns, **ways))
        self.feed = RedisFeed(
            time, address, listening, self.target, self.counters, self.feed_changed
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

    def begin(url: str, *patterns: str, **ways: str) -> Fed:
        started.append(Fed(reactor, redis_address(url), *patterns, **ways))
        started[-1].feed.start()
        return started[-1]

    yield begin
    for fed in started:
        pytest_twisted.blockon(defer.ensureDeferred(fed.feed.stop()))
        assert not fed.feed.up


# -- with a real Redis -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_every_payload_arrives_as_it_was_published_and_in_order(redis_server, start):
    fed = start(redis_server.url, f"{CHANNEL}.*")
    await until(lambda: fed.feed.up, "the feed")
    payloads = [b"12.50", b"007", b"\xff\x00", b"", b'{"last":10.50}', b"\r\n", b"x" * 200_000]
    for at, payload in enumerate(payloads):
        assert redis_server.cli("PUBLISH", f"{CHANNEL}.S{at}", payload) == b":1\r\n"
    await until(lambda: len(fed.target.quotes) == len(payloads), "the quotes")
    assert fed.target.quotes == [(f"S{at}", payload) for at, payload in enumerate(payloads)]
    assert fed.counters.quotes_in == len(payloads)
    assert fed.changes == [True]


@pytest_twisted.ensureDeferred
async def test_all_patterns_are_subscribed_and_overlaps_count_once(redis_server, start):
    patterns = (f"{CHANNEL}.*", "other_redisfeed.*", f"{CHANNEL}*.AAPL")
    fed = start(redis_server.socket_url, *patterns)
    await until(lambda: fed.feed.up, "the feed")
    assert redis_server.cli("PUBLISH", f"{CHANNEL}.AAPL", "1") == b":2\r\n"
    assert redis_server.cli("PUBLISH", "other_redisfeed.X", "2") == b":1\r\n"
    await until(lambda: len(fed.target.quotes) >= 2, "the quotes")
    assert fed.target.quotes == [("AAPL", b"1"), ("X", b"2")]


@pytest_twisted.ensureDeferred
async def test_the_same_pattern_twice_still_comes_up_and_delivers_once(redis_server, start):
    fed = start(redis_server.socket_url, f"{CHANNEL}.*", f"{CHANNEL}.*")
    await until(lambda: fed.feed.up, "the feed")
    redis_server.cli("PUBLISH", f"{CHANNEL}.A", "1")
    await until(lambda: fed.target.quotes, "the quote")
    assert fed.target.quotes == [("A", b"1")]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("way", ["killed", "dropped"])
async def test_a_lost_redis_is_told_and_the_patterns_are_subscribed_again(own_redis, start, way):
    server = own_redis()
    fed = start(server.url, "a.*", "b.*")
    await until(lambda: fed.feed.up, "the feed")
    if way == "killed":
        server.stop()
        await until(lambda: fed.changes == [True, False], "the loss")
        server = own_redis(port=server.port)
    else:
        assert server.cli("CLIENT", "KILL", "TYPE", "pubsub") == b":1\r\n"
    await until(lambda: fed.changes == [True, False, True], "the feed again")
    assert fed.feed.up
    for pattern in "ab":
        assert server.cli("PUBLISH", f"{pattern}.X", pattern) == b":1\r\n"
    await until(lambda: len(fed.target.quotes) == 2, "the quotes")
    assert (fed.counters.feed_connects, fed.counters.feed_losses) == (2, 1)


@pytest_twisted.ensureDeferred
async def test_a_password_set_right_lets_the_feed_in(own_redis, start):
    server = own_redis()
    server.cli("ACL", "SETUSER", "bot", "on", ">wrong", "&*", "+@all")
    with capturedLogs() as events:
        fed = start(f"redis://bot:right@127.0.0.1:{server.port}", "a.*")
        await until(lambda: any("WRONGPASS" in formatEvent(e) for e in events), "the refusal")
    await until(lambda: fed.changes, "the news of it")
    assert fed.changes == [False]
    server.cli("ACL", "SETUSER", "bot", ">right")
    await until(lambda: fed.feed.up, "the feed")
    assert server.cli("PUBLISH", "a.X", "1") == b":1\r\n"
    await until(lambda: fed.target.quotes == [("X", b"1")], "the quote")


@pytest_twisted.ensureDeferred
async def test_a_stopped_feed_delivers_no_more(redis_server, start):
    fed = start(redis_server.socket_url, f"{CHANNEL}.*")
    await until(lambda: fed.feed.up, "the feed")
    await fed.feed.stop()
    assert not fed.feed.up
    await until(
        lambda: redis_server.cli("PUBLISH", f"{CHANNEL}.A", "1") == b":0\r\n", "no subscriber"
    )
    assert fed.target.quotes == []


# -- a server that is no Redis ---------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_garbage_is_said_and_a_redis_that_comes_instead_is_used(own_redis, start):
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
        fed = start(f"redis://127.0.0.1:{number}", "a.*")
        await until(lambda: len(lost) >= 3, "three connections dropped")
        said = [formatEvent(event) for event in events]
        assert sum("Redis sent garbage: Protocol error" in line for line in said) == 1, said
    assert fed.changes == [False]
    await port.stopListening()
    await until(lambda: not connections, "the last connection's end")
    server = own_redis(port=number)
    await until(lambda: fed.feed.up, "the feed")
    server.cli("PUBLISH", "a.X", "1")
    await until(lambda: fed.target.quotes == [("X", b"1")], "the quote")


# -- byte by byte ----------------------------------------------------------------------------------


def message(channel: bytes, payload: bytes, pattern: bytes = b"q.*") -> bytes:
    """A message as Redis sends it."""
    words = (b"pmessage", pattern, channel, payload)
    return b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Wired(Fed):
    """A feed whose connection's bytes, and whose time, the test decides."""

    def __init__(self, *patterns: str, **ways: str) -> None:
        self.time = Clock()
        super().__init__(self.time, RedisAddress(path="/nowhere"), *(patterns or ("q.*",)), **ways)
        self.connection = type("Subscriber", (_Subscriber,), {"feed": self.feed})(charset=None)
        self.transport = StringTransport()
        self.connection.makeConnection(self.transport)

    def read(self, data: bytes) -> None:
        self.connection.dataReceived(data)


def test_all_messages_of_one_read_make_one_turn():
    wired = Wired()
    wired.read(b"".join(message(b"q.S%d" % at, b"%d" % at) for at in range(500)))
    assert wired.target.turns == [[(f"S{at}", b"%d" % at) for at in range(500)]]
    wired.read(message(b"q.A", b"1"))
    assert wired.target.turns[1:] == [[("A", b"1")]]
    assert wired.counters.quotes_in == 501


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_messages_split_over_reads_at_any_place_arrive_whole(size):
    wired = Wired()
    data = message(b"q.A", b"1\r\n$3") + message(b"q.B", b"\xff\x00") + message(b"q.A", b"")
    for at in range(0, len(data), size):
        wired.read(data[at : at + size])
    assert wired.target.quotes == [("A", b"1\r\n$3"), ("B", b"\xff\x00"), ("A", b"")]
    assert wired.counters.quotes_in == 3


@pytest_twisted.ensureDeferred
async def test_answers_to_commands_are_told_from_messages():
    wired = Wired()
    asked = wired.connection.psubscribe([b"q.*"])
    subscribed = b"*3\r\n$10\r\npsubscribe\r\n$3\r\nq.*\r\n:1\r\n"
    wired.read(message(b"q.A", b"1") + subscribed + message(b"q.B", b"2"))
    assert await asked == [b"psubscribe", b"q.*", 1]
    assert wired.target.turns == [[("A", b"1"), ("B", b"2")]]
    assert wired.counters.quotes_in == 2


def test_an_exception_skips_one_message_and_the_rest_is_delivered(logged_failures):
    wired = Wired()
    wired.target.refused = {b"2"}
    wired.read(b"".join(message(b"q.A", b"%d" % at) for at in range(1, 5)))
    assert wired.target.turns == [[("A", b"1"), ("A", b"3"), ("A", b"4")]]
    assert not wired.transport.disconnecting
    events = logged_failures.flush(ArithmeticError)
    assert ["q.A" in formatEvent(event) for event in events] == [True]


def test_garbage_drops_the_connection_and_keeps_what_came_before_it():
    wired = Wired()
    with capturedLogs() as events:
        wired.read(message(b"q.A", b"1") + b"?garbage\r\n" + message(b"q.A", b"2"))
    assert wired.target.turns == [[("A", b"1")]]
    assert wired.transport.disconnected or wired.transport.disconnecting
    assert "Redis sent garbage: Protocol error" in formatEvent(events[0])


def test_messages_without_a_symbol_are_counted_and_told_of_once_a_minute():
    wired = Wired()

    def told(count: int, data: bytes) -> list[str]:
        with capturedLogs() as events:
            wired.read(data * count)
        return [formatEvent(event) for event in events]

    nameless = message(b"q." + b"x" * 1000, b"1")
    first = told(10, nameless + message(b"q.A", b"1"))
    assert len(first) == 1
    assert "no symbol in the message on b'q.xx" in first[0]
    assert len(first[0]) < 250, "a long channel's name is cut"
    wired.time.advance(59.9)
    assert told(10, nameless) == []
    wired.time.advance(0.1)
    assert len(told(10, nameless)) == 1
    assert wired.counters.symbols_missing == 30
    assert wired.target.quotes == [("A", b"1")] * 10


def test_one_kind_of_fault_does_not_hide_another():
    wired = Wired()
    with capturedLogs() as events:
        wired.read(message(b"q.", b"1") + b"?garbage\r\n")
    assert len(events) == 2


# -- a Redis that says nothing --------------------------------------------------------------------

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"


class Watched(Fed):
    """A feed that is up over a transport of the test's, with a clock of the test's."""

    def __init__(self) -> None:
        self.time = MemoryReactorClock()
        super().__init__(self.time, RedisAddress(path="/nowhere"), "q.*")
        self.feed.start()
        self.pings = 0
        self.transport = self.connect()

    def connect(self) -> StringTransport:
        """Take the connection that was asked for last, and answer until the feed is up."""
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
        """Let time pass in small steps; the pings of each are answered, unless they are not."""
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


def test_a_redis_that_answers_pings_is_left_alone_and_asked_again_and_again():
    watched = Watched()
    watched.after(60.0)
    assert not watched.dropped
    assert 140 <= watched.pings <= 60 / PING_EVERY
    assert watched.target.quotes == []


def test_messages_are_a_sign_of_life_too():
    watched = Watched()
    for _ in range(20):
        watched.after(SILENCE / 2, answers=False)
        watched.transport.protocol.dataReceived(message(b"q.A", b"1"))
    assert not watched.dropped


def test_silence_drops_the_connection_not_before_its_time_and_within_two_seconds():
    watched = Watched()
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
def test_a_process_that_stood_still_itself_asks_before_it_drops_a_redis_that_is_well(waited):
    watched = Watched()
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


def test_the_next_connection_is_watched_over_like_the_first():
    watched = Watched()
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


def test_a_stopped_feed_plans_nothing():
    watched = Watched()
    stopping = defer.ensureDeferred(watched.feed.stop())
    watched.transport.protocol.connectionLost(Failure(ConnectionAborted()))
    assert stopping.called
    assert watched.time.getDelayedCalls() == []


# -- room for others -------------------------------------------------------------------------------


def test_a_turn_that_takes_long_makes_reads_smaller_until_there_is_room_again():
    clock = Clock()
    fed = Fed(clock, RedisAddress(path="/nowhere"), f"{CHANNEL}.*")
    connection = type("Connection", (_Subscriber,), {"feed": fed.feed})()
    transport = StringTransport()
    transport.bufferSize = 65536
    connection.transport = transport
    connection._messages = hiredis.Reader()
    slow = [0.0]
    used = [0.0]
    fed.feed.cpu = lambda: used[0]
    flush = fed.target.flush

    def flush_slowly() -> None:
        used[0] += slow[0]
        # Others may have the CPU meanwhile, for however long.
        clock.advance(1.0)
        flush()

    fed.target.flush = flush_slowly
    words = (b"pmessage", b"test_redisfeed.*", b"test_redisfeed.A", b"1")
    message = b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    def sizes(turns: int, seconds: float) -> list[int]:
        slow[0] = seconds
        read = []
        for _ in range(turns):
            connection.dataReceived(message)
            read.append(transport.bufferSize)
        return read

    assert sizes(2, 0.001) == [65536, 65536], "never beyond the usual"
    assert sizes(6, TURN_BUDGET * 1.1) == [32768, 16384, 8192, 4096, 4096, 4096]
    assert sizes(2, TURN_BUDGET * 0.7) == [4096, 4096], "no change where it fits"
    assert sizes(5, TURN_BUDGET * 0.1) == [8192, 16384, 32768, 65536, 65536]
    assert len(fed.target.quotes) == 15


# -- what is measured ------------------------------------------------------------------------------


class Measured:
    """A feed whose turns take as long, and send as much, as a test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1_763_799_999.5
        self.moment = 0.0
        #: seconds that the turns to come take, and the events that they send
        self.seconds, self.events = 0.0, 0
        self.fed = Fed(self.clock, RedisAddress(path="/nowhere"), f"{CHANNEL}.*")
        self.measures = self.fed.feed.measures = Measures(lambda: self.moment)
        self.fed.target.flush = self._flush
        self._connection = type("Connection", (_Subscriber,), {"feed": self.fed.feed})()
        self._connection.transport = StringTransport()
        self._connection._messages = hiredis.Reader()

    def _flush(self) -> None:
        self.moment += self.seconds
        self.fed.counters.events_out += self.events

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


def test_a_reads_quotes_and_its_time_are_measured_once_for_each_event_it_sent():
    measured = Measured()
    measured.seconds, measured.events = 0.25, 30
    measured.read(b"1", b"2", b"3")
    measured.seconds, measured.events = 0.5, 10
    measured.read(b"4")
    assert measured.seen("turn_quotes") == (2, 4)
    assert measured.seen("turn_seconds") == (2, 0.75)
    assert measured.seen("receive_to_write_seconds") == (40, 30 * 0.25 + 10 * 0.5)


def test_what_nobody_got_was_written_to_nobody_in_whatever_time():
    measured = Measured()
    measured.seconds = 0.25
    measured.read(b'{"ts":1763799999400}')
    assert measured.seen("turn_seconds") == (1, 0.25)
    assert measured.seen("receive_to_write_seconds") == (0, 0)
    assert measured.seen("feed_lag_seconds") == (1, 0.1)
    assert measured.seen("publish_to_write_seconds") == (0, 0)


def test_a_read_without_quotes_is_no_turn():
    measured = Measured()
    measured.events = 3
    measured.read(before=PONG)
    for name in measured.measures.snapshot():
        assert measured.seen(name) == (0, 0), name


def test_the_first_quote_of_a_read_tells_since_when_it_was_on_its_way():
    measured = Measured()
    measured.seconds, measured.events = 0.25, 7
    measured.read(b'{"ts":1763799999300}', b'{"ts":1763799999400}')
    assert measured.seen("feed_lag_seconds") == (1, 0.2)
    assert measured.seen("publish_to_write_seconds") == (1, 0.45)


@pytest.mark.parametrize("payload", [b"1", b'{"ts":1}', b'{"ts":1763713000000}', b""])
def test_without_a_moment_that_can_be_nothing_is_known_of_the_way(payload):
    measured = Measured()
    measured.events = 7
    measured.read(payload, b'{"ts":1763799999400}')
    assert measured.seen("feed_lag_seconds") == (0, 0)
    assert measured.seen("publish_to_write_seconds") == (0, 0)
    assert measured.seen("turn_quotes") == (1, 2)


def test_a_publisher_whose_clock_is_ahead_is_late_by_nothing():
    measured = Measured()
    measured.seconds, measured.events = 0.25, 1
    measured.read(b'{"ts":1763799999900}')
    assert measured.seen("feed_lag_seconds") == (1, 0)
    assert measured.seen("publish_to_write_seconds") == (1, 0.25)


def test_an_answer_of_redis_before_the_quotes_of_a_read_is_no_quote():
    measured = Measured()
    measured.events = 1
    measured.read(b'{"ts":1763799999400}', before=PONG)
    assert measured.seen("turn_quotes") == (1, 1)
    assert measured.seen("feed_lag_seconds") == (0, 0)
