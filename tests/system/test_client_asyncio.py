"""The asyncio client against daemons: what they do, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from authenticated_clients import Issuer, check_not_logged
from free_ports import free_port
from redis_process import Authority, RedisServer, TLSFiles
from system_harness import DEADLINE, Daemon, Publish, StartDaemon

from pushservice.client import (
    Authenticated,
    Event,
    Feed,
    Fresh,
    Gap,
    Quote,
    QuoteError,
    Quotes,
    Refused,
    Stale,
    State,
    connect,
)

OwnRedis = Callable[..., RedisServer]
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and see that it leaves no task behind."""

    async def whole() -> T:
        async with asyncio.timeout(4 * DEADLINE):
            result = await work
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"tasks left behind: {others}"
        return result

    return asyncio.run(whole())


class Reader:
    """Reads all that a client is told, and keeps its books."""

    def __init__(self, quotes: Quotes) -> None:
        self.quotes = quotes
        self.told: list[Event] = []

    async def until(self, kind: type[T], condition: Callable[[T], object] = lambda _: True) -> T:
        """Read up to an event of `kind` for which `condition` holds."""
        async with asyncio.timeout(DEADLINE):
            async for event in self.quotes:
                self.told.append(event)
                if isinstance(event, kind) and condition(event):
                    return event
        raise AssertionError(f"the iteration ended without {kind}: {self.told}")

    async def state(self, name: str) -> State:
        return await self.until(State, lambda state: state.name == name)


@asynccontextmanager
async def reader_of(daemon: Daemon, *symbols: str, **settings: Any) -> AsyncIterator[Reader]:
    """A client that has subscribed `symbols`."""
    trust = {} if daemon.plain else {"ca": daemon.certs / "dev.crt"}
    async with connect(daemon.url, **(trust | {"backoff": 0.05} | settings)) as quotes:
        if symbols:
            await quotes.subscribe(*symbols)
        yield Reader(quotes)


def holes(told: list[Event]) -> list[tuple[int, int]]:
    """Where one symbol's payloads, which count, jump with neither a Gap nor `merged` to tell."""
    found, last = [], None
    for event in told:
        if isinstance(event, Gap):
            last = None
        elif isinstance(event, Quote):
            if last is not None and event.data - last - 1 != event.merged and not event.snapshot:
                found.append((last, event.data))
            last = event.data
    return found


# -- what daemons do -----------------------------------------------------------------------------


def test_from_nothing_to_exact_prices(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "ca.*")

    async def work() -> None:
        async with reader_of(served, "A", "B") as reader:
            assert await reader.quotes.served() == ["A", "B"]
            assert 0 < await reader.quotes.ping() < DEADLINE
            publish(redis_server, [("ca.A", '{"last": 10.50}'), ("ca.B", "1"), ("ca.A", "2")])
            first = await reader.until(Quote)
            assert (first.symbol, first.n, first.merged, first.snapshot) == ("A", 1, 0, False)
            assert first.raw == b'{"last": 10.50}'
            assert str(json.loads(first.raw, parse_float=Decimal)["last"]) == "10.50"
            assert first.data == {"last": 10.5}
            await reader.until(Quote, lambda quote: (quote.symbol, quote.n) == ("A", 2))
            errors = await reader.quotes.subscribe("C", "no symbol")
            assert {symbol: error.code for symbol, error in errors.items()} == {"no symbol": 411}
            await reader.quotes.unsubscribe("A", "C")
            assert reader.quotes.symbols == await reader.quotes.served() == ["B"]
            publish(redis_server, [("ca.A", "3"), ("ca.B", "4")])
            assert (await reader.until(Quote, lambda quote: quote.n == 2)).symbol == "B"
        async with reader_of(served, "A") as reader:
            assert (await reader.until(Quote)).snapshot

    run(work())


