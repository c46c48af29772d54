"""The Twisted client against daemons; the conversation it carries out is tested with the other."""

from __future__ import annotations

import json
import logging
import signal
from base64 import b64encode
from collections.abc import Callable, Iterator
from decimal import Decimal
from hashlib import sha1
from typing import Any, ClassVar, TypeVar

import pytest
import pytest_twisted
from authenticated_clients import Issuer, check_not_logged
from free_ports import free_port
from redis_process import Authority, RedisServer
from system_harness import Daemon, StartDaemon
from twisted.internet import defer, protocol, reactor, task, threads
from twisted.logger import globalLogPublisher
from waiting import until

from pushservice.client import (
    Authenticated,
    Event,
    Feed,
    Fresh,
    Gap,
    Quote,
    QuoteError,
    QuoteService,
    Stale,
    State,
    Welcome,
)
from pushservice.tls.factory import server_options

OwnRedis = Callable[..., RedisServer]
T = TypeVar("T")


class Watch:
    """A service, and all that it has told."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.told: list[Event] = []
        settings = {"backoff": 0.05} | settings
        self.service = QuoteService(reactor, url, self.told.append, **settings)

    async def until(self, kind: type[T], condition: Callable[[T], object] = lambda _: True) -> T:
        """Wait for an event of `kind` for which `condition` holds; take all up to it."""

        def found() -> int | None:
            for at, event in enumerate(self.told):
                if isinstance(event, kind) and condition(event):
                    return at + 1
            return None

        await until(found, f"{kind} in {self.told}")
        at = found()
        assert at is not None
        event = self.told[at - 1]
        del self.told[:at]
        return event  # type: ignore[return-value]  # it is of `kind`

    async def state(self, name: str) -> State:
        return await self.until(State, lambda state: state.name == name)


@pytest.fixture
def watch() -> Iterator[Callable[..., Watch]]:
    """Starts services: watch(daemon, ca=...), and ends them."""
    watches: list[Watch] = []

    def start(where: Daemon | str, **settings: Any) -> Watch:
        if isinstance(where, Daemon):
            trust = {} if where.plain else {"ca": where.certs / "dev.crt"}
            made = Watch(where.url, **(trust | settings))
        else:
            made = Watch(where, **settings)
        watches.append(made)
        made.service.startService()
        return made

    yield start
    for each in watches:
        pytest_twisted.blockon(each.service.stopService())


async def later(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    return await threads.deferToThread(function, *arguments, **more)


@pytest_twisted.ensureDeferred
async def test_from_nothing_to_exact_prices(daemon, watch, publish, redis_server):
    served = daemon("--channels", "ta.*")
    watched = watch(served)
    assert await watched.service.subscribe("A", "no symbol", "B") != {}
    assert await watched.service.served() == watched.service.symbols == ["A", "B"]
    assert await watched.service.ping() > 0
    publish(redis_server, [("ta.A", '{"last": 10.50}')])
    quote = await watched.until(Quote)
    assert str(json.loads(quote.raw, parse_float=Decimal)["last"]) == "10.50"
    assert await watched.service.unsubscribe("A") is None
    publish(redis_server, [("ta.A", "1"), ("ta.B", "2")])
    assert (await watched.until(Quote)).symbol == "B"
    with pytest.raises(QuoteError):
        await watched.service.subscribe("x y")


@pytest_twisted.ensureDeferred
async def test_callbacks_are_by_kind_end_when_told_to_and_may_be_coroutines(
    daemon, watch, publish, redis_server
):
    served = daemon("--channels", "tb.*", "--plain")
    watched = watch(served)
    quotes, gaps, late = [], [], []

    async def slowly(quote):
        await task.deferLater(reactor, 0)
        late.append(quote)

    stop = watched.service.on(Quote, quotes.append)
    watched.service.on(Gap, gaps.append)
    watched.service.on(Quote, slowly)
    await watched.service.subscribe("A")
    publish(redis_server, [("tb.A", "1")])
    await until(lambda: late, "the quote")
    stop()
    stop()
    publish(redis_server, [("tb.A", "2")])
    await until(lambda: len(late) == 2, "the next")
    assert [quote.data for quote in quotes] == [1]
    assert gaps == []


@pytest_twisted.ensureDeferred
async def test_what_callbacks_raise_is_logged_and_the_link_lives(
    daemon, watch, publish, redis_server, logged_failures
):
    served = daemon("--channels", "te.*", "--plain")
    watched = watch(served)

    def bad(quote):
        raise ZeroDivisionError(quote.symbol)

    async def worse(quote):
        raise KeyError(quote.symbol)

    watched.service.on(Quote, bad)
    watched.service.on(Quote, worse)
    await watched.service.subscribe("A")
    for n in (1, 2):
        publish(redis_server, [("te.A", str(n))])
        await watched.until(Quote, lambda quote, n=n: quote.data == n)
    assert len(logged_failures.flush(ZeroDivisionError)) == 2
    assert len(logged_failures.flush(KeyError)) == 2
    assert watched.service.state == "open"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_daemon_that_ends_and_comes_back_is_found_again(
    how, daemon, watch, publish, redis_server
):
    prefix = f"tr{int(how)}"
    served = daemon("--channels", f"{prefix}.*")
    watched = watch(served)
    await watched.service.subscribe("A")
    publish(redis_server, [(f"{prefix}.A", "1")])
    await watched.until(Quote)
    await later(served.stop, how)
    assert await watched.until(Stale) == Stale(None, "link")
    assert (await watched.state("waiting")).code in (1001, 1006)
    await later(daemon, "--channels", f"{prefix}.*", "--port", str(served.port))
    assert await watched.until(Gap) == Gap("A", "link")
    publish(redis_server, [(f"{prefix}.A", "2")])
    quote = await watched.until(Quote, lambda quote: not quote.snapshot)
    assert (quote.data, quote.merged) == (2, 0)


@pytest_twisted.ensureDeferred
async def test_a_daemon_need_not_be_there_yet_and_calls_wait_for_the_start(daemon, watch):
    port = free_port()
    waiting = Watch(f"ws://127.0.0.1:{port}/", backoff_max=0.2)
    subscribing = waiting.service.subscribe("A")
    waiting.service.startService()
    assert "refused" in (await waiting.state("waiting")).reason
    await later(daemon, "--plain", "--port", str(port))
    assert await subscribing == {}
    await waiting.service.stopService()
    waiting.service.startService()
    await waiting.state("open")
    await until(lambda: waiting.service.symbols == ["A"], "the symbols are kept")
    await waiting.service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_lost_redis_is_told_as_a_lost_feed(daemon, watch, publish, own_redis):
    redis = own_redis()
    served = daemon("--channels", "tf.*", "--heartbeat", "200", redis=redis.url)
    watched = watch(served)
    await watched.service.subscribe("A")
    publish(redis, [("tf.A", "1")])
    await watched.until(Quote)
    redis.stop()
    await watched.until(Feed, lambda feed: not feed.up)
    assert await watched.until(Stale) == Stale(None, "feed")
    await later(own_redis, port=redis.port)
    await watched.until(Feed, lambda feed: feed.up)
    assert await watched.until(Fresh) == Fresh(None)
    assert await watched.until(Gap) == Gap("A", "feed")


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_full_is_waited_for_as_long_as_it_says(daemon, watch):
    served = daemon("--max-per-address", "1")
    first = watch(served)
    await first.service.subscribe("A")
    state = await watch(served).state("waiting")
    assert (state.code, state.delay >= 1) == (429, True)
    assert state.reason.startswith("HTTP 429: ")


@pytest_twisted.ensureDeferred
async def test_a_callback_that_holds_up_the_reactor_loses_nothing_in_silence(
    daemon, watch, publish, redis_server
):
    served = daemon("--channels", "ts.*", "--plain")
    watched = watch(served)
    payload = '"' + "x" * 20_000 + '"'
    last = published = 0

    def keep(quote):
        nonlocal last, published
        assert quote.n == last + quote.merged + 1
        last = quote.n
        if published < 1000:
            # While this program reads nothing, more is published than all buffers hold.
            published = 1000
            publish(redis_server, [("ts.A", payload)] * 998)
            publish(redis_server, [("ts.A", "1")])

    watched.service.on(Quote, keep)
    await watched.service.subscribe("A")
    publish(redis_server, [("ts.A", "0")])
    await until(lambda: last == 1000, "the last of them")
    assert len([event for event in watched.told if isinstance(event, Quote)]) <= 1000


# -- tokens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def guarded(module_daemon: StartDaemon, issuer: Issuer) -> Daemon:
    return module_daemon(*issuer.options, "--token-leeway", "0", "--channels", "tt.*")


@pytest.fixture
def logged():
    """All that Twisted's log was told, as text."""
    lines: list[str] = []

    def observe(event):
        lines.append(repr(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["at once", "deferred", "coroutine"])
async def test_a_function_renews_tokens_before_they_end_and_no_log_has_them(
    kind, guarded, issuer, watch, caplog, logged
):
    caplog.set_level(logging.DEBUG)
    reasons = []

    def token(why):
        reasons.append(why)
        made = issuer.token(life=2.0)
        if kind == "at once":
            return made
        if kind == "deferred":
            return task.deferLater(reactor, 0, lambda: made)

        async def soon():
            return made

        return soon()

    watched = watch(guarded, token=token)
    for _ in range(2):
        await watched.until(Authenticated)
    assert reasons[:2] == ["connect", "expiring"]
    assert not [e for e in watched.told if isinstance(e, State) and e.name == "waiting"]
    assert any("authenticating" in line for line in logged)
    check_not_logged("".join(logged) + caplog.text, issuer.made)


@pytest_twisted.ensureDeferred
async def test_a_function_that_fails_is_logged_and_called_again(
    guarded, issuer, watch, logged_failures
):
    answers = [ValueError("no network"), None]

    def token(why):
        answer = answers.pop(0) if answers else issuer.token()
        if isinstance(answer, Exception):
            raise answer
        return answer

    watched = watch(guarded, token=token)
    await watched.service.subscribe("A")
    assert len(logged_failures.flush(ValueError, TypeError)) == 2


@pytest_twisted.ensureDeferred
async def test_stopping_does_not_wait_for_a_token_that_never_comes(guarded):
    asked, cancelled = [], []

    def token(why):
        asked.append(defer.Deferred(cancelled.append))
        return asked[-1]

    watched = Watch(guarded.url, ca=guarded.certs / "dev.crt", token=token)
    watched.service.startService()
    await until(lambda: asked, "the question")
    await watched.service.stopService()
    assert watched.service.state == "closed"
    assert cancelled == asked


@pytest_twisted.ensureDeferred
async def test_without_a_token_it_is_closed_and_calls_fail_with_the_reason(guarded, watch):
    watched = watch(guarded)
    with pytest.raises(QuoteError, match="token=") as refused:
        await watched.service.subscribe("A")
    assert refused.value.code == 4001
    assert (await watched.state("closed")).code == 4001


# -- trust, and other ends -----------------------------------------------------------------------


class Counted(protocol.Protocol):
    """Is known as long as it has a connection."""

    open: ClassVar[set[Any]] = set()

    def connectionMade(self):
        self.open.add(self)

    def connectionLost(self, reason=protocol.connectionDone):
        self.open.discard(self)


class Answerer(Counted):
    """Answers what is said, and leaves."""

    answer = b""

    def dataReceived(self, data):
        for part in self.answer.split(b"|"):
            self.transport.write(part)
        self.transport.loseConnection()


@pytest.fixture
def listening():
    """Listens with a certificate, or without TLS: listening(files, answer) gives the port."""
    ports = []

    def listen(files=None, answer=b"", kind=Answerer):
        factory = protocol.Factory.forProtocol(type("Says", (kind,), {"answer": answer}))
        factory.noisy = False
        if files is None:
            ports.append(reactor.listenTCP(0, factory, interface="127.0.0.1"))
        else:
            options = server_options(files.cert, files.key)
            ports.append(reactor.listenSSL(0, factory, options, interface="127.0.0.1"))
        return ports[-1].getHost().port

    yield listen
    for port in ports:
        pytest_twisted.blockon(port.stopListening())
    for each in Counted.open:
        each.transport.abortConnection()
    ended = until(lambda: not Counted.open, "the end of all connections")
    pytest_twisted.blockon(defer.Deferred.fromCoroutine(ended))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("host", "named", "days", "trusted", "words"),
    [
        ("localhost", ["elsewhere"], 30, True, "it is not for that name"),
        ("localhost", [], 30, True, "it is not for that name"),
        ("127.0.0.1", ["localhost"], 30, True, "it is not for that name"),
        ("localhost", ["localhost"], -1, True, "it has expired"),
        ("localhost", ["localhost"], 30, False, "name yours with ca="),
    ],
)
async def test_a_certificate_that_is_no_good_ends_it_and_says_why(
    host, named, days, trusted, words, tmp_path, listening, watch
):
    files = Authority(tmp_path).issue("localhost", *named, days=days)
    settings = {"ca": files.ca} if trusted else {}
    watched = watch(f"wss://{host}:{listening(files)}/", **settings)
    with pytest.raises(QuoteError, match=f"the certificate of {host} is refused: .*{words}") as end:
        await watched.service.subscribe("A")
    assert end.value.code == 1015


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["ca", "insecure"])
async def test_a_certificate_that_is_good_or_not_asked_for_is_taken(
    kind, tmp_path, listening, watch
):
    files = Authority(tmp_path).issue("x", "127.0.0.1")
    settings = {"ca": files.ca} if kind == "ca" else {"insecure": True}
    watched = watch(f"wss://127.0.0.1:{listening(files)}/", **settings)
    assert "certificate" not in (await watched.state("waiting")).reason


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno|\nno", 403, "HTTP 403: no"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 404, "HTTP 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "HTTP 200"),
    ],
)
async def test_a_refusal_for_good_ends_it(answer, code, words, listening, watch):
    watched = watch(f"ws://127.0.0.1:{listening(None, answer)}/")
    with pytest.raises(QuoteError) as end:
        await watched.service.subscribe("A")
    assert (end.value.code, end.value.message) == (code, words)


