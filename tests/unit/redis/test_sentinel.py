"""Sentinels: asked in turn, the last that answered first; a master that moves is noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hiredis
import pytest
import pytest_twisted
import txredisapi
from free_ports import free_port
from redis_process import Authority
from twisted.internet import defer, protocol, reactor
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from waiting import until
from zope.interface import implementer

from pushservice.redis import sentinel
from pushservice.redis.link import LAST_RETRY, RedisLink
from pushservice.redis.sentinel import MasterEndpoint, NoMaster
from pushservice.redis.url import RedisAddress, RedisTLS
from pushservice.tls.factory import server_options

Answer = Callable[..., bytes | None]


class FakeConnection(protocol.Protocol):
    """One connection of a fake server, which answers its commands."""

    factory: FakeServer

    def connectionMade(self) -> None:
        self._reader = hiredis.Reader()
        self.factory.connections.add(self)

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        while (words := self._reader.gets()) is not False:
            self.factory.commands.append(words)
            answer = self.factory.answer(*words)
            if answer is not None:
                self.transport.write(answer)

    def connectionLost(self, reason: object = None) -> None:
        self.factory.connections.discard(self)


class FakeServer(protocol.Factory):
    """A server on a loopback port that answers as the test says; None is no answer."""

    protocol = FakeConnection
    noisy = False

    def __init__(self, answer: Answer, options: CertificateOptions | None = None) -> None:
        self.answer = answer
        self.commands: list[list[bytes]] = []
        self.connections: set[FakeConnection] = set()
        if options is None:
            self.port = reactor.listenTCP(0, self, interface="127.0.0.1")
        else:
            self.port = reactor.listenSSL(0, self, options, interface="127.0.0.1")
        self.address = ("127.0.0.1", self.port.getHost().port)

    async def stop(self) -> None:
        await self.port.stopListening()
        for connection in list(self.connections):
            connection.transport.abortConnection()
        await until(lambda: not self.connections, "the end of the connections")


@pytest.fixture
def fake():
    """fake(answer): a server whose replies `answer(*words)` makes."""
    fakes: list[FakeServer] = []

    def make(answer: Answer, options: CertificateOptions | None = None) -> FakeServer:
        fakes.append(FakeServer(answer, options))
        return fakes[-1]

    async def stop() -> None:
        for each in fakes:
            await each.stop()

    yield make
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


def master_reply(address: tuple[str, int]) -> bytes:
    """A sentinel's answer that names a master."""
    host, port = address[0].encode(), str(address[1]).encode()
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(host), host, len(port), port)


def sentinel_of(address: tuple[str, int]) -> Answer:
    return lambda *words: master_reply(address)


def redis(role: bytes = b"master") -> Answer:
    def answer(*words: bytes) -> bytes:
        return (
            b"*3\r\n$%d\r\n%b\r\n:0\r\n*0\r\n" % (len(role), role)
            if words == (b"ROLE",)
            else b"+OK\r\n"
        )

    return answer


def closed_port() -> tuple[str, int]:
    return ("127.0.0.1", free_port())


def address_of(*sentinels: FakeServer | tuple[str, int], **login: str) -> RedisAddress:
    addresses = tuple(each.address if isinstance(each, FakeServer) else each for each in sentinels)
    return RedisAddress(sentinels=addresses, service="rates", **login)


def endpoint_of(*sentinels: FakeServer | tuple[str, int], time: Any = reactor, **login: str) -> Any:
    return MasterEndpoint(time, address_of(*sentinels, **login), None, 5.0)


