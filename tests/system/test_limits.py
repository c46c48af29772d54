"""What clients may use has limits, each is told so, and those who keep to them are served on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from typing import Any, Final

import pytest
from system_clients import Client, Puppet, Undisturbed, client_of, open_websocket
from system_harness import DEADLINE, Daemon, Publisher, StartDaemon, poll_async
from websockets.exceptions import ConnectionClosed, InvalidStatus

#: Another address of the loopback interface, as if it were another machine.
ELSEWHERE: Final = "127.0.0.2"
TOO_MANY_SYMBOLS: Final = 405
TOO_MANY_MESSAGES: Final = 429


async def refusal(served: Daemon) -> tuple[int, int, bytes]:
    """The status, the Retry-After and the words with which a new client is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await open_websocket(served)
    response = refused.value.response
    return response.status_code, int(response.headers["Retry-After"]), response.body or b""


async def sees_a_quote(client: Client, publisher: Publisher, channel: str) -> None:
    """The client, which watches the symbol of `channel`, is served."""
    await asyncio.to_thread(publisher.publish, [(channel, '"now"')])
    while (event := await client.expect("quote", "snapshot"))["ev"] != "quote":
        pass
    assert event["d"] == "now"


def errors_of(answer: dict[str, Any]) -> dict[str, int]:
    return {symbol: error["code"] for symbol, error in answer.get("errors", {}).items()}


# -- connections ---------------------------------------------------------------------------------


def test_clients_beyond_the_limit_are_told_when_to_come_again_and_those_inside_are_served_on(
    daemon: StartDaemon, undisturbed: Undisturbed, publisher: Publisher
) -> None:
    served = daemon("--channels", "full.*", "--max-connections", "3")

    async def run() -> None:
        async with undisturbed(served, "full"), client_of(served, "A") as first:
            async with client_of(served, "A"):
                for _ in range(5):
                    status, retry_after, body = await refusal(served)
                    assert status == 503
                    assert 0 < retry_after < 60
                    assert b"full" in body
                await sees_a_quote(first, publisher, "full.A")
            # One left: there is room for one.
            async with client_of(served, "A") as third:
                await sees_a_quote(third, publisher, "full.A")
                assert (await refusal(served))[0] == 503

    asyncio.run(run())


def test_an_address_with_too_many_connections_is_told_so_and_another_address_gets_in(
    daemon: StartDaemon, undisturbed: Undisturbed, publisher: Publisher
) -> None:
    served = daemon("--channels", "home.*", "--max-per-address", "3")
    process = served.serving()

    async def run() -> None:
        async with undisturbed(served, "home"), client_of(served), client_of(served) as third:
            status, retry_after, body = await refusal(served)
            assert status == 429
            assert 0 < retry_after < 60
            assert b"3 connections" in body
            away = {"local_addr": (ELSEWHERE, 0), "host": "127.0.0.1", "port": served.port}
            async with client_of(served, "A", **away) as elsewhere:
                await sees_a_quote(elsewhere, publisher, "home.A")
                assert (await refusal(served))[0] == 429
            files = process.num_fds()
            await third.connection.close()
            await poll_async(lambda: process.num_fds() < files, "the end of one of them")
            async with client_of(served, "A") as again:
                await sees_a_quote(again, publisher, "home.A")

    asyncio.run(run())