@pytest_twisted.ensureDeferred
async def test_a_port_without_tls_and_one_that_speaks_something_else_are_named(listening, watch):
    watched = watch(f"wss://127.0.0.1:{listening(None, b'HTTP/1.1 400 Bad')}/")
    assert "does not speak TLS" in (await watched.state("closed")).reason
    greeting = b"220 mail.example\r\n\r\n"
    watched = watch(f"ws://127.0.0.1:{listening(None, greeting)}/")
    assert (await watched.state("waiting")).code == 1006


@pytest_twisted.ensureDeferred
async def test_a_silent_server_is_not_waited_for_longer_than_allowed(watch, listening):
    port = listening(kind=Counted)
    watched = watch(f"ws://127.0.0.1:{port}/", connect_timeout=0.2, backoff=5)
    assert (await watched.state("waiting")).reason == "no welcome in time"


class Leaver(Counted):
    """Welcomes, and says at once that it closes, but does not."""

    def dataReceived(self, data):
        key = data.partition(b"Sec-WebSocket-Key: ")[2].split(b"\r\n")[0]
        if not key:
            return  # what is said later
        accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        text = b'[{"ev":"welcome","epoch":"e","hb":0}]'
        self.transport.write(bytes([0x81, len(text)]) + text + b"\x88\x02\x03\xe9")