@implementer(IReactorPluggableNameResolver)
class ManualReactor:
    """The reactor with a clock of its own, which `advance` moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.callLater = self.clock.callLater
        self.seconds = self.clock.seconds
        self.advance = self.clock.advance
        self.nameResolver = reactor.nameResolver
        self.connectTCP = reactor.connectTCP


class LinkTest:
    """A link through sentinels, with its changes and failures."""

    def __init__(self, time: Any, *sentinels: FakeServer | tuple[str, int]) -> None:
        self.failures = 0
        self.changes: list[bool] = []
        self.link = RedisLink(
            "test",
            time,
            address_of(*sentinels),
            txredisapi.RedisProtocol,
            lambda connection: connection.ping(),
            self.changes.append,
            failed=self._count,
        )

    def _count(self) -> None:
        self.failures += 1


@pytest.fixture
def connect():
    """connect(time, *sentinels): a started link that is stopped at the end."""
    started: list[LinkTest] = []

    def start(*arguments: Any) -> LinkTest:
        started.append(LinkTest(*arguments))
        started[-1].link.start()
        return started[-1]

    async def stop() -> None:
        for test in started:
            await test.link.stop()

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


# -- requests --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_sentinel_is_asked_for_the_service_without_a_login(fake):
    one = fake(sentinel_of(("10.0.0.1", 7)))
    assert await endpoint_of(one, user="bot", password="secret").find_master() == ("10.0.0.1", 7)
    assert one.commands == [[b"SENTINEL", b"get-master-addr-by-name", b"rates"]]
    await until(lambda: not one.connections, "the end of the connection")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("login", "words"),
    [
        ({"password": "secret"}, [b"AUTH", b"secret"]),
        ({"user": "bot", "password": "secret"}, [b"AUTH", b"bot", b"secret"]),
    ],
)
async def test_a_sentinel_that_demands_a_login_gets_that_for_redis(fake, login, words):
    def answer(*words: bytes) -> bytes:
        if words[0] == b"AUTH":
            return b"+OK\r\n"
        known = any(asked[0] == b"AUTH" for asked in one.commands)
        return master_reply(("10.0.0.1", 7)) if known else b"-NOAUTH Authentication required.\r\n"

    one = fake(answer)
    assert await endpoint_of(one, **login).find_master() == ("10.0.0.1", 7)
    assert one.commands[1] == words
    one.commands.clear()
    with pytest.raises(NoMaster, match=r"127\.0\.0\.1:\d+: NOAUTH Authentication required"):
        await endpoint_of(one).find_master()


@pytest_twisted.ensureDeferred
async def test_the_sentinel_that_answered_is_asked_first_next_time(fake):
    mute, knowing = fake(lambda *words: b"*-1\r\n"), fake(sentinel_of(("10.0.0.1", 7)))
    endpoint = endpoint_of(closed_port(), mute, knowing)
    for count in (1, 2, 3):
        assert await endpoint.find_master() == ("10.0.0.1", 7)
        assert (len(mute.commands), len(knowing.commands)) == (1, count)
    endpoint.try_another_sentinel()
    await endpoint.find_master()
    assert (len(mute.commands), len(knowing.commands)) == (2, 4)


@pytest_twisted.ensureDeferred
async def test_without_an_answer_the_error_names_the_service_and_each_reason(fake):
    gone = closed_port()
    ignorant = fake(lambda *words: b"*-1\r\n")
    lost = fake(lambda *words: b"-IDONTKNOW I am new here\r\n")
    hanging = fake(lambda *words: None)
    time = ManualReactor()
    finding = endpoint_of(gone, ignorant, lost, hanging, time=time).find_master()
    # A refusal takes a moment, because a host may have more addresses.
    await until(lambda: time.advance(0.01) or hanging.commands, "the question to the last one")
    time.advance(sentinel.ASK_TIMEOUT)
    with pytest.raises(NoMaster) as caught:
        await finding
    assert str(caught.value) == (
        "no sentinel names a master 'rates':"
        f" 127.0.0.1:{gone[1]}: Connection was refused by other side: 111: Connection refused.;"
        f" 127.0.0.1:{ignorant.address[1]}: it knows no master of that name;"
        f" 127.0.0.1:{lost.address[1]}: IDONTKNOW I am new here;"
        f" 127.0.0.1:{hanging.address[1]}: no answer in 2 seconds"
    )
    assert not time.clock.getDelayedCalls()
    await until(lambda: not hanging.connections, "the end of the connection")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"+OK\r\n", "it is no sentinel"),
        (b":1\r\n", "it is no sentinel"),
        (b"*1\r\n$1\r\na\r\n", "it is no sentinel"),
        (b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", "it is no sentinel"),
        (b"HTTP/1.1 400\r\n", "Protocol error"),
    ],
)
async def test_a_server_that_is_no_sentinel_is_reported_and_skipped(fake, answer, words):
    other, knowing = fake(lambda *words: answer), fake(sentinel_of(("10.0.0.1", 7)))
    assert await endpoint_of(other, knowing).find_master() == ("10.0.0.1", 7)
    assert other.commands
    with pytest.raises(NoMaster, match=f"127.0.0.1:{other.address[1]}: {words}"):
        await endpoint_of(other).find_master()


@pytest_twisted.ensureDeferred
async def test_tls_applies_to_sentinels_too_and_its_errors_are_reported(fake, tmp_path):
    good, bad = Authority(tmp_path, "good"), Authority(tmp_path, "bad")
    servers = [
        fake(sentinel_of((host, 7)), server_options(files.cert, files.key))
        for host, files in [
            ("10.0.0.1", bad.issue("one", "127.0.0.1")),
            ("10.0.0.2", good.issue("two", "127.0.0.1")),
        ]
    ]
    tls = RedisTLS(ca=good.ca)
    both = MasterEndpoint(reactor, address_of(*servers), tls, 5.0)
    assert await both.find_master() == ("10.0.0.2", 7)
    assert not servers[0].commands
    with pytest.raises(
        NoMaster, match=r"TLS: .* signed by an authority that is not trusted: CN=bad"
    ):
        await MasterEndpoint(reactor, address_of(servers[0]), tls, 5.0).find_master()


@pytest_twisted.ensureDeferred
async def test_a_cancelled_request_asks_no_other_sentinel_and_leaves_nothing(fake):
    hanging, other = fake(lambda *words: None), fake(sentinel_of(("10.0.0.1", 7)))
    time = ManualReactor()
    finding = endpoint_of(hanging, other, time=time).find_master()
    await until(lambda: hanging.commands, "the question")
    finding.cancel()
    with pytest.raises(defer.CancelledError):
        await finding
    await until(lambda: not hanging.connections, "the end of the connection")
    assert not other.commands
    assert not time.clock.getDelayedCalls()


# -- the link --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_link_connects_to_the_master_and_logs_its_address(fake, connect):
    master = fake(redis())
    one = fake(sentinel_of(master.address))
    with capturedLogs() as events:
        test = connect(reactor, one)
        await until(lambda: test.link.up, "the link")
    assert master.commands == [[b"ROLE"], [b"PING"]]
    said = [formatEvent(event) for event in events]
    assert f"connected for the test; the master is 127.0.0.1:{master.address[1]}" in said[-1]


@pytest_twisted.ensureDeferred
async def test_a_replica_is_rejected_and_another_sentinel_asked(fake, connect):
    replica, master = fake(redis(b"slave")), fake(redis())
    stale, fresh = fake(sentinel_of(replica.address)), fake(sentinel_of(master.address))
    with capturedLogs() as events:
        test = connect(reactor, stale, fresh)
        await until(lambda: test.link.up, "the link")
    assert (test.failures, test.changes) == (1, [True])
    assert replica.commands == [[b"ROLE"]]
    assert "the Redis that the sentinels name is no master" in formatEvent(events[0])


@pytest_twisted.ensureDeferred
async def test_a_master_that_refuses_connections_is_logged_with_its_address(fake, connect):
    gone, master = closed_port(), fake(redis())
    stale, fresh = fake(sentinel_of(gone)), fake(sentinel_of(master.address))
    with capturedLogs() as events:
        test = connect(reactor, stale, fresh)
        await until(lambda: test.link.up, "the link")
    said = formatEvent(events[0])
    assert f"the master 'rates' at 127.0.0.1:{gone[1]}: Connection was refused" in said


@pytest_twisted.ensureDeferred
async def test_a_link_follows_the_master_though_the_old_one_is_alive(fake, connect):
    old, new = fake(redis()), fake(redis())
    told = [old.address]
    watcher = fake(lambda *words: master_reply(told[0]))
    time = ManualReactor()
    test = connect(time, watcher)
    await until(lambda: test.link.up, "the link")
    for count in (2, 3):
        time.advance(sentinel.CHECK_EVERY)
        await until(lambda count=count: len(watcher.commands) == count, "the question")
        await until(lambda: not watcher.connections, "the answer")
    assert test.changes == [True], "nothing moved"
    told[0] = new.address
    time.advance(sentinel.CHECK_EVERY)
    await until(lambda: test.changes == [True, False], "the loss")
    time.advance(LAST_RETRY)
    await until(lambda: test.link.up, "the link to the new one")
    assert new.commands == [[b"ROLE"], [b"PING"]]
    assert test.failures == 0


@pytest_twisted.ensureDeferred
async def test_the_connection_is_kept_while_no_sentinel_answers_and_that_is_logged_once(
    fake, connect
):
    master = fake(redis())
    known = [True]
    watcher = fake(lambda *words: master_reply(master.address) if known[0] else b"*-1\r\n")
    time = ManualReactor()
    test = connect(time, watcher)
    await until(lambda: test.link.up, "the link")
    with capturedLogs() as events:
        for count, knows in enumerate([False, False, True, False], start=2):
            known[0] = knows
            time.advance(sentinel.CHECK_EVERY)
            await until(lambda count=count: len(watcher.commands) == count, "the question")
            await until(lambda: len(time.clock.getDelayedCalls()) == 1, "the next one planned")
            await until(lambda: not watcher.connections, "the answer")
    said = [formatEvent(event) for event in events]
    assert len(said) == 2
    for line in said:
        assert "a change of the master would go unnoticed: no sentinel names a master" in line
        assert f"127.0.0.1:{watcher.address[1]}: it knows no master of that name" in line
    assert test.changes == [True]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("moment", ["asking", "connected", "checking"])
async def test_a_link_that_stops_leaves_nothing_behind(fake, connect, moment):
    master = fake(redis())
    answers = [None] if moment == "asking" else [master_reply(master.address), None]
    watcher = fake(lambda *words: answers.pop(0))
    time = ManualReactor()
    test = connect(time, watcher)
    await until(lambda: watcher.commands, "the question")
    if moment != "asking":
        await until(lambda: test.link.up, "the link")
    if moment == "checking":
        time.advance(sentinel.CHECK_EVERY)
        await until(lambda: len(watcher.commands) == 2, "the check")
    with capturedLogs() as events:
        await test.link.stop()
    assert not events
    assert not time.clock.getDelayedCalls()
    await until(lambda: not watcher.connections and not master.connections, "the end of all")
