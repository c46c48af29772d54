"""A link to Redis: logs in, says what is wrong once a minute, and comes back from everything."""

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


class Watched:
    """A link, and what it told."""

    def __init__(
        self, address: RedisAddress, time: object = reactor, prepare=None, tls=None
    ) -> None:
        self.changes: list[bool] = []
        self.prepared = 0
        self.refusals = 0
        self._prepare = prepare or (lambda connection: connection.ping())
        self.link = RedisLink(
            "test",
            time,
            address,
            txredisapi.RedisProtocol,
            self._count_and_prepare,
            self.changes.append,
            tls=tls,
            refused=self._count_refusal,
        )

    def _count_refusal(self) -> None:
        self.refusals += 1

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

    def start(address: RedisAddress | str, **values: object) -> Watched:
        if isinstance(address, str):
            address = redis_address(address)
        started.append(Watched(address, **values))
        started[-1].link.start()
        return started[-1]

    async def stop() -> None:
        for watched in started:
            await watched.link.stop()
            assert not watched.is_up
        await one_turn()

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


class Lines:
    """What was logged since, as texts; `words in lines` looks for a part of one."""

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
def lines() -> Iterator[Lines]:
    """What is logged inside."""
    with capturedLogs() as events:
        yield Lines(events)


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
async def test_a_link_over_tcp_comes_up_says_so_and_probes_for_dead_peers(redis_server, connect):
    with lines() as said:
        watched = connect(redis_server.url)
        assert not watched.is_up
        await until(lambda: watched.is_up, "the link")
        assert f"Redis {redis_server.url}: connected for the test" in said
    assert watched.changes == [True]
    assert watched.link.up.transport.getTcpKeepAlive()


@pytest_twisted.ensureDeferred
async def test_a_link_over_a_unix_socket_comes_up_and_leaves_bytes_alone(redis_server, connect):
    watched = connect(redis_server.socket_url)
    await until(lambda: watched.is_up, "the link")
    for value in (b"12.50", b"007", b"\xff\x00", "é".encode()):
        await watched.link.up.set("test_redislink", value)
        assert await watched.link.up.get("test_redislink") == value


@pytest_twisted.ensureDeferred
async def test_a_link_is_up_only_once_its_preparation_is_done(redis_server, connect):
    done: defer.Deferred[None] = defer.Deferred()
    watched = connect(redis_server.socket_url, prepare=lambda connection: done)
    await until(lambda: watched.prepared, "the preparation to begin")
    assert not watched.is_up
    assert watched.changes == []
    done.callback(None)
    assert watched.is_up
    assert watched.changes == [True]


# -- logging in ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_link_logs_in_with_the_one_password_of_the_server(own_redis, connect):
    server = own_redis("--requirepass", "s@cret")
    watched = connect(RedisAddress("127.0.0.1", server.port, password="s@cret"))
    await until(lambda: watched.is_up, "the link")


@pytest_twisted.ensureDeferred
async def test_a_link_logs_in_with_a_user_and_a_password(own_redis, connect):
    server = own_redis()
    assert server.cli("ACL", "SETUSER", "bot", "on", ">secret", "+@all") == b"+OK\r\n"
    watched = connect(RedisAddress("127.0.0.1", server.port, user="bot", password="secret"))
    await until(lambda: watched.is_up, "the link")
    assert await watched.link.up.execute_command("ACL", "WHOAMI") == b"bot"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("user", [None, "bot"])
async def test_a_wrong_password_is_said_without_showing_it_and_heals(own_redis, connect, user):
    server = own_redis("--requirepass", "before")
    if user:
        ask_with_password(server, "before", "ACL SETUSER bot on >before +@all")
    with lines() as said:
        watched = connect(RedisAddress("127.0.0.1", server.port, user=user, password="after"))
        await until(lambda: "no connection for the test: " in said, "the refusal to be said")
        await until(lambda: watched.link.failures >= 2, "a second try")
        assert "WRONGPASS invalid username-password pair" in said
        assert "trying again until there is one" in said
        assert said.count("no connection") == 1
        assert "after" not in said
        assert "before" not in said
        assert (watched.is_up, watched.prepared, watched.changes) == (False, 0, [])
        heal = "ACL SETUSER bot >after" if user else "CONFIG SET requirepass after"
        assert ask_with_password(server, "before", heal) == b"+OK\r\n+OK\r\n"
        await until(lambda: watched.is_up, "the link")
    assert watched.changes == [True]
    assert watched.link.failures == 0


@pytest_twisted.ensureDeferred
async def test_a_password_that_is_missing_is_said(own_redis, connect):
    server = own_redis("--requirepass", "secret")
    with lines() as said:
        watched = connect(server.url)
        await until(lambda: "NOAUTH Authentication required" in said, "the refusal to be said")
    assert watched.changes == []


