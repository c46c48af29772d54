"""Sentinels: asked in turn, the one that answers first; and a master that moves is noticed."""

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


class Speaker(protocol.Protocol):
    """One connection of a fake: hands each command to its fake."""

    factory: Fake

    def connectionMade(self) -> None:
        self._reader = hiredis.Reader()
        self.factory.present.add(self)

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        while (words := self._reader.gets()) is not False:
            self.factory.asked.append(words)
            answer = self.factory.answer(*words)
            if answer is not None:
                self.transport.write(answer)

    def connectionLost(self, reason: object = None) -> None:
        self.factory.present.discard(self)


class Fake(protocol.Factory):
    """Answers commands as a test wants, on a loopback port; None is silence."""

    protocol = Speaker
    noisy = False

    def __init__(self, answer: Answer, options: CertificateOptions | None = None) -> None:
        self.answer = answer
        self.asked: list[list[bytes]] = []
        self.present: set[Speaker] = set()
        if options is None:
            self.listening = reactor.listenTCP(0, self, interface="127.0.0.1")
        else:
            self.listening = reactor.listenSSL(0, self, options, interface="127.0.0.1")
        self.place = ("127.0.0.1", self.listening.getHost().port)

    async def stop(self) -> None:
        await self.listening.stopListening()
        for speaker in list(self.present):
            speaker.transport.abortConnection()
        await until(lambda: not self.present, "the end of the connections")


@pytest.fixture
def fake():
    """fake(answer): a server whose replies `answer(*words)` makes."""
    fakes: list[Fake] = []

    def make(answer: Answer, options: CertificateOptions | None = None) -> Fake:
        fakes.append(Fake(answer, options))
        return fakes[-1]

    async def stop() -> None:
        for each in fakes:
            await each.stop()

    yield make
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


def names(place: tuple[str, int]) -> bytes:
    """A sentinel's answer that names a master."""
    host, port = place[0].encode(), str(place[1]).encode()
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(host), host, len(port), port)


def sentinel_of(place: tuple[str, int]) -> Answer:
    return lambda *words: names(place)


def redis(role: bytes = b"master") -> Answer:
    def answer(*words: bytes) -> bytes:
        return (
            b"*3\r\n$%d\r\n%b\r\n:0\r\n*0\r\n" % (len(role), role)
            if words == (b"ROLE",)
            else b"+OK\r\n"
        )

    return answer


def nowhere() -> tuple[str, int]:
    return ("127.0.0.1", free_port())


def address_of(*sentinels: Fake | tuple[str, int], **login: str) -> RedisAddress:
    places = tuple(each.place if isinstance(each, Fake) else each for each in sentinels)
    return RedisAddress(sentinels=places, service="rates", **login)


def endpoint_of(*sentinels: Fake | tuple[str, int], time: Any = reactor, **login: str) -> Any:
    return MasterEndpoint(time, address_of(*sentinels, **login), None, 5.0)