@pytest_twisted.ensureDeferred
async def test_what_is_asked_of_a_server_that_closes_is_asked_of_the_next(watch, listening):
    watched = watch(f"ws://127.0.0.1:{listening(kind=Leaver)}/", backoff=30)
    subscribing = watched.service.on(
        Welcome, lambda _: watched.service.subscribe("A").addErrback(lambda _: None)
    )
    await watched.state("open")
    # It ends within the time that a goodbye may take, though the server goes on to hold it.
    assert (await watched.state("waiting")).code == 1001
    subscribing()


@pytest_twisted.ensureDeferred
async def test_a_host_that_is_unknown_is_tried_again(watch):
    watched = watch("ws://no-such-host.invalid:1/")
    assert "DNS lookup failed" in (await watched.state("waiting")).reason
    await watched.state("waiting")


@pytest_twisted.ensureDeferred
async def test_a_callback_may_stop_the_service_and_is_the_last_that_is_called(
    daemon, watch, publish, redis_server
):
    served = daemon("--channels", "tq.*", "--plain")
    watched = watch(served)
    seen, stopped = [], []

    def stop(quote):
        seen.append(quote)
        stopped.append(watched.service.stopService())

    await watched.service.subscribe("A", "B")
    watched.service.on(Quote, stop)
    publish(redis_server, [("tq.A", "1"), ("tq.B", "2")], together=True)
    await until(lambda: stopped, "the first quote")
    await stopped[0]
    assert len(seen) == 1
    assert watched.service.state == "closed"