def test_an_address_that_connects_too_fast_is_turned_away_unheard_until_it_is_patient(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    rate = 2
    served = daemon("--channels", "rate.*", "--connect-rate", str(rate))

    def gets_in() -> bool:
        try:
            with Puppet(served, source=ELSEWHERE) as puppet:
                puppet.upgrade()
        except (ConnectionError, ssl.SSLError):
            return False
        return True

    async def run() -> None:
        async with undisturbed(served, "rate"):
            # Ten seconds' worth may come at once, and what the time it takes brings.
            began = time.monotonic()
            in_a_burst = 0
            while await asyncio.to_thread(gets_in):
                in_a_burst += 1
                assert in_a_burst < 50 * rate, "no end of it"
            refilled = rate * (time.monotonic() - began)
            assert 10 * rate <= in_a_burst <= 10 * rate + refilled + 1
            # Those who are refused and go on at once get nothing of what time brings.
            until = time.monotonic() + 6 / rate
            at_once = 0
            while time.monotonic() < until:
                at_once += await asyncio.to_thread(gets_in)
            assert at_once < 4
            deadline = time.monotonic() + 20
            while not await asyncio.to_thread(gets_in):
                assert time.monotonic() < deadline
                # The pace of the attempts: slower than the rate.
                await asyncio.sleep(1.2 / rate)
            async with client_of(served, "A"):
                pass

    asyncio.run(run())


# -- symbols -------------------------------------------------------------------------------------


def test_one_client_may_watch_so_many_symbols_and_is_told_of_each_one_beyond(
    daemon: StartDaemon, undisturbed: Undisturbed, publisher: Publisher
) -> None:
    served = daemon("--channels", "many.*", "--max-symbols", "3")

    async def run() -> None:
        async with undisturbed(served, "many"), client_of(served) as client:
            answer = await client.subscribe(*"ABCDE")
            assert answer["symbols"] == list("ABC")
            assert errors_of(answer) == {"D": TOO_MANY_SYMBOLS, "E": TOO_MANY_SYMBOLS}
            # Each client has as many of its own, and changing what it has is always possible.
            async with client_of(served, *"DEF") as other:
                answer = await client.subscribe(*"ABC", mode="raw")
                assert errors_of(answer) == {}
                await asyncio.to_thread(publisher.publish, [(f"many.{s}", "1") for s in "ABCDEF"])
                assert [(await client.expect("quote"))["s"] for _ in range(3)] == list("ABC")
                assert [(await other.expect("quote"))["s"] for _ in range(3)] == list("DEF")
            await client.ask({"op": "unsubscribe", "symbols": ["B"]})
            assert errors_of(await client.subscribe("D", snapshot=False)) == {}

    asyncio.run(run())


def test_where_all_room_for_symbols_is_watched_others_are_refused_and_watched_ones_are_not(
    daemon: StartDaemon, undisturbed: Undisturbed, publisher: Publisher
) -> None:
    # One of them is watched by the client that is not to be disturbed.
    served = daemon("--channels", "total.*", "--max-total-symbols", "4")

    async def run() -> None:
        async with (
            undisturbed(served, "total"),
            client_of(served, *"ABC") as first,
            client_of(served) as second,
        ):
            answer = await second.subscribe(*"ADBE")
            assert answer["symbols"] == list("AB")
            assert errors_of(answer) == {"D": TOO_MANY_SYMBOLS, "E": TOO_MANY_SYMBOLS}
            assert "room" in answer["errors"]["D"]["msg"]
            # A quote of a symbol for which there is no room is for nobody, and harms nobody.
            await asyncio.to_thread(publisher.publish, [("total.D", "1"), ("total.A", "2")])
            for client in (first, second):
                assert (await client.expect("quote"))["s"] == "A"
            # B is still watched by the other one, and so makes no room; C does.
            await first.ask({"op": "unsubscribe", "symbols": ["B"]})
            assert errors_of(await second.subscribe("D")) == {"D": TOO_MANY_SYMBOLS}
            await first.ask({"op": "unsubscribe", "symbols": ["C"]})
            assert errors_of(await second.subscribe("D", "E")) == {"E": TOO_MANY_SYMBOLS}
            await sees_a_quote(second, publisher, "total.D")

    asyncio.run(run())


def test_last_values_that_nobody_watches_make_room_oldest_first(
    daemon: StartDaemon, undisturbed: Undisturbed, publisher: Publisher
) -> None:
    served = daemon("--channels", "last.*", "--max-total-symbols", "4")

    async def snapshots(*symbols: str) -> list[str]:
        """Those of `symbols` that have a last value."""
        got = []
        async with client_of(served) as client:
            for symbol in symbols:
                await client.subscribe(symbol)
                await client.send({"op": "list"})
                if (await client.expect("snapshot", "list"))["ev"] == "snapshot":
                    got.append(symbol)
                    await client.expect("list")
                await client.ask({"op": "unsubscribe"})
        return got

    async def run() -> None:
        async with undisturbed(served, "last"):
            async with client_of(served, "END") as client:
                for symbol in ("A", "B", "A", "C"):
                    await asyncio.to_thread(publisher.publish, [(f"last.{symbol}", "1")])
                await sees_a_quote(client, publisher, "last.END")
            # There is room for four with the one that is watched: B was the oldest.
            assert await snapshots("A", "C", "END") == ["A", "C", "END"]

    asyncio.run(run())


# -- messages ------------------------------------------------------------------------------------


def test_a_client_that_says_too_much_is_told_so_then_closed_and_may_come_again(
    daemon: StartDaemon, undisturbed: Undisturbed, publisher: Publisher
) -> None:
    rate = 20
    options = ["--message-rate", str(rate), "--close-timeout", "1"]
    served = daemon("--channels", "talk.*", *options)

    async def talk(client: Client) -> tuple[list[dict[str, Any]], int | None]:
        """Send commands at once; returns what was answered, and the close code."""
        for number in range(50 * rate):
            await client.send({"op": "ping", "id": number})
        answers: list[dict[str, Any]] = []
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    answers += json.loads(await client.connection.recv())
        return answers, client.connection.close_code

    async def run() -> None:
        async with undisturbed(served, "talk"):
            async with client_of(served) as client:
                answers, code = await talk(client)
            answers = [answer for answer in answers if answer["ev"] != "heartbeat"]
            assert code == 4029
            # Each one was answered or refused, in order, until it was too much.
            assert [answer["id"] for answer in answers] == list(range(len(answers)))
            fine = sum(answer["ev"] == "pong" for answer in answers)
            refused = [answer["code"] for answer in answers if answer["ev"] == "error"]
            assert fine >= 10 * rate - 2
            assert rate / 2 < len(refused)
            assert set(refused) == {TOO_MANY_MESSAGES}
            assert len(answers) < 50 * rate
            async with client_of(served, "A") as again:
                await sees_a_quote(again, publisher, "talk.A")

    asyncio.run(run())


def test_a_client_that_was_refused_for_its_messages_and_waits_is_heard_again(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    rate = 20
    served = daemon("--channels", "wait.*", "--message-rate", str(rate))

    async def run() -> None:
        async with undisturbed(served, "wait"), client_of(served) as client:
            while (answer := await client.ask({"op": "ping", "id": "x"}))["ev"] == "pong":
                pass
            assert (answer["ev"], answer["code"], answer["id"]) == ("error", 429, "x")
            assert (await client.ask({"op": "subscribe", "symbols": ["NO"]}))["ev"] == "error"
            deadline = time.monotonic() + 20
            while (answer := await client.ask({"op": "list"}))["ev"] == "error":
                assert time.monotonic() < deadline
                # The pace of the attempts: slower than the rate.
                await asyncio.sleep(2 / rate)
            # What was refused was not carried out.
            assert answer["symbols"] == []

    asyncio.run(run())
