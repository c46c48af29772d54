"""A link to Redis: logs in, logs faults once a minute, and reconnects after all of them."""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import pytest_twisted
import txredisapi
from free_ports import free_port
from redis_process import RedisServer
from twisted.internet import defer, protocol, reactor
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from waiting import until

from pushservice.redis import link
from pushservice.redis.link import RedisLink
from pushservice.redis.url import RedisAddress, RedisTLS, redis_address


class LinkTest:
    """A link, with its changes and its failed attempts."""

    def __init__(
        self, address: RedisAddress, time: object = reactor, prepare=None, tls=None
    ) -> None:
        self.changes: list[bool] = []
        self.prepared = 0
        self.failed_attempts = 0
        self._prepare = prepare or (lambda connection: connection.ping())
        self.link = RedisLink(
            "test",
            time,
            address,
            txredisapi.RedisProtocol,
            self._count_and_prepare,
            self.changes.append,
            tls=tls,
            failed=self._count_failure,
        )

    def _count_failure(self) -> None:
        self.failed_attempts += 1

    def _count_and_prepare(self, connection):
        self.prepared += 1
        return self._prepare(connection)

    @property
    def is_up(self) -> bool:
        return self.link.up is not None


async def one_turn() -> None:
    """Let the reactor turn once: Twisted leaves an attempt it gave up planned until then."""
    turn: defer.Deferred[None] = defer.Deferred()
    reactor.callLater(0, turn.callback, None)
    await turn


@pytest.fixture
def connect():
    """connect(address, ...): a started link that is stopped at the end."""
    started = []

    def start(address: RedisAddress | str, **values: object) -> LinkTest:
        if isinstance(address, str):
            address = redis_address(address)
        started.append(LinkTest(address, **values))
        started[-1].link.start()
        return started[-1]

    async def stop() -> None:
        for test in started:
            await test.link.stop()
            assert not test.is_up
        await one_turn()

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


