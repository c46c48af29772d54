"""Quotes that come late: the same as in real time, to the byte, and never a moment too early.

What is early is told by the `t` of the quote itself, the daemon's receive time: when a client has
it, that moment lies at least the delay in the past. Both are this machine's clock.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest
from authenticated_clients import (
    AuthenticatedClient,
    Issuer,
    authenticated_client,
    check_not_logged,
    connect_with_token,
    refused,
)
from redis_process import RedisServer
from system_clients import Ledger, Puppet, frame
from system_harness import DEADLINE, Daemon, Publish, Publisher, StartDaemon

OwnRedis = Callable[..., RedisServer]
#: Seconds.
DELAY: Final = 0.8
LONGER: Final = 2.0

_QUOTE: Final = re.compile(
    rb'\{"ev":"(quote|snapshot)","s":"([^"]+)","n":(\d+),"t":(\d+),"d":(\{[^{}]*\})\}'
)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def late(daemon: StartDaemon, issuer: Issuer) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons with both delays."""
    started: list[Daemon] = []

    def start(*options: str, **more: Any) -> Daemon:
        asked = ["--delays", str(DELAY), "--delays", str(LONGER), "--log-level", "debug"]
        started.append(daemon(*issuer.options, *asked, *options, **more))
        return started[-1]

    yield start
    for each in started:
        each.stop()
        check_not_logged(each.output(), issuer.made)


class Seen(NamedTuple):
    """A quote as its bytes say it, and when it came."""

    kind: str
    symbol: str
    n: int
    t: int
    payload: bytes
    came: float

    def check_age(self, delay: float) -> None:
        assert self.t / 1000 + delay <= self.came, f"{self} came early"


class Listener:
    """A client that keeps what it is sent as bytes."""

    def __init__(self, client: AuthenticatedClient, delay: float = 0.0) -> None:
        self.client = client
        self.delay = delay
        self.seen: list[Seen] = []
        self.others: list[dict[str, Any]] = []
        #: gaps and the numbers of quotes, and when they came
        self.order: list[tuple[str, float]] = []

    async def message(self) -> None:
        async with asyncio.timeout(DEADLINE):
            data = await self.client.connection.recv(decode=False)
        came = time.time()
        for kind, symbol, n, t, payload in _QUOTE.findall(data):
            seen = Seen(kind.decode(), symbol.decode(), int(n), int(t), payload, came)
            seen.check_age(self.delay)
            self.seen.append(seen)
        for event in json.loads(data):
            if event["ev"] in ("quote", "snapshot", "gap"):
                self.order.append((str(event.get("n", "gap")), came))
            if event["ev"] not in ("quote", "snapshot", "heartbeat"):
                self.others.append(event)

    async def until(self, count: int) -> list[Seen]:
        """Read until there are so many quotes and snapshots; returns them."""
        while len(self.seen) < count:
            await self.message()
        assert len(self.seen) == count, self.seen[count:]
        return self.seen

    async def until_event(self, kind: str) -> dict[str, Any]:
        """Read until there is an event of this kind, and take it out."""
        while True:
            for event in self.others:
                if event["ev"] == kind:
                    self.others.remove(event)
                    return event
            await self.message()


def payload(number: int) -> bytes:
    """One that any change would show in."""
    return b'{ "last" : 10.%02d0,"i":%d }' % (number % 100, number)