@pytest_twisted.ensureDeferred
async def test_a_callback_may_unsubscribe_and_nothing_of_the_symbol_follows(
    daemon, watch, publish, redis_server
):
    watched = watch(daemon("--channels", "tu.*", "--plain"))
    seen = []

    def once(quote):
        seen.append((quote.symbol, quote.data))
        watched.service.unsubscribe("A")

    await watched.service.subscribe("A", "B")
    watched.service.on(Quote, once)
    quotes = [("tu.A", "1"), ("tu.A", "2"), ("tu.B", "3"), ("tu.A", "4")]
    publish(redis_server, quotes, together=True)
    await until(lambda: ("B", 3) in seen, "what is subscribed still")
    await watched.service.ping()
    assert seen == [("A", 1), ("B", 3)]


@pytest_twisted.ensureDeferred
async def test_what_ends_a_callback_ends_it_at_once_and_no_other(listening):
    watched = Watch(f"ws://127.0.0.1:{listening(kind=Leaver)}/", backoff=30)
    heard = []
    first = watched.service.on(Welcome, heard.append)
    watched.service.on(Welcome, heard.append)
    watched.service.on(Welcome, lambda _: last())
    last = watched.service.on(Welcome, lambda _: heard.append("ended"))
    first()
    first()
    watched.service.startService()
    await watched.state("open")
    await watched.service.stopService()
    assert [type(each) for each in heard] == [Welcome]