def test_only_gives_events_of_a_kind_and_leaving_ends_the_iteration(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "co.*", "--plain")

    async def work() -> None:
        async with connect(served.url) as quotes:
            await quotes.subscribe("A")
            publish(redis_server, [("co.A", "1")])
            async for quote in quotes.only(Quote):
                assert quote.data == 1
                break
            reading = asyncio.create_task(anext(quotes.only(Gap), None))
            async with asyncio.timeout(DEADLINE):
                while quotes._reader is None:
                    await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one reader"):
                await anext(quotes)
        assert await reading is None
        assert quotes.state == "closed"
        with pytest.raises(QuoteError):
            await quotes.subscribe("B")
        with pytest.raises(RuntimeError, match="entered once"):
            await quotes.__aenter__()

    run(work())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ends_and_comes_back_leaves_no_silent_hole(
    how: signal.Signals, daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    channel = f"cr{int(how)}"
    served = daemon("--channels", f"{channel}.*")

    async def work() -> None:
        nonlocal served
        count = 0

        def quote() -> None:
            nonlocal count
            count += 1
            publish(redis_server, [(f"{channel}.A", str(count))])

        async with reader_of(served, "A") as reader:
            for _ in range(2):
                quote()
                await reader.until(Quote, lambda told: told.data == count)
                await asyncio.to_thread(served.stop, how)
                assert (await reader.state("waiting")).code in (1001, 1006)
                quote()
                port = served.port
                served = await asyncio.to_thread(
                    daemon, "--channels", f"{channel}.*", "--port", str(port)
                )
                served.port = port
                assert (await reader.until(Gap)) == Gap("A", "link")
            quote()
            await reader.until(Quote, lambda told: told.data == count)
            assert holes(reader.told) == []
            assert sum(isinstance(event, Stale) for event in reader.told) >= 2
            assert reader.quotes.state == "open"

    run(work())


def test_a_daemon_need_not_be_there_yet(daemon: StartDaemon) -> None:
    port = free_port()

    async def work() -> None:
        url = f"ws://127.0.0.1:{port}/"
        async with connect(url, backoff=0.05, backoff_max=0.2) as quotes:
            subscribing = asyncio.create_task(quotes.subscribe("A"))
            waiting = await Reader(quotes).state("waiting")
            assert waiting.reason == f"{url}: Connection refused"
            await asyncio.to_thread(daemon, "--plain", "--port", str(port))
            assert await subscribing == {}

    run(work())


def test_a_lost_redis_is_told_as_a_lost_feed_and_what_may_be_missing_as_gaps(
    daemon: StartDaemon, publish: Publish, own_redis: OwnRedis
) -> None:
    redis = own_redis()
    served = daemon("--channels", "cf.*", "--heartbeat", "200", redis=redis.url)

    async def work() -> None:
        async with reader_of(served, "A") as reader:
            publish(redis, [("cf.A", "1")])
            await reader.until(Quote)
            redis.stop()
            assert not (await reader.until(Feed, lambda feed: not feed.up)).up
            assert await reader.until(Stale) == Stale(None, "feed")
            again = await asyncio.to_thread(own_redis, port=redis.port)
            await reader.until(Feed, lambda feed: feed.up)
            assert await reader.until(Fresh) == Fresh(None)
            assert await reader.until(Gap) == Gap("A", "feed")
            publish(again, [("cf.A", "2")])
            await reader.until(Quote, lambda quote: quote.data == 2)

    run(work())


def test_a_server_that_is_full_is_waited_for_as_long_as_it_says(daemon: StartDaemon) -> None:
    served = daemon("--max-per-address", "1", "--plain")

    async def work() -> None:
        async with reader_of(served, "A"), reader_of(served) as second:
            state = await second.state("waiting")
            assert state.code == 429
            assert state.delay is not None
            assert state.delay >= 1
            assert state.reason.startswith("HTTP 429: ")

    run(work())


# -- a reader that is slow -----------------------------------------------------------------------


def test_a_slow_reader_gets_the_newest_and_an_exact_count_in_bounded_memory(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "cs.*", "--plain")
    symbols = [f"S{n}" for n in range(20)]

    async def work() -> None:
        async with reader_of(served, *symbols, room=50) as reader:
            for n in range(1, 201):
                messages = [(f"cs.{symbol}", str(n)) for symbol in symbols]
                await asyncio.to_thread(publish, redis_server, messages)
            # Nobody reads; that all of it came shows in the answer that comes after it.
            await reader.quotes.subscribe("LAST")
            waiting = len(reader.quotes._queue)
            assert waiting <= 50 + len(symbols) + 5
            last = dict.fromkeys(symbols, 0)
            merged = 0
            while min(last.values()) < 200:
                quote = await reader.until(Quote)
                assert quote.n == last[quote.symbol] + quote.merged + 1
                last[quote.symbol] = quote.n
                merged += quote.merged
            assert merged > 0
            assert len(reader.told) < 500

    run(work())


def test_with_mode_raw_nothing_is_merged_and_requests_are_answered_though_nobody_reads(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "cw.*", "--plain", "--heartbeat", "500")

    async def work() -> None:
        async with reader_of(served, "A", mode="raw", room=5) as reader:
            for n in range(1, 301):
                await asyncio.to_thread(publish, redis_server, [("cw.A", str(n))])
            assert await reader.quotes.subscribe("B") == {}
            assert await reader.quotes.ping() > 0
            numbers = []
            while len(numbers) < 300:
                quote = await reader.until(Quote)
                assert quote.merged == 0
                numbers.append(quote.data)
            assert numbers == list(range(1, 301))
            assert not [event for event in reader.told if isinstance(event, Gap)]

    run(work())


def test_with_mode_raw_a_reader_that_is_too_slow_is_closed_and_told_of_the_hole(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon(
        *("--channels", "cx.*", "--plain", "--raw-budget", "65536", "--send-buffer", "16384")
    )
    payload = '"' + "x" * 60_000 + '"'

    async def work() -> None:
        async with reader_of(served, "A", mode="raw", room=3) as reader:
            # More than all buffers on the way hold.
            for _ in range(500):
                await asyncio.to_thread(publish, redis_server, [("cx.A", payload)])
            # What was on its way is read; then it is told why no more came.
            assert (await reader.state("waiting")).code in (4008, 1006)
            assert await reader.until(Gap) == Gap("A", "link")

    run(work())


# -- tokens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def guarded(module_daemon: StartDaemon, issuer: Issuer) -> Daemon:
    return module_daemon(*issuer.options, "--token-leeway", "0", "--channels", "ct.*")


def test_a_function_renews_tokens_before_they_end_and_no_log_has_them(
    guarded: Daemon,
    issuer: Issuer,
    publish: Publish,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    reasons = []

    async def token(why: str) -> str:
        reasons.append(why)
        return issuer.token(life=3.0)

    async def work() -> None:
        async with reader_of(guarded, "A", token=token) as reader:
            while len(reasons) < 3:
                await reader.until(Authenticated, lambda known: known.user == "ann")
            publish(redis_server, [("ct.A", "1")])
            await reader.until(Quote)
            assert not [e for e in reader.told if isinstance(e, State) and e.name == "waiting"]

    run(work())
    assert reasons[:3] == ["connect", "expiring", "expiring"]
    assert "pushservice.client" in {record.name for record in caplog.records}
    check_not_logged(caplog.text, issuer.made)


def test_what_a_token_does_not_cover_is_refused(guarded: Daemon, issuer: Issuer) -> None:
    token = issuer.token(sub="ann", symbols=["A*"])

    async def work() -> None:
        async with reader_of(guarded, token=token) as reader:
            with pytest.raises(QuoteError) as refused:
                await reader.quotes.subscribe("TSLA")
            assert refused.value.code == 409
            assert (await reader.until(Refused)).symbol == "TSLA"

    run(work())


@pytest.mark.parametrize("kind", ["none", "wrong", "ending"])
def test_a_token_that_is_no_good_any_more_ends_the_iteration_with_the_reason(
    kind: str, guarded: Daemon, issuer: Issuer
) -> None:
    token = {"none": None, "wrong": "eyJx.eyJ9.e30", "ending": issuer.token(life=1.5)}[kind]

    async def work() -> None:
        async with reader_of(guarded, token=token) as reader:
            with pytest.raises(QuoteError) as ended:
                await reader.state("never")
            assert ended.value.code == 4001
            assert isinstance(reader.told[-1], State)
            assert (reader.told[-1].name, reader.told[-1].code) == ("closed", 4001)
            with pytest.raises(StopAsyncIteration):
                await anext(reader.quotes)

    run(work())


def test_a_token_function_that_fails_is_logged_and_called_again(
    guarded: Daemon, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[object] = [ValueError("no network"), None, 7]

    def token(why: str) -> Any:
        answer = answers.pop(0) if answers else issuer.token()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def work() -> None:
        async with reader_of(guarded, "A", token=token):
            pass

    run(work())
    assert caplog.text.count("no token from the token function") == 3
    assert "no network" in caplog.text


def test_leaving_does_not_wait_for_a_token_that_never_comes(guarded: Daemon) -> None:
    asked = asyncio.Event()

    async def token(why: str) -> str:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> None:
        async with reader_of(guarded, token=token):
            await asked.wait()

    run(work())


# -- trust, and other ends -------------------------------------------------------------------------


@asynccontextmanager
async def listening(files: TLSFiles | None, answer: bytes = b"") -> AsyncIterator[int]:
    """A port that speaks TLS with a certificate, or does not, and answers what is said."""
    context = None
    if files is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await reader.read(100)
            writer.write(answer)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def end_of(url: str, **settings: Any) -> QuoteError:
    """Why a client was closed."""
    async with connect(url, **settings) as quotes:
        with pytest.raises(QuoteError) as ended:
            await quotes.subscribe("A")
    return ended.value


@pytest.mark.parametrize(
    ("named", "days", "trusted", "words"),
    [
        (["elsewhere"], 30, True, "it is not for that name"),
        ([], 30, True, "it is not for that name"),
        (["localhost"], -1, True, "it has expired"),
        (["localhost"], 30, False, "name yours with ca="),
    ],
)
def test_a_certificate_that_is_no_good_ends_it_and_says_why(
    named: list[str], days: int, trusted: bool, words: str, tmp_path: Path
) -> None:
    # Its name is the host's, which counts for nothing.
    files = Authority(tmp_path).issue("localhost", *named, days=days)

    async def work() -> None:
        async with listening(files) as port:
            ca = {"ca": files.ca} if trusted else {}
            ended = await end_of(f"wss://localhost:{port}/", **ca)
            assert ended.code == 1015
            assert ended.message == f"the certificate of localhost is refused: {words}" or (
                words in ended.message
            )

    run(work())


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno\nno", 403, "HTTP 403: no"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\n<html/>", 404, "HTTP 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "HTTP 200"),
    ],
)
def test_a_refusal_for_good_ends_it(answer: bytes, code: int, words: str) -> None:
    async def work() -> None:
        async with listening(None, answer) as port:
            ended = await end_of(f"ws://127.0.0.1:{port}/")
            assert (ended.code, ended.message) == (code, words)

    run(work())


def test_a_port_without_tls_is_named() -> None:
    async def work() -> None:
        async with listening(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
            ended = await end_of(f"wss://127.0.0.1:{port}/")
            assert ended.code == 1015
            assert "does not speak TLS: is it ws://" in ended.message

    run(work())


@pytest.mark.parametrize("url", ["ws://localhost:{}/", "ws://no-such-host.invalid:{}/"])
def test_leaving_while_it_cannot_connect_takes_no_time(url: str) -> None:
    async def work() -> None:
        async with connect(url.format(free_port()), backoff=0.01) as quotes:
            reader = Reader(quotes)
            await reader.state("waiting")
            await reader.state("connecting")
        assert quotes.state == "closed"

    run(work())


def test_a_silent_server_is_not_waited_for_longer_than_allowed() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}/", connect_timeout=0.2) as quotes:
                assert (await Reader(quotes).state("waiting")).reason == "no welcome in time"

    run(work())


def test_a_cancelled_call_and_a_cancelled_reader_leave_the_client_whole(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "cc.*", "--plain")

    async def work() -> None:
        async with reader_of(served) as reader:
            subscribing = asyncio.create_task(reader.quotes.subscribe("A"))
            await asyncio.sleep(0)
            subscribing.cancel()
            await reader.state("open")
            reading = asyncio.create_task(anext(reader.quotes.only(Quote)))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([subscribing, reading])
            await reader.quotes.subscribe("A")
            publish(redis_server, [("cc.A", "1")])
            await reader.until(Quote)

    run(work())


def test_an_authority_that_is_no_file_of_certificates_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(ValueError, match="holds no certificates in PEM"):
        connect("wss://localhost/", ca=empty)
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        connect("wss://localhost/", ca=tmp_path / "missing.pem")


def test_symbols_are_arguments_and_not_a_list(daemon: StartDaemon) -> None:
    async def work() -> None:
        quotes = connect("ws://localhost/")
        with pytest.raises(TypeError, match='subscribe\\("AAPL", "MSFT"\\)'):
            await quotes.subscribe(["AAPL", "MSFT"])  # type: ignore[arg-type]  # that is the point

    run(work())