# -- the same, and later -------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_delayed_client_gets_the_same_bytes_as_one_in_real_time_and_none_too_early(
    late: Callable[..., Daemon],
    issuer: Issuer,
    publish: Publish,
    redis_server: RedisServer,
    workers: str,
) -> None:
    served = late("--channels", "late.*", "--workers", workers)
    count = 300

    async def run() -> None:
        now, soon, later = issuer.token(), issuer.token(delay=DELAY), issuer.token(delay=1.5)
        async with (
            authenticated_client(served, now, "SAME") as real,
            authenticated_client(served, soon, "SAME") as delayed,
            authenticated_client(served, later, "SAME", way="op") as longest,
            authenticated_client(served, soon, "SAME", way="subprotocol", mode="raw") as raw,
            connect_with_token(served, soon, "header", "quotepush.raw") as bare,
        ):
            assert "delay" not in real.known
            assert (delayed.known["delay"], longest.known["delay"]) == (DELAY, 1.5)
            await bare.send("SAME")
            await delayed.ask({"op": "ping"})
            listeners = [
                Listener(real),
                Listener(delayed, DELAY),
                Listener(raw, DELAY),
                # The next longer delay that there is.
                Listener(longest, LONGER),
            ]
            # The bare one is known to be subscribed once a later command of it was answered.
            await bare.send("BAD SYMBOL*")
            async with asyncio.timeout(DEADLINE):
                assert "error" in await bare.recv()

            async def quote() -> None:
                for at in range(0, count, 3):
                    quotes = [("late.SAME", payload(number)) for number in range(at, at + 3)]
                    await asyncio.to_thread(publish, redis_server, quotes)

            async def read_bare() -> list[str]:
                async with asyncio.timeout(DEADLINE):
                    return [await bare.recv() for _ in range(count)]

            quoting = asyncio.create_task(quote())
            first = asyncio.create_task(read_bare())
            await asyncio.gather(*(each.until(count) for each in listeners))
            await quoting
            assert await first == [payload(number).decode() for number in range(count)]
        payloads = [seen.payload for seen in listeners[0].seen]
        assert payloads == [payload(number) for number in range(count)]
        if workers == "0":
            wanted = [each[:-1] for each in listeners[0].seen]
            for listener in listeners[1:]:
                assert [each[:-1] for each in listener.seen] == wanted
        else:
            # Each worker numbers and dates for itself.
            for listener in listeners[1:]:
                assert [seen.payload for seen in listener.seen] == payloads

    asyncio.run(run())


def test_a_snapshot_is_never_newer_than_the_delay(
    late: Callable[..., Daemon], issuer: Issuer, publish: Publish, redis_server: RedisServer
) -> None:
    served = late("--channels", "snap.*")

    async def run() -> None:
        token = issuer.token(delay=DELAY)
        async with (
            authenticated_client(served, issuer.token(), "S1") as real,
            authenticated_client(served, token, "S1") as delayed,
        ):
            ahead, behind = Listener(real), Listener(delayed, DELAY)
            for number in range(1, 8):
                publish(redis_server, [("snap.S1", payload(number))])
                await ahead.until(number)
                # One that comes just now sees what is old enough, and then the rest.
                async with authenticated_client(served, token) as newcomer:
                    await newcomer.send({"op": "subscribe", "symbols": ["S1"]})
                    listener = Listener(newcomer, DELAY)
                    while not listener.seen:
                        await listener.message()
                    assert listener.seen[0].n <= number
                    if listener.seen[0].kind == "snapshot":
                        assert listener.seen[0].n == len(behind.seen) or behind.seen == []
                await behind.until(number)
            # What was published long ago is a snapshot for all.
            async with authenticated_client(served, token) as newcomer:
                await newcomer.send({"op": "subscribe", "symbols": ["S1"]})
                (snapshot,) = await Listener(newcomer, DELAY).until(1)
                assert (snapshot.kind, snapshot.n) == ("snapshot", 7)
                assert snapshot.payload == payload(7)

    asyncio.run(run())


def test_a_delay_that_is_longer_than_any_is_refused(
    late: Callable[..., Daemon], issuer: Issuer
) -> None:
    served = late()

    async def run() -> None:
        status, words = await refused(served, issuer.token(delay=LONGER + 1))
        assert (status, "not offered" in words) == (401, True), words
        async with authenticated_client(served, issuer.token()) as client:
            assert (await client.authenticate(issuer.token(delay=LONGER + 1)))["code"] == 402

    asyncio.run(run())


# -- slow clients --------------------------------------------------------------------------------