# -- outages ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_redis_that_comes_later_is_found(own_redis, connect):
    port = free_port()
    with lines() as said:
        watched = connect(f"redis://127.0.0.1:{port}")
        await until(lambda: "no connection for the test" in said, "the refusal to be said")
        assert f"Redis redis://127.0.0.1:{port}: no connection for the test: Connection" in said
    assert watched.changes == []
    own_redis(port=port)
    await until(lambda: watched.is_up, "the link")
    assert watched.changes == [True]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_is_killed_and_comes_back_is_found_again(own_redis, connect):
    server = own_redis()
    watched = connect(server.url)
    await until(lambda: watched.is_up, "the link")
    with lines() as said:
        server.stop()
        await until(lambda: not watched.is_up, "the loss")
        assert "connection of the test lost; reconnecting" in said
        await until(lambda: "no connection for the test" in said, "the outage to be said")
    assert watched.changes == [True, False]
    own_redis(port=server.port)
    await until(lambda: watched.is_up, "the link")
    assert watched.changes == [True, False, True]
    assert watched.prepared == 2
    assert await watched.link.up.ping() in {"PONG", b"PONG"}


@pytest_twisted.ensureDeferred
async def test_a_connection_that_redis_drops_is_made_again(own_redis, connect):
    server = own_redis()
    watched = connect(server.socket_url)
    for count in (1, 2, 3):
        await until(lambda: watched.is_up, "the link")
        assert watched.prepared == count
        assert server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") == b":1\r\n"
        await until(lambda: not watched.is_up, "the loss")
    assert watched.changes == [True, False] * 3