@pytest_twisted.ensureDeferred
async def test_a_service_that_stopped_in_a_callback_has_nothing_under_way(listening):
    answer = b"HTTP/1.1 403 Forbidden\r\n\r\n"
    watched, left = Watch(f"ws://127.0.0.1:{listening(None, answer)}/"), []

    async def stop(_):
        await watched.service.stopService()
        left.append([str(call) for call in reactor.getDelayedCalls()])

    watched.service.startService()
    watched.service.subscribe("A").addErrback(lambda f: defer.Deferred.fromCoroutine(stop(f)))
    await until(lambda: left, "the end")
    assert not [call for call in left[0] if "QuoteService" in call]


@pytest_twisted.ensureDeferred
async def test_a_cancelled_call_leaves_the_service_whole(daemon, watch):
    served = daemon("--plain")
    watched = watch(served)
    calling = watched.service.subscribe("A")
    calling.cancel()
    with pytest.raises(defer.CancelledError):
        await calling
    await watched.state("open")
    assert watched.service.symbols == ["A"], "what it asked for holds"
    assert await watched.service.subscribe("A") == {}


def test_wrong_options_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="wss://HOST:PORT/"):
        QuoteService(reactor, "localhost:8008")
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        QuoteService(reactor, "wss://localhost/", ca=tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ValueError, match="holds no certificates"):
        QuoteService(reactor, "wss://localhost/", ca=tmp_path / "empty.pem")
    with pytest.raises(TypeError, match="one an argument"):
        QuoteService(reactor, "ws://localhost/").subscribe(["A"])