def test_a_delayed_client_that_does_not_read_gets_the_newest_and_its_books_are_right(
    late: Callable[..., Daemon], issuer: Issuer, publisher: Publisher
) -> None:
    served = late("--channels", "slow.*", "--plain", "--heartbeat", "1000")
    token = issuer.token(delay=DELAY)
    fill = "x" * 2000
    symbols = [f"B{number}" for number in range(20)]
    rounds = 400
    with Puppet(served, receive_buffer=4096) as puppet:
        puppet.upgrade()
        puppet.send(frame(1, json.dumps({"op": "auth", "token": token}).encode()))
        assert puppet.expect("authenticated")["delay"] == DELAY
        puppet.subscribe(*symbols)
        for number in range(rounds):
            quotes = (json.dumps({"i": number, "fill": fill}) for _ in symbols)
            publisher.publish(
                [(f"slow.{s}", q) for s, q in zip(symbols, quotes, strict=True)], together=True
            )
        ledger = Ledger()
        newest: dict[str, int] = {}
        received = 0
        deadline = time.monotonic() + 2 * DEADLINE
        ended = False
        while not ended:
            assert time.monotonic() < deadline, newest
            for event in puppet.events():
                if event["ev"] == "gap" and not newest:
                    # The beginning of the daemon's life, for whoever was there that early.
                    continue
                ledger.enter(event)
                if event["ev"] == "quote":
                    assert event["t"] / 1000 + DELAY <= time.time()
                    assert event["n"] == event["d"]["i"] + 1
                    newest[event["s"]] = event["n"]
                    received += 1
                elif len(newest) == len(symbols) and set(newest.values()) == {rounds}:
                    # A heartbeat after all: the ledger has compared what was merged.
                    ended = True
    assert 0 < ledger.jumped == rounds * len(symbols) - received


# -- the feed comes and goes ---------------------------------------------------------------------


def test_what_the_loss_of_the_feed_may_have_cost_is_told_in_its_place_among_late_quotes(
    late: Callable[..., Daemon], issuer: Issuer, own_redis: OwnRedis
) -> None:
    own = own_redis()
    served = late("--channels", "loss.*", "--heartbeat", "1000", redis=own.url)

    def publish(redis: RedisServer, number: int) -> None:
        publisher = Publisher(redis)
        publisher.publish([("loss.S", payload(number))])
        publisher.close()

    async def run() -> None:
        async with (
            authenticated_client(served, issuer.token(), "S") as real,
            authenticated_client(served, issuer.token(delay=LONGER), "S") as delayed,
        ):
            ahead, behind = Listener(real), Listener(delayed, LONGER)
            publish(own, 1)
            await ahead.until(1)
            own.stop()
            down = await ahead.until_event("feed")
            assert down["state"] == "down"
            assert behind.seen == []
            again = own_redis(port=own.port)
            up = await ahead.until_event("feed")
            assert (up["state"], (await ahead.until_event("gap"))["s"]) == ("up", "S")
            await asyncio.to_thread(served.wait_for, "connected for the feed", times=2)
            publish(again, 2)
            await ahead.until(2)
            await behind.until(2)
        # How the feed is now, everybody is told now; what is missing, where it is missing.
        gaps = [at for what, at in behind.order if what == "gap"]
        assert gaps[-1] >= up["t"] / 1000 + LONGER
        order = [what for what, _ in behind.order]
        # The beginning of the daemon's life is one too, for whoever was there that early.
        assert order[order[0] == "gap" :] == ["1", "gap", "2"]
        assert [each[:-1] for each in behind.seen] == [each[:-1] for each in ahead.seen]

    asyncio.run(run())


# -- another delay -------------------------------------------------------------------------------