@pytest_twisted.ensureDeferred
async def test_a_connection_that_cannot_be_prepared_is_dropped_and_tried_ever_more_slowly(
    redis_server, connect, monkeypatch
):
    monkeypatch.setattr(link, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(link.random, "uniform", lambda least, most: 1.0)
    times: list[float] = []

    def prepare(connection):
        times.append(reactor.seconds())
        return defer.fail(ValueError("not today"))

    with lines() as said:
        watched = connect(redis_server.socket_url, prepare=prepare)
        await until(lambda: len(times) == 9, "nine tries")
        assert said.count("no connection for the test: not today; trying again") == 1
    # 0.01 * (1.7 + ... + 1.7**8) seconds; with a schedule that starts anew each time, 0.14.
    assert times[-1] - times[0] > 1.5
    assert watched.changes == []


class SteppedReactor:
    """The reactor with a time of its own, which counts the connections it is asked for."""

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
async def test_one_outage_is_told_once_a_minute(connect):
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


class HandTime(SteppedReactor):
    """The reactor with a time of its own for timers too, which moves by `advance`."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.callLater = self.clock.callLater
        self.seconds = self.clock.seconds
        self.advance = self.clock.advance


@pytest_twisted.ensureDeferred
async def test_a_redis_that_hangs_is_given_up_after_a_while_and_found_when_it_goes_on(
    own_redis, connect
):
    server = own_redis()
    server.process.send_signal(signal.SIGSTOP)
    time = HandTime()
    with lines() as said:
        watched = connect(server.socket_url, time=time)
        for count in (1, 2):
            await until(lambda: watched.link._readying is not None, "the connection")
            time.advance(link.PREPARE_TIMEOUT - 0.01)
            assert watched.refusals == count - 1
            time.advance(0.01)
            await until(lambda count=count: watched.refusals == count, "the end of the attempt")
            time.advance(link.LAST_RETRY)
        assert said.count("no connection for the test: it took the connection and was not") == 1
        server.process.send_signal(signal.SIGCONT)
        await until(lambda: watched.is_up, "the link")
    assert watched.changes == [True]
    await watched.link.stop()
    assert not time.clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_every_attempt_that_comes_to_nothing_is_told(own_redis, connect):
    server = own_redis()
    time = HandTime()
    watched = connect(server.socket_url, time=time)
    await until(lambda: watched.is_up, "the link")
    assert watched.refusals == 0
    server.stop()
    await until(lambda: not watched.is_up, "the loss")
    assert watched.refusals == 0, "a loss is none"
    for count in (1, 2, 3):
        time.advance(link.LAST_RETRY)
        await until(lambda count=count: watched.refusals == count, "the refusal")
    assert watched.link.failures == 3


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("share", [0.5, 1.5])
async def test_retries_begin_at_once_grow_and_never_take_long(
    own_redis, connect, monkeypatch, share
):
    def vary(least: float, most: float) -> float:
        assert (least, most) == (0.5, 1.5)
        return share

    monkeypatch.setattr(link.random, "uniform", vary)
    time = HandTime()
    server = own_redis()
    watched = connect(server.socket_url, time=time)
    await until(lambda: watched.is_up, "the link")
    server.stop()
    await until(lambda: not watched.is_up, "the loss")
    delays = []
    for count in range(1, 9):
        [call] = time.clock.getDelayedCalls()
        delays.append(call.getTime() - time.seconds())
        time.advance(delays[-1])
        await until(lambda count=count: watched.refusals == count, "the refusal")
    assert delays[0] == pytest.approx(0.2 * share)
    assert delays[1] == pytest.approx(0.34 * share)
    assert delays[-1] == pytest.approx(2 * share)
    assert max(delays) <= link.LAST_RETRY


@pytest_twisted.ensureDeferred
async def test_an_aborted_link_comes_back(redis_server, connect):
    watched = connect(redis_server.url)
    watched.link.abort()
    await until(lambda: watched.is_up, "the link")
    watched.link.abort()
    await until(lambda: watched.changes == [True, False, True], "the link again")
    assert watched.prepared == 2


@pytest_twisted.ensureDeferred
async def test_a_preparation_is_given_up_with_its_connection(redis_server, connect):
    given_up: list[defer.Deferred[None]] = []
    time = HandTime()
    watched = connect(
        redis_server.socket_url,
        time=time,
        prepare=lambda connection: defer.Deferred(given_up.append),
    )
    await until(lambda: watched.prepared, "the preparation to begin")
    watched.link.abort()
    await until(lambda: watched.refusals == 1, "the refusal")
    assert len(given_up) == 1
    assert len(time.clock.getDelayedCalls()) == 1, "the next attempt, and nothing else"


@pytest_twisted.ensureDeferred
async def test_a_redis_that_refuses_commands_for_now_is_tried_until_it_takes_them(
    own_redis, connect
):
    # A replica whose master is away, and which is told to serve nobody until it is back.
    server = own_redis(
        *("--replicaof", "127.0.0.1", str(free_port()), "--replica-serve-stale-data", "no")
    )
    with lines() as said:
        watched = connect(server.socket_url, prepare=lambda connection: connection.get("x"))
        await until(lambda: watched.refusals >= 2, "two refusals")
        assert "no connection for the test: MASTERDOWN Link with MASTER is down" in said
        assert server.cli("REPLICAOF", "NO", "ONE") == b"+OK\r\n"
        await until(lambda: watched.is_up, "the link")


class Stranger(protocol.Protocol):
    """Something else than Redis on its port."""

    def connectionMade(self) -> None:
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_what_is_no_redis_is_said_without_a_traceback(connect):
    port = reactor.listenTCP(0, protocol.Factory.forProtocol(Stranger), interface="127.0.0.1")
    with lines() as said:
        watched = connect(f"redis://127.0.0.1:{port.getHost().port}")
        await until(lambda: watched.refusals >= 2, "two refusals")
        assert [line.partition("for the test: ")[2] for line in said] == [
            'Protocol error, got "H" as reply type byte; trying again until there is one'
        ]
        await watched.link.stop()
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_user_of_the_link_that_fails_to_take_note_does_not_end_it(
    redis_server, connect, logged_failures
):
    watched = connect(redis_server.url)
    watched.link._changed = watched.link._refused = lambda *news: 1 / 0
    await until(lambda: watched.is_up, "the link")
    watched.link.abort()
    await until(lambda: watched.prepared == 2 and watched.is_up, "the link again")
    await watched.link.stop()
    assert len(logged_failures.flush(ZeroDivisionError)) == 4


def test_files_for_tls_that_can_t_be_used_are_said_when_the_link_is_made(tmp_path):
    address = RedisAddress("host", tls=True)
    with pytest.raises(ValueError, match=r"can't read the certificate .*nowhere: No such file"):
        Watched(address, tls=RedisTLS(ca=tmp_path / "nowhere"))
    Watched(RedisAddress("host"), tls=RedisTLS(ca=tmp_path / "nowhere"))


# -- stopping --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_stopping_disconnects_for_good_without_a_word(own_redis, connect):
    server = own_redis()
    watched = connect(server.socket_url)
    await until(lambda: watched.is_up, "the link")
    with lines() as said:
        await watched.link.stop()
        await watched.link.stop()
        assert not watched.is_up
        await until(lambda: b"connected_clients:1\r" in server.cli("INFO", "clients"), "the end")
        assert list(said) == []
    assert not reactor.getDelayedCalls(), "nothing is planned"


@pytest_twisted.ensureDeferred
async def test_a_link_can_be_stopped_without_having_been_started(redis_server):
    watched = Watched(redis_address(redis_server.url))
    await watched.link.stop()
    assert watched.changes == []


@pytest_twisted.ensureDeferred
async def test_stopping_while_it_connects_is_silent(redis_server, connect):
    with lines() as said:
        watched = connect(redis_server.url)
        await watched.link.stop()
        assert "no connection" not in said
    assert watched.prepared == 0


@pytest_twisted.ensureDeferred
async def test_stopping_while_it_prepares_is_silent_and_never_comes_up(redis_server, connect):
    def prepare(connection):
        return connection.execute_command("BLPOP", "test_redislink_never", "0")

    with lines() as said:
        watched = connect(redis_server.socket_url, prepare=prepare)
        await until(lambda: watched.prepared, "the preparation to begin")
        await watched.link.stop()
        assert list(said) == []
    assert watched.changes == []


@pytest_twisted.ensureDeferred
async def test_stopping_during_an_outage_plans_no_further_try(connect):
    time = SteppedReactor()
    with tempfile.TemporaryDirectory(prefix="quotepush-test-") as place:
        watched = connect(f"unix://{place}/nobody", time=time)
        await until(lambda: time.tries == 2, "two tries")
        await watched.link.stop()
    await one_turn()
    assert not reactor.getDelayedCalls()