class LogLines:
    """The texts that were logged; `words in lines` looks for a part of one."""

    def __init__(self, events: list[dict[str, object]]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[str]:
        return iter([formatEvent(event) for event in self._events])

    def __contains__(self, words: str) -> bool:
        return self.count(words) > 0

    def __repr__(self) -> str:
        return repr(list(self))

    def count(self, words: str) -> int:
        return sum(words in line for line in self)


@contextmanager
def lines() -> Iterator[LogLines]:
    """The lines that are logged within the context."""
    with capturedLogs() as events:
        yield LogLines(events)


def ask_with_password(server: RedisServer, password: str, *words: str) -> bytes:
    """The reply to one command after logging in."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(f"AUTH {password}\r\n{' '.join(words)}\r\n".encode())
        reply = b""
        while reply.count(b"\r\n") < 2:
            reply += connection.recv(1000)
        return reply


# -- connecting ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_link_over_tcp_comes_up_logs_it_and_sets_keepalive(redis_server, connect):
    with lines() as said:
        test = connect(redis_server.url)
        assert not test.is_up
        await until(lambda: test.is_up, "the link")
        assert f"Redis {redis_server.url}: connected for the test" in said
    assert test.changes == [True]
    assert test.link.up.transport.getTcpKeepAlive()


@pytest_twisted.ensureDeferred
async def test_a_link_over_a_unix_socket_comes_up_and_converts_no_bytes(redis_server, connect):
    test = connect(redis_server.socket_url)
    await until(lambda: test.is_up, "the link")
    for value in (b"12.50", b"007", b"\xff\x00", "é".encode()):
        await test.link.up.set("test_redislink", value)
        assert await test.link.up.get("test_redislink") == value


@pytest_twisted.ensureDeferred
async def test_a_link_is_up_only_once_it_is_prepared(redis_server, connect):
    done: defer.Deferred[None] = defer.Deferred()
    test = connect(redis_server.socket_url, prepare=lambda connection: done)
    await until(lambda: test.prepared, "the preparation to begin")
    assert not test.is_up
    assert test.changes == []
    done.callback(None)
    assert test.is_up
    assert test.changes == [True]


# -- logging in ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_link_logs_in_with_a_password_alone(own_redis, connect):
    server = own_redis("--requirepass", "s@cret")
    test = connect(RedisAddress("127.0.0.1", server.port, password="s@cret"))
    await until(lambda: test.is_up, "the link")


@pytest_twisted.ensureDeferred
async def test_a_link_logs_in_with_a_user_and_a_password(own_redis, connect):
    server = own_redis()
    assert server.cli("ACL", "SETUSER", "bot", "on", ">secret", "+@all") == b"+OK\r\n"
    test = connect(RedisAddress("127.0.0.1", server.port, user="bot", password="secret"))
    await until(lambda: test.is_up, "the link")
    assert await test.link.up.execute_command("ACL", "WHOAMI") == b"bot"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("user", [None, "bot"])
async def test_a_wrong_password_is_logged_without_showing_it_and_retried(own_redis, connect, user):
    server = own_redis("--requirepass", "before")
    if user:
        ask_with_password(server, "before", "ACL SETUSER bot on >before +@all")
    with lines() as said:
        test = connect(RedisAddress("127.0.0.1", server.port, user=user, password="after"))
        await until(lambda: "no connection for the test: " in said, "the refusal to be said")
        await until(lambda: test.link.failures >= 2, "a second try")
        assert "WRONGPASS invalid username-password pair" in said
        assert "trying again until there is one" in said
        assert said.count("no connection") == 1
        assert "after" not in said
        assert "before" not in said
        assert (test.is_up, test.prepared, test.changes) == (False, 0, [])
        heal = "ACL SETUSER bot >after" if user else "CONFIG SET requirepass after"
        assert ask_with_password(server, "before", heal) == b"+OK\r\n+OK\r\n"
        await until(lambda: test.is_up, "the link")
    assert test.changes == [True]
    assert test.link.failures == 0


@pytest_twisted.ensureDeferred
async def test_a_missing_password_is_logged(own_redis, connect):
    server = own_redis("--requirepass", "secret")
    with lines() as said:
        test = connect(server.url)
        await until(lambda: "NOAUTH Authentication required" in said, "the refusal to be said")
    assert test.changes == []


# -- outages ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_redis_that_starts_later_is_connected_to(own_redis, connect):
    port = free_port()
    with lines() as said:
        test = connect(f"redis://127.0.0.1:{port}")
        await until(lambda: "no connection for the test" in said, "the refusal to be said")
        assert f"Redis redis://127.0.0.1:{port}: no connection for the test: Connection" in said
    assert test.changes == []
    own_redis(port=port)
    await until(lambda: test.is_up, "the link")
    assert test.changes == [True]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_is_restarted_is_reconnected_to(own_redis, connect):
    server = own_redis()
    test = connect(server.url)
    await until(lambda: test.is_up, "the link")
    with lines() as said:
        server.stop()
        await until(lambda: not test.is_up, "the loss")
        assert "connection of the test lost; reconnecting" in said
        await until(lambda: "no connection for the test" in said, "the outage to be said")
    assert test.changes == [True, False]
    own_redis(port=server.port)
    await until(lambda: test.is_up, "the link")
    assert test.changes == [True, False, True]
    assert test.prepared == 2
    assert await test.link.up.ping() in {"PONG", b"PONG"}


@pytest_twisted.ensureDeferred
async def test_a_connection_that_redis_drops_is_reconnected(own_redis, connect):
    server = own_redis()
    test = connect(server.socket_url)
    for count in (1, 2, 3):
        await until(lambda: test.is_up, "the link")
        assert test.prepared == count
        assert server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") == b":1\r\n"
        await until(lambda: not test.is_up, "the loss")
    assert test.changes == [True, False] * 3


@pytest_twisted.ensureDeferred
async def test_a_connection_that_fails_to_prepare_is_retried_with_growing_delays(
    redis_server, connect, monkeypatch
):
    monkeypatch.setattr(link, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(link.random, "uniform", lambda least, most: 1.0)
    times: list[float] = []

    def prepare(connection):
        times.append(reactor.seconds())
        return defer.fail(ValueError("not today"))

    with lines() as said:
        test = connect(redis_server.socket_url, prepare=prepare)
        await until(lambda: len(times) == 9, "nine tries")
        assert said.count("no connection for the test: not today; trying again") == 1
    # 0.01 * (1.7 + ... + 1.7**8) seconds; with a schedule that starts anew each time, 0.14.
    assert times[-1] - times[0] > 1.5
    assert test.changes == []


class SteppedReactor:
    """The reactor with a clock of its own, which counts connection attempts."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tries = 0

    def seconds(self) -> float:
        return self.now

    def callLater(self, *arguments: object, **values: object) -> object:
        return reactor.callLater(*arguments, **values)

    def connectUNIX(self, *arguments: object, **values: object) -> object:
        self.tries += 1
        return reactor.connectUNIX(*arguments, **values)


@pytest_twisted.ensureDeferred
async def test_one_outage_is_logged_once_a_minute(connect):
    time = SteppedReactor()
    with lines() as said, tempfile.TemporaryDirectory(prefix="quotepush-test-") as place:
        connect(f"unix://{place}/nobody", time=time)
        await until(lambda: time.tries == 3, "three tries")
        assert said.count("no connection for the test: ") == 1
        time.now += 59
        await until(lambda: time.tries == 4, "a fourth try")
        assert said.count("no connection for the test: ") == 1
        time.now += 1
        await until(lambda: said.count("no connection for the test: ") == 2, "the next line")


class ManualReactor(SteppedReactor):
    """The reactor with a clock of its own for timers too, which `advance` moves."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.callLater = self.clock.callLater
        self.seconds = self.clock.seconds
        self.advance = self.clock.advance


@pytest_twisted.ensureDeferred
async def test_a_redis_that_hangs_times_out_and_is_connected_to_when_it_resumes(own_redis, connect):
    server = own_redis()
    server.process.send_signal(signal.SIGSTOP)
    time = ManualReactor()
    with lines() as said:
        test = connect(server.socket_url, time=time)
        for count in (1, 2):
            await until(lambda: test.link._preparing is not None, "the connection")
            time.advance(link.PREPARE_TIMEOUT - 0.01)
            assert test.failed_attempts == count - 1
            time.advance(0.01)
            await until(lambda count=count: test.failed_attempts == count, "the end of the attempt")
            time.advance(link.LAST_RETRY)
        assert said.count("no connection for the test: it accepted the connection and was not") == 1
        server.process.send_signal(signal.SIGCONT)
        await until(lambda: test.is_up, "the link")
    assert test.changes == [True]
    await test.link.stop()
    assert not time.clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_every_failed_attempt_is_reported(own_redis, connect):
    server = own_redis()
    time = ManualReactor()
    test = connect(server.socket_url, time=time)
    await until(lambda: test.is_up, "the link")
    assert test.failed_attempts == 0
    server.stop()
    await until(lambda: not test.is_up, "the loss")
    assert test.failed_attempts == 0, "a loss is none"
    for count in (1, 2, 3):
        time.advance(link.LAST_RETRY)
        await until(lambda count=count: test.failed_attempts == count, "the refusal")
    assert test.link.failures == 3


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("share", [0.5, 1.5])
async def test_delays_of_retries_grow_to_a_maximum(own_redis, connect, monkeypatch, share):
    def vary(least: float, most: float) -> float:
        assert (least, most) == (0.5, 1.5)
        return share

    monkeypatch.setattr(link.random, "uniform", vary)
    time = ManualReactor()
    server = own_redis()
    test = connect(server.socket_url, time=time)
    await until(lambda: test.is_up, "the link")
    server.stop()
    await until(lambda: not test.is_up, "the loss")
    delays = []
    for count in range(1, 9):
        [call] = time.clock.getDelayedCalls()
        delays.append(call.getTime() - time.seconds())
        time.advance(delays[-1])
        await until(lambda count=count: test.failed_attempts == count, "the refusal")
    assert delays[0] == pytest.approx(0.2 * share)
    assert delays[1] == pytest.approx(0.34 * share)
    assert delays[-1] == pytest.approx(2 * share)
    assert max(delays) <= link.LAST_RETRY


@pytest_twisted.ensureDeferred
async def test_an_aborted_link_reconnects(redis_server, connect):
    test = connect(redis_server.url)
    test.link.abort()
    await until(lambda: test.is_up, "the link")
    test.link.abort()
    await until(lambda: test.changes == [True, False, True], "the link again")
    assert test.prepared == 2


@pytest_twisted.ensureDeferred
async def test_preparing_is_cancelled_when_the_connection_is_lost(redis_server, connect):
    given_up: list[defer.Deferred[None]] = []
    time = ManualReactor()
    test = connect(
        redis_server.socket_url,
        time=time,
        prepare=lambda connection: defer.Deferred(given_up.append),
    )
    await until(lambda: test.prepared, "the preparation to begin")
    test.link.abort()
    await until(lambda: test.failed_attempts == 1, "the refusal")
    assert len(given_up) == 1
    assert len(time.clock.getDelayedCalls()) == 1, "the next attempt, and nothing else"


@pytest_twisted.ensureDeferred
async def test_a_redis_that_refuses_commands_is_retried_until_it_accepts_them(own_redis, connect):
    # A replica whose master is away, and which is told to serve nobody until it is back.
    server = own_redis(
        *("--replicaof", "127.0.0.1", str(free_port()), "--replica-serve-stale-data", "no")
    )
    with lines() as said:
        test = connect(server.socket_url, prepare=lambda connection: connection.get("x"))
        await until(lambda: test.failed_attempts >= 2, "two refusals")
        assert "no connection for the test: MASTERDOWN Link with MASTER is down" in said
        assert server.cli("REPLICAOF", "NO", "ONE") == b"+OK\r\n"
        await until(lambda: test.is_up, "the link")


class NotRedis(protocol.Protocol):
    """A server that is not Redis."""

    def connectionMade(self) -> None:
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_redis_is_logged_without_a_traceback(connect):
    port = reactor.listenTCP(0, protocol.Factory.forProtocol(NotRedis), interface="127.0.0.1")
    with lines() as said:
        test = connect(f"redis://127.0.0.1:{port.getHost().port}")
        await until(lambda: test.failed_attempts >= 2, "two refusals")
        assert [line.partition("for the test: ")[2] for line in said] == [
            'Protocol error, got "H" as reply type byte; trying again until there is one'
        ]
        await test.link.stop()
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_callback_that_raises_does_not_end_the_link(redis_server, connect, logged_failures):
    test = connect(redis_server.url)
    test.link._changed = test.link._refused = lambda *news: 1 / 0
    await until(lambda: test.is_up, "the link")
    test.link.abort()
    await until(lambda: test.prepared == 2 and test.is_up, "the link again")
    await test.link.stop()
    assert len(logged_failures.flush(ZeroDivisionError)) == 4


def test_unusable_tls_files_are_refused_when_the_link_is_made(tmp_path):
    address = RedisAddress("host", tls=True)
    with pytest.raises(ValueError, match=r"can't read the certificate .*nowhere: No such file"):
        LinkTest(address, tls=RedisTLS(ca=tmp_path / "nowhere"))
    LinkTest(RedisAddress("host"), tls=RedisTLS(ca=tmp_path / "nowhere"))


# -- stopping --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_stopping_disconnects_for_good_and_logs_nothing(own_redis, connect):
    server = own_redis()
    test = connect(server.socket_url)
    await until(lambda: test.is_up, "the link")
    with lines() as said:
        await test.link.stop()
        await test.link.stop()
        assert not test.is_up
        await until(lambda: b"connected_clients:1\r" in server.cli("INFO", "clients"), "the end")
        assert list(said) == []
    assert not reactor.getDelayedCalls(), "nothing is planned"


@pytest_twisted.ensureDeferred
async def test_a_link_can_be_stopped_without_having_been_started(redis_server):
    test = LinkTest(redis_address(redis_server.url))
    await test.link.stop()
    assert test.changes == []


@pytest_twisted.ensureDeferred
async def test_stopping_while_it_connects_is_silent(redis_server, connect):
    with lines() as said:
        test = connect(redis_server.url)
        await test.link.stop()
        assert "no connection" not in said
    assert test.prepared == 0


@pytest_twisted.ensureDeferred
async def test_stopping_while_it_prepares_is_silent_and_never_comes_up(redis_server, connect):
    def prepare(connection):
        return connection.execute_command("BLPOP", "test_redislink_never", "0")

    with lines() as said:
        test = connect(redis_server.socket_url, prepare=prepare)
        await until(lambda: test.prepared, "the preparation to begin")
        await test.link.stop()
        assert list(said) == []
    assert test.changes == []


@pytest_twisted.ensureDeferred
async def test_stopping_during_an_outage_leaves_no_timer(connect):
    time = SteppedReactor()
    with tempfile.TemporaryDirectory(prefix="quotepush-test-") as place:
        test = connect(f"unix://{place}/nobody", time=time)
        await until(lambda: time.tries == 2, "two tries")
        await test.link.stop()
    await one_turn()
    assert not reactor.getDelayedCalls()