def test_a_token_without_delay_brings_a_delayed_client_into_real_time(
    late: Callable[..., Daemon], issuer: Issuer, publish: Publish, redis_server: RedisServer
) -> None:
    served = late("--channels", "move.*", "--heartbeat", "1000")

    async def run() -> None:
        async with (
            authenticated_client(served, issuer.token(delay=LONGER), "M1", "M2") as client,
            authenticated_client(served, issuer.token(), "M1", "M2") as real,
        ):
            listener, ahead = Listener(client, LONGER), Listener(real)
            publish(redis_server, [("move.M1", payload(1)), ("move.M2", payload(1))])
            await listener.until(2)
            publish(redis_server, [("move.M1", payload(n)) for n in (2, 3)])
            await ahead.until(4)
            await client.send({"op": "auth", "id": "up", "token": issuer.token()})
            listener.delay = 0.0
            known = await listener.until_event("authenticated")
            assert (known["id"], "delay" in known) == ("up", False)
            gaps = {(await listener.until_event("gap"))["s"] for _ in range(2)}
            assert gaps == {"M1", "M2"}
            await listener.until(4)
            newest = {seen.symbol: seen for seen in listener.seen}
            assert (newest["M1"].n, newest["M1"].kind) == (3, "snapshot")
            assert (newest["M2"].n, newest["M2"].kind) == (1, "snapshot")
            publish(redis_server, [("move.M1", payload(4))])
            await listener.until(5)
            assert listener.seen[-1][:3] == ("quote", "M1", 4)
            # Long past the delay, nothing has come twice.
            ends = time.time() + LONGER + 0.3
            while (await client.expect("heartbeat"))["t"] < ends * 1000:
                continue

    asyncio.run(run())


def test_on_the_way_into_real_time_nothing_is_shown_that_the_new_token_does_not_cover(
    late: Callable[..., Daemon], issuer: Issuer, publish: Publish, redis_server: RedisServer
) -> None:
    served = late("--channels", "cover.*")

    async def run() -> None:
        async with (
            authenticated_client(served, issuer.token(delay=LONGER), "OPEN", "SHUT") as client,
            authenticated_client(served, issuer.token(), "OPEN", "SHUT") as real,
        ):
            quotes = [
                (f"cover.{symbol}", payload(n)) for n in (1, 2) for symbol in ("OPEN", "SHUT")
            ]
            publish(redis_server, quotes)
            await Listener(real).until(4)
            await client.send({"op": "auth", "token": issuer.token(symbols=["OPEN"])})
            listener = Listener(client)
            gone = await listener.until_event("unsubscribed")
            assert (gone["symbols"], gone["errors"]["SHUT"]["code"]) == (["SHUT"], 409)
            publish(redis_server, [(f"cover.{symbol}", payload(3)) for symbol in ("SHUT", "OPEN")])
            while not listener.seen or listener.seen[-1].n < 3:
                await listener.message()
            assert {seen.symbol for seen in listener.seen} == {"OPEN"}
            assert {event.get("s") for event in listener.others} <= {None, "OPEN"}

    asyncio.run(run())


def test_a_token_with_a_longer_delay_makes_the_client_come_again(
    late: Callable[..., Daemon], issuer: Issuer
) -> None:
    served = late()

    async def run() -> None:
        for before in ({}, {"delay": DELAY}):
            async with authenticated_client(served, issuer.token(**before), "L") as client:
                known = await client.authenticate(issuer.token(delay=LONGER))
                assert (known["ev"], known["delay"]) == ("authenticated", LONGER)
                bye = await client.expect("bye")
                assert (bye["code"], bye["retry"]) == (1012, 0)
                assert await client.closed() == 1012

    asyncio.run(run())


# -- too little room -----------------------------------------------------------------------------


def test_what_the_tape_has_no_room_for_is_told_as_a_gap(
    late: Callable[..., Daemon], issuer: Issuer, publisher: Publisher
) -> None:
    served = late("--channels", "full.*", "--delay-buffer", "65536")
    chance = random.Random(20251122)

    async def run() -> None:
        async with authenticated_client(served, issuer.token(delay=DELAY), "F") as client:
            listener = Listener(client, DELAY)
            # More than the budget, and nothing that could be packed.
            quotes = [
                ("full.F", b'{"i":%d,"fill":"%b"}' % (n, chance.randbytes(1500).hex().encode()))
                for n in range(200)
            ]
            publisher.publish(quotes, together=True)
            publisher.publish([("full.F", b'{"i":"end"}')])
            assert (await listener.until_event("gap"))["s"] == "F"
            while not listener.seen or listener.seen[-1].payload != b'{"i":"end"}':
                await listener.message()
            got = [seen.payload for seen in listener.seen]
            assert len(got) < 200
            assert set(got) <= {quote for _, quote in quotes} | {b'{"i":"end"}'}

    asyncio.run(run())