@implementer(IReactorPluggableNameResolver)
class HandTime:
    """The reactor with a time of its own, which moves by `advance`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.callLater = self.clock.callLater
        self.seconds = self.clock.seconds
        self.advance = self.clock.advance
        self.nameResolver = reactor.nameResolver
        self.connectTCP = reactor.connectTCP


class Watched:
    """A link through sentinels, and what it told."""

    def __init__(self, time: Any, *sentinels: Fake | tuple[str, int]) -> None:
        self.refusals = 0
        self.changes: list[bool] = []
        self.link = RedisLink(
            "test",
            time,
            address_of(*sentinels),
            txredisapi.RedisProtocol,
            lambda connection: connection.ping(),
            self.changes.append,
            refused=self._count,
        )

    def _count(self) -> None:
        self.refusals += 1


@pytest.fixture
def connect():
    """connect(time, *sentinels): a started link that is stopped at the end."""
    started: list[Watched] = []

    def start(*arguments: Any) -> Watched:
        started.append(Watched(*arguments))
        started[-1].link.start()
        return started[-1]

    async def stop() -> None:
        for watched in started:
            await watched.link.stop()

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


# -- asking ----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_sentinel_is_asked_by_the_service_and_without_a_login(fake):
    one = fake(sentinel_of(("10.0.0.1", 7)))
    assert await endpoint_of(one, user="bot", password="secret").find() == ("10.0.0.1", 7)
    assert one.asked == [[b"SENTINEL", b"get-master-addr-by-name", b"rates"]]
    await until(lambda: not one.present, "the end of the connection")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("login", "words"),
    [
        ({"password": "secret"}, [b"AUTH", b"secret"]),
        ({"user": "bot", "password": "secret"}, [b"AUTH", b"bot", b"secret"]),
    ],
)
async def test_a_sentinel_that_demands_a_login_gets_the_one_for_redis(fake, login, words):
    def answer(*words: bytes) -> bytes:
        if words[0] == b"AUTH":
            return b"+OK\r\n"
        known = any(asked[0] == b"AUTH" for asked in one.asked)
        return names(("10.0.0.1", 7)) if known else b"-NOAUTH Authentication required.\r\n"

    one = fake(answer)
    assert await endpoint_of(one, **login).find() == ("10.0.0.1", 7)
    assert one.asked[1] == words
    one.asked.clear()
    with pytest.raises(NoMaster, match=r"127\.0\.0\.1:\d+: NOAUTH Authentication required"):
        await endpoint_of(one).find()


@pytest_twisted.ensureDeferred
async def test_the_sentinel_that_answered_is_asked_first_from_then_on(fake):
    mute, knowing = fake(lambda *words: b"*-1\r\n"), fake(sentinel_of(("10.0.0.1", 7)))
    endpoint = endpoint_of(nowhere(), mute, knowing)
    for count in (1, 2, 3):
        assert await endpoint.find() == ("10.0.0.1", 7)
        assert (len(mute.asked), len(knowing.asked)) == (1, count)
    endpoint.doubt()
    await endpoint.find()
    assert (len(mute.asked), len(knowing.asked)) == (2, 4)


@pytest_twisted.ensureDeferred
async def test_when_none_answers_the_service_and_every_reason_are_named(fake):
    gone = nowhere()
    ignorant = fake(lambda *words: b"*-1\r\n")
    lost = fake(lambda *words: b"-IDONTKNOW I am new here\r\n")
    hanging = fake(lambda *words: None)
    time = HandTime()
    finding = endpoint_of(gone, ignorant, lost, hanging, time=time).find()
    # A refusal takes a moment, because a host may have more addresses.
    await until(lambda: time.advance(0.01) or hanging.asked, "the question to the last one")
    time.advance(sentinel.ASK_TIMEOUT)
    with pytest.raises(NoMaster) as caught:
        await finding
    assert str(caught.value) == (
        "no sentinel names a master 'rates':"
        f" 127.0.0.1:{gone[1]}: Connection was refused by other side: 111: Connection refused.;"
        f" 127.0.0.1:{ignorant.place[1]}: it knows no master of that name;"
        f" 127.0.0.1:{lost.place[1]}: IDONTKNOW I am new here;"
        f" 127.0.0.1:{hanging.place[1]}: no answer in 2 seconds"
    )
    assert not time.clock.getDelayedCalls()
    await until(lambda: not hanging.present, "the end of the connection")


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
async def test_what_is_no_sentinel_is_said_and_passed_over(fake, answer, words):
    other, knowing = fake(lambda *words: answer), fake(sentinel_of(("10.0.0.1", 7)))
    assert await endpoint_of(other, knowing).find() == ("10.0.0.1", 7)
    assert other.asked
    with pytest.raises(NoMaster, match=f"127.0.0.1:{other.place[1]}: {words}"):
        await endpoint_of(other).find()


@pytest_twisted.ensureDeferred
async def test_tls_holds_for_sentinels_too_and_says_what_it_refuses(fake, tmp_path):
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
    assert await both.find() == ("10.0.0.2", 7)
    assert not servers[0].asked
    with pytest.raises(
        NoMaster, match=r"TLS: .* signed by an authority that is not trusted: CN=bad"
    ):
        await MasterEndpoint(reactor, address_of(servers[0]), tls, 5.0).find()


@pytest_twisted.ensureDeferred
async def test_a_question_that_is_cancelled_asks_nobody_else_and_leaves_nothing(fake):
    hanging, other = fake(lambda *words: None), fake(sentinel_of(("10.0.0.1", 7)))
    time = HandTime()
    finding = endpoint_of(hanging, other, time=time).find()
    await until(lambda: hanging.asked, "the question")
    finding.cancel()
    with pytest.raises(defer.CancelledError):
        await finding
    await until(lambda: not hanging.present, "the end of the connection")
    assert not other.asked
    assert not time.clock.getDelayedCalls()


# -- the link --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_link_goes_to_the_master_and_says_where_that_is(fake, connect):
    master = fake(redis())
    one = fake(sentinel_of(master.place))
    with capturedLogs() as events:
        watched = connect(reactor, one)
        await until(lambda: watched.link.up, "the link")
    assert master.asked == [[b"ROLE"], [b"PING"]]
    said = [formatEvent(event) for event in events]
    assert f"connected for the test; the master is 127.0.0.1:{master.place[1]}" in said[-1]


@pytest_twisted.ensureDeferred
async def test_a_replica_is_no_master_and_another_sentinel_is_asked(fake, connect):
    replica, master = fake(redis(b"slave")), fake(redis())
    stale, fresh = fake(sentinel_of(replica.place)), fake(sentinel_of(master.place))
    with capturedLogs() as events:
        watched = connect(reactor, stale, fresh)
        await until(lambda: watched.link.up, "the link")
    assert (watched.refusals, watched.changes) == (1, [True])
    assert replica.asked == [[b"ROLE"]]
    assert "the Redis that the sentinels name is no master" in formatEvent(events[0])


@pytest_twisted.ensureDeferred
async def test_a_master_that_is_not_there_is_said_with_its_place(fake, connect):
    gone, master = nowhere(), fake(redis())
    stale, fresh = fake(sentinel_of(gone)), fake(sentinel_of(master.place))
    with capturedLogs() as events:
        watched = connect(reactor, stale, fresh)
        await until(lambda: watched.link.up, "the link")
    said = formatEvent(events[0])
    assert f"the master 'rates' at 127.0.0.1:{gone[1]}: Connection was refused" in said


@pytest_twisted.ensureDeferred
async def test_a_master_that_moves_is_followed_though_the_old_one_lives(fake, connect):
    old, new = fake(redis()), fake(redis())
    told = [old.place]
    watcher = fake(lambda *words: names(told[0]))
    time = HandTime()
    watched = connect(time, watcher)
    await until(lambda: watched.link.up, "the link")
    for count in (2, 3):
        time.advance(sentinel.CHECK_EVERY)
        await until(lambda count=count: len(watcher.asked) == count, "the question")
        await until(lambda: not watcher.present, "the answer")
    assert watched.changes == [True], "nothing moved"
    told[0] = new.place
    time.advance(sentinel.CHECK_EVERY)
    await until(lambda: watched.changes == [True, False], "the loss")
    time.advance(LAST_RETRY)
    await until(lambda: watched.link.up, "the link to the new one")
    assert new.asked == [[b"ROLE"], [b"PING"]]
    assert watched.refusals == 0


@pytest_twisted.ensureDeferred
async def test_sentinels_that_are_away_change_nothing_and_are_told_once(fake, connect):
    master = fake(redis())
    known = [True]
    watcher = fake(lambda *words: names(master.place) if known[0] else b"*-1\r\n")
    time = HandTime()
    watched = connect(time, watcher)
    await until(lambda: watched.link.up, "the link")
    with capturedLogs() as events:
        for count, knows in enumerate([False, False, True, False], start=2):
            known[0] = knows
            time.advance(sentinel.CHECK_EVERY)
            await until(lambda count=count: len(watcher.asked) == count, "the question")
            await until(lambda: len(time.clock.getDelayedCalls()) == 1, "the next one planned")
            await until(lambda: not watcher.present, "the answer")
    said = [formatEvent(event) for event in events]
    assert len(said) == 2
    for line in said:
        assert "a change of the master would go unnoticed: no sentinel names a master" in line
        assert f"127.0.0.1:{watcher.place[1]}: it knows no master of that name" in line
    assert watched.changes == [True]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("moment", ["asking", "connected", "checking"])
async def test_a_link_that_stops_leaves_nothing_behind(fake, connect, moment):
    master = fake(redis())
    answers = [None] if moment == "asking" else [names(master.place), None]
    watcher = fake(lambda *words: answers.pop(0))
    time = HandTime()
    watched = connect(time, watcher)
    await until(lambda: watcher.asked, "the question")
    if moment != "asking":
        await until(lambda: watched.link.up, "the link")
    if moment == "checking":
        time.advance(sentinel.CHECK_EVERY)
        await until(lambda: len(watcher.asked) == 2, "the check")
    with capturedLogs() as events:
        await watched.link.stop()
    assert not events
    assert not time.clock.getDelayedCalls()
    await until(lambda: not watcher.present and not master.present, "the end of all")
