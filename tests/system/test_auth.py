"""Who is let in, how far, for how long: tokens, tickets and revocations on whole daemons.

Every daemon here logs all it can, and at its end nothing of a token may be in what it wrote.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
from authenticated_clients import (
    JSON,
    TOKEN_PLACES,
    AuthenticatedClient,
    Issuer,
    TokenPlace,
    authenticated_client,
    check_not_logged,
    connect_with_token,
    quotepush,
    refused,
    welcomed,
)
from free_ports import free_port
from redis_process import RedisServer
from system_clients import bare_socket, client_of, frame
from system_harness import (
    DEADLINE,
    TWISTD,
    Address,
    Daemon,
    Publish,
    Publisher,
    StartDaemon,
    environment,
)
from token_makers import forged, jwk, key_file, private_key, write_jwks
from websockets.exceptions import InvalidStatus
from worker_daemon import StartWorkerDaemon

OwnRedis = Callable[..., RedisServer]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def guarded(daemon: StartDaemon, issuer: Issuer) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons that take the tokens of `issuer`: guarded("--channels", "a.*", ...)."""
    started: list[Daemon] = []

    def start(*options: str, **more: Any) -> Daemon:
        options = (*issuer.options, "--log-level", "debug", *options)
        started.append(daemon(*options, **more))
        return started[-1]

    yield start
    for each in started:
        each.stop()
        check_not_logged(each.output(), issuer.made)


@pytest.fixture(scope="module")
def served(module_daemon: StartDaemon, issuer: Issuer) -> Iterator[Daemon]:
    """One daemon for all of the tests that need no options of their own."""
    options = ["--token-leeway", "0", "--token-in-url", "--heartbeat", "1000"]
    options += ["--log-level", "debug", "--channels", "auth.*"]
    found = module_daemon(*issuer.options, *options)
    yield found
    check_not_logged(found.output(), issuer.made)


# -- ways in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", TOKEN_PLACES)
def test_a_token_lets_in_however_it_is_sent(
    served: Daemon, issuer: Issuer, publish: Publish, redis_server: RedisServer, way: TokenPlace
) -> None:
    async def run() -> None:
        token = issuer.token(f"ann by {way}")
        async with authenticated_client(served, token, f"IN{way}", way=way) as client:
            assert client.known["user"] == f"ann by {way}"
            assert client.known["expires"] > time.time() * 1000
            assert "delay" not in client.known
            assert client.connection.subprotocol == JSON
            publish(redis_server, [(f"auth.IN{way}", "10.50")])
            assert (await client.expect("quote"))["d"] == 10.5

    asyncio.run(run())


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
def test_a_public_key_lets_in_whose_private_key_signed(
    daemon: StartDaemon, tmp_path: Path, algorithm: str
) -> None:
    own, other = Issuer(tmp_path, algorithm), Issuer(tmp_path, algorithm, 1)
    found = daemon(*own.options, "--log-level", "debug")

    async def run() -> None:
        async with authenticated_client(found, own.token()):
            status, words = await refused(found, other.token())
            assert (status, "signature" in words) == (401, True), words
        # The public key used as if it were a secret.
        public = key_file(tmp_path, algorithm).read_bytes()
        status, words = await refused(found, forged({"alg": "HS256"}, secret=public))
        assert (status, "HS256" in words) == (401, True), words

    asyncio.run(run())
    found.stop()
    check_not_logged(found.output(), own.made + other.made)


def test_keys_are_changed_in_a_jwk_set_while_the_daemon_runs(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    def token(which: int) -> str:
        claims = {"sub": "ann", "exp": time.time() + 600}
        key = private_key("EdDSA", which)
        return jwt.encode(claims, key, "EdDSA", headers={"kid": f"k{which}"})

    path = write_jwks(tmp_path / "jwks.json", jwk("EdDSA", 0, kid="k0"))
    found = daemon("--auth", "token", "--token-jwks", str(path))

    async def run() -> None:
        async with authenticated_client(found, token(0)):
            assert (await refused(found, token(1)))[0] == 401
            write_jwks(path, jwk("EdDSA", 1, kid="k1"))
            async with asyncio.timeout(DEADLINE):
                # It looks again at most once in 10 seconds.
                while True:
                    try:
                        async with authenticated_client(found, token(1)):
                            break
                    except InvalidStatus:
                        await asyncio.sleep(0.2)
            assert (await refused(found, token(0)))[0] == 401

    asyncio.run(run())


BAD: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "that has expired": (lambda issuer: issuer.token(life=-20), "expired"),
    "without an end": (lambda issuer: issuer.token(exp=None), "exp"),
    "of the future": (lambda issuer: issuer.token(iat=int(time.time()) + 60), "not valid"),
    "for another audience": (lambda issuer: issuer.token(aud="others"), "aud"),
    "of no algorithm": (lambda issuer: forged({"alg": "none"}, {"exp": 2e9}), "alg"),
    "that is forged": (lambda issuer: forged({"alg": "HS256"}, {"exp": 2e9}), "signature"),
    "that is none": (lambda issuer: "let-me-in-please-1234", "none"),
    "with a wrong right": (lambda issuer: issuer.token(max_symbols=-1), "max_symbols"),
    "with a delay that there is not": (lambda issuer: issuer.token(delay=5), "delay"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_token_is_refused_in_words_however_it_is_sent(
    served: Daemon, issuer: Issuer, what: str
) -> None:
    make, word = BAD[what]

    async def run() -> None:
        token = make(issuer)
        for way in ("header", "subprotocol", "url"):
            status, words = await refused(served, token, way)
            assert status == 401, (way, words)
            assert word in words, (way, words)
        async with connect_with_token(served) as connection:
            client = await welcomed(connection)
            error = await client.authenticate(token, id=6)
            assert (error["code"], error["id"]) == (402, 6), error
            assert word in error["msg"]
            # And it may try again.
            assert (await client.authenticate(issuer.token(), id=7))["ev"] == "authenticated"

    asyncio.run(run())


def test_a_handshake_with_two_tokens_or_an_unreadable_one_is_refused(
    served: Daemon, issuer: Issuer
) -> None:
    async def run() -> None:
        token = issuer.token()
        twice = {"subprotocols": [JSON, f"quotepush.auth.{token}"]}
        assert await refused(served, token, **twice) == (
            401,
            "one token is enough, and several were sent",
        )
        basic = {"additional_headers": {"Authorization": "Basic YW5uOnB3"}}
        status, words = await refused(served, None, **basic)
        assert (status, "Bearer" in words) == (401, True)
        async with bare_socket(served) as connection:
            head = await connection.upgrade("Authorization: Bearer nonsense")
            assert head.startswith(b"HTTP/1.1 401 ")
            assert b"\r\nWWW-Authenticate: Bearer" in head

    asyncio.run(run())


def test_a_token_in_the_url_is_refused_unless_that_was_allowed(
    guarded: Callable[..., Daemon], issuer: Issuer
) -> None:
    found = guarded()

    async def run() -> None:
        status, words = await refused(found, issuer.token(), "url")
        assert (status, "does not belong into the URL" in words) == (401, True), words
        async with authenticated_client(found, issuer.token(), way="subprotocol"):
            pass

    asyncio.run(run())


def test_what_comes_along_with_the_handshake_is_read_once_the_token_was_looked_at(
    served: Daemon, issuer: Issuer
) -> None:
    async def run() -> None:
        async with bare_socket(served) as connection:
            subscribe = frame(1, b'{"op":"subscribe","id":1,"symbols":["ALONG"]}')
            head = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            head += "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            head += f"Authorization: Bearer {issuer.token()}\r\n\r\n"
            await connection.send(head.encode() + subscribe)
            async with asyncio.timeout(DEADLINE):
                assert b" 101 " in await connection.reader.readuntil(b"\r\n\r\n")
            kinds = [json.loads((await connection.frame())[1])[0]["ev"] for _ in range(3)]
            assert kinds == ["welcome", "authenticated", "subscribed"]

    asyncio.run(run())


# -- strangers -----------------------------------------------------------------------------------


def test_an_unauthenticated_client_may_ping_and_authenticate_only(
    served: Daemon, issuer: Issuer, publish: Publish, redis_server: RedisServer
) -> None:
    async def run() -> None:
        async with client_of(served) as client:
            for op in ("subscribe", "unsubscribe", "list"):
                answer = await client.ask({"op": op, "id": op, "symbols": ["SECRET"]})
                assert (answer["ev"], answer["code"], answer["id"]) == ("error", 401, op)
            assert (await client.ask({"op": "ping", "id": 1}))["ev"] == "pong"
            async with authenticated_client(served, issuer.token(), "SECRET") as other:
                publish(redis_server, [("auth.SECRET", "1")])
                await other.expect("quote")
            # What it asked for before is not remembered.
            await client.send({"op": "auth", "token": issuer.token()})
            await client.expect("authenticated")
            assert (await client.ask({"op": "list"}))["symbols"] == []

    asyncio.run(run())


def test_a_stranger_who_takes_too_long_is_told_and_closed_with_4004(
    guarded: Callable[..., Daemon], issuer: Issuer
) -> None:
    found = guarded("--auth-timeout", "0.5")

    async def run() -> None:
        async with authenticated_client(found, issuer.token(), way="op") as known:
            async with client_of(found) as client:
                began = time.monotonic()
                error = await client.expect("error")
                assert (error["code"], "id" in error) == (404, False), error
                assert (await client.expect("bye"))["code"] == 4004
                assert await client.closed() == 4004
                assert time.monotonic() - began >= 0.4
            # Whoever was let in stays.
            assert (await known.ask({"op": "ping"}))["ev"] == "pong"
        async with bare_socket(found) as connection:
            await connection.upgrade("Sec-WebSocket-Protocol: quotepush.raw")
            assert b"404" in (await connection.frame())[1]
            assert await connection.close_code() == 4004

    asyncio.run(run())


def test_three_tokens_in_vain_end_the_connection_with_4001(served: Daemon, issuer: Issuer) -> None:
    async def run() -> None:
        async with client_of(served) as client:
            for attempt in range(3):
                await client.send({"op": "auth", "id": attempt, "token": issuer.token(life=-99)})
                error = await client.expect("error")
                assert (error["code"], error["id"]) == (402, attempt)
            assert (await client.expect("bye"))["code"] == 4001
            assert await client.closed() == 4001

    asyncio.run(run())


def test_a_client_of_quotepush_raw_authenticates_and_is_served_bare_payloads(
    served: Daemon, issuer: Issuer, publish: Publish, redis_server: RedisServer
) -> None:
    async def run() -> None:
        token = issuer.token(symbols=["RAW*"])
        for way in ("header", "op"):
            async with connect_with_token(served, token, way, "quotepush.raw") as connection:
                async with asyncio.timeout(DEADLINE):
                    if way == "op":
                        await connection.send("RAW1")
                        assert json.loads(await connection.recv())["error"]["code"] == 401
                        await connection.send(json.dumps({"op": "auth", "token": token}))
                    await connection.send("RAW1,OTHER")
                    answer = json.loads(await connection.recv())
                    assert "OTHER" in json.dumps(answer), answer
                    publish(redis_server, [("auth.OTHER", "1"), ("auth.RAW1", '{"x": 1.50}')])
                    assert await connection.recv() == '{"x": 1.50}'

    asyncio.run(run())


# -- how long ------------------------------------------------------------------------------------


def test_a_client_is_told_that_its_token_ends_and_stays_with_another(
    served: Daemon, issuer: Issuer, publish: Publish, redis_server: RedisServer
) -> None:
    async def run() -> None:
        ends = time.time() + 2
        async with authenticated_client(served, issuer.token(exp=ends)) as client:
            told = await client.expect("expiring")
            assert 0 < told["in"] <= 2000
            again = await client.authenticate(issuer.token(life=3600), id="again")
            assert (again["ev"], again["id"]) == ("authenticated", "again")
            assert again["expires"] > (ends + 3000) * 1000
            # Past the first token's end, by the daemon's own clock, it is there as before.
            while (await client.expect("heartbeat"))["t"] < (ends + 0.5) * 1000:
                continue
            await client.subscribe("REFRESH")
            publish(redis_server, [("auth.REFRESH", "1")])
            await client.expect("quote")

    asyncio.run(run())


def test_a_client_is_shut_out_at_the_end_of_its_token_and_not_before(
    served: Daemon, issuer: Issuer
) -> None:
    async def run() -> None:
        ends = time.time() + 1.5
        async with authenticated_client(served, issuer.token(exp=ends)) as client:
            await client.expect("expiring")
            error = await client.expect_token_ended()
            assert time.time() >= ends
            assert "expired" in error["msg"]
        # A token that replaced another one ends as well.
        async with authenticated_client(served, issuer.token()) as client:
            await client.authenticate(issuer.token(life=1))
            await client.expect("expiring")
            await client.expect_token_ended()

    asyncio.run(run())


def test_a_token_of_another_user_does_not_change_whose_a_connection_is(
    served: Daemon, issuer: Issuer
) -> None:
    async def run() -> None:
        async with authenticated_client(
            served, issuer.token("ann", symbols=["A*"]), "A1"
        ) as client:
            for user in ("bob", None):
                error = await client.authenticate(issuer.token(user), id=1)
                assert (error["code"], error["id"]) == (403, 1), error
            answer = await client.subscribe("B1", "A2")
            assert answer["symbols"] == ["A2"]

    asyncio.run(run())


def test_nobody_has_to_authenticate_where_nobody_is_asked(daemon: StartDaemon) -> None:
    found = daemon("--auth", "none")

    async def run() -> None:
        async with client_of(found) as client:
            answer = await client.ask({"op": "auth", "token": "whatever it may be"})
            assert (answer["ev"], answer["code"]) == ("error", 403)
        async with connect_with_token(found, "whatever-it-may-be", "subprotocol") as connection:
            client = await welcomed(connection)
            assert "auth" not in client.welcome
            assert connection.subprotocol == JSON

    asyncio.run(run())


# -- rights --------------------------------------------------------------------------------------


def test_patterns_decide_what_may_be_seen(
    served: Daemon, issuer: Issuer, publish: Publish, redis_server: RedisServer
) -> None:
    async def run() -> None:
        token = issuer.token(quotepush={"symbols": ["PAT.*", "!PAT.6*", "*.HK"]})
        async with authenticated_client(served, token) as client:
            asked = ["PAT.1", "PAT.688", "x.HK", "x.HKX", "pat.1", "PAT.é"]
            answer = await client.subscribe(*asked)
            assert answer["symbols"] == ["PAT.1", "x.HK", "PAT.é"]
            codes = {symbol: error["code"] for symbol, error in answer["errors"].items()}
            assert codes == {"PAT.688": 409, "x.HKX": 409, "pat.1": 409}
            publish(redis_server, [(f"auth.{symbol}", "1") for symbol in asked])
            seen = [(await client.expect("quote"))["s"] for _ in range(3)]
            assert seen == ["PAT.1", "x.HK", "PAT.é"]
        async with authenticated_client(served, issuer.token(symbols=[])) as client:
            assert (await client.subscribe("PAT.1"))["errors"]["PAT.1"]["code"] == 409

    asyncio.run(run())


def test_max_symbols_is_said_in_the_welcome_and_kept(served: Daemon, issuer: Issuer) -> None:
    async def run() -> None:
        async with authenticated_client(served, issuer.token(max_symbols=2)) as client:
            assert client.welcome["limits"]["symbols"] == 2
            answer = await client.subscribe("A", "B", "C")
            assert answer["symbols"] == ["A", "B"]
            assert answer["errors"]["C"]["code"] == 405
        async with authenticated_client(served, issuer.token(max_symbols=0)) as client:
            assert (await client.subscribe("A"))["errors"]["A"]["code"] == 405

    asyncio.run(run())


def test_min_interval_slows_a_fast_symbol_down_whatever_the_client_asks_for(
    served: Daemon, issuer: Issuer, publisher: Publisher
) -> None:
    interval = 200
    quotes = 1500
    end = -1

    async def run() -> None:
        token = issuer.token(min_interval=interval)
        async with (
            authenticated_client(served, token) as slow,
            authenticated_client(served, issuer.token()) as fast,
        ):
            answer = await slow.subscribe("FAST", mode="raw")
            assert answer["errors"]["FAST"]["code"] == 409
            assert answer["symbols"] == []
            await slow.subscribe("FAST", interval=0)
            # What the client asks for is longer than what it has to have.
            await fast.subscribe("FAST")

            paced: list[tuple[int, int]] = []
            every: list[tuple[int, int]] = []
            numbers: list[int] = []

            async def publish(number: int) -> None:
                numbers.append(number)
                await asyncio.to_thread(publisher.publish, [("auth.FAST", str(number))])

            async def read(client: AuthenticatedClient, got: list[tuple[int, int]]) -> None:
                while not got or got[-1][1] != end:
                    event = await client.expect("quote")
                    got.append((event["t"], event["d"]))

            reading = asyncio.gather(read(slow, paced), read(fast, every))
            async with asyncio.timeout(DEADLINE):
                # A machine that has much to do may bring many of them in one interval.
                while len(numbers) < quotes or len(paced) < 2:
                    await publish(len(numbers))
            await publish(end)
            await reading
        assert [number for _, number in every] == numbers
        # No interval of the daemon's own time holds more than one, but for the grain of timers.
        spent = every[-1][0] - every[0][0]
        assert 2 <= len(paced) <= spent / interval + 2, (len(paced), spent)

    asyncio.run(run())


def test_a_token_with_fewer_rights_ends_what_it_does_not_cover(
    served: Daemon, issuer: Issuer, publish: Publish, redis_server: RedisServer
) -> None:
    async def run() -> None:
        async with authenticated_client(
            served, issuer.token(), "FEW1", "FEW2", "FEW3", "XFEW"
        ) as client:
            await client.subscribe("FEWRAW", mode="raw")
            token = issuer.token(symbols=["FEW*"], max_symbols=2, min_interval=50)
            assert (await client.authenticate(token, id=9))["ev"] == "authenticated"
            gone = await client.expect("unsubscribed")
            assert "id" not in gone
            codes = {symbol: error["code"] for symbol, error in gone["errors"].items()}
            assert codes == {"XFEW": 409, "FEWRAW": 409, "FEW3": 405}
            assert sorted(gone["symbols"]) == sorted(codes)
            assert gone["total"] == 2
            symbols = ("XFEW", "FEWRAW", "FEW3", "FEW2")
            publish(redis_server, [(f"auth.{symbol}", "1") for symbol in symbols])
            assert (await client.expect("quote"))["s"] == "FEW2"
            # And with more again, it may.
            await client.authenticate(issuer.token())
            assert (await client.subscribe("XFEW"))["symbols"] == ["XFEW"]

    asyncio.run(run())


# -- revocation ----------------------------------------------------------------------------------


async def gone_and_out(client: AuthenticatedClient) -> None:
    assert "revoked" in (await client.expect_token_ended())["msg"]


async def stays(client: AuthenticatedClient) -> None:
    assert (await client.ask({"op": "ping"}))["ev"] == "pong"


async def revoke(own: RedisServer, *words: str) -> None:
    """As an operator does."""
    env = {"QUOTEPUSH_REDIS": own.url}
    said = await asyncio.to_thread(quotepush, "token", "revoke", *words, env=env)
    assert said.startswith("revoked: ")


def test_revoking_shuts_out_on_every_node_at_once_and_for_good(  # noqa: C901 - one life of a token
    guarded: Callable[..., Daemon], issuer: Issuer, own_redis: OwnRedis
) -> None:
    own = own_redis()
    nodes = [guarded(redis=own.url), guarded(redis=own.url)]
    eva = issuer.token("eva")
    first, second = issuer.token("ann"), issuer.token("ann", jti="the-second")
    no_iat = issuer.token("ann", iat=None)

    async def run() -> None:
        async with AsyncExitStack() as stack:

            async def enter(node: Daemon, token: str) -> AuthenticatedClient:
                return await stack.enter_async_context(authenticated_client(node, token))

            others = [await enter(node, eva) for node in nodes]
            one = [await enter(node, first) for node in nodes]
            two = [await enter(node, second) for node in nodes]
            # One that came as somebody else's token was replaced by the revoked one.
            one.append(await enter(nodes[0], issuer.token("ann")))
            await revoke(own, "--id", "the-second")
            for client in two:
                await gone_and_out(client)
            for client in one + others:
                await stays(client)
            assert (await one[2].authenticate(second))["code"] == 402
            assert own.cli("PUBLISH", "quotepush:revoke", "no JSON at all").startswith(b":")
            await revoke(own, "--user", "ann")
            for client in one:
                await gone_and_out(client)
            for client in others:
                await stays(client)
        for node in nodes:
            for token in (first, second, no_iat):
                status, words = await refused(node, token)
                assert (status, "revoked" in words) == (401, True), words
            async with connect_with_token(node) as connection:
                client = await welcomed(connection)
                assert "revoked" in (await client.authenticate(first))["msg"]
            # A token that was issued later lets in.
            async with authenticated_client(node, issuer.token("ann", iat=int(time.time()) + 2)):
                pass

    asyncio.run(run())
    nodes[0].stop()
    again = guarded(redis=own.url)

    async def try_again() -> None:
        for token in (first, second, no_iat):
            await out_again(again, token)
        async with authenticated_client(again, eva) as client:
            await stays(client)

    asyncio.run(try_again())


async def out_again(daemon: Address, token: str) -> None:
    """A revoked token lets nobody in, or not for long: what a daemon has yet to read may be."""
    try:
        async with authenticated_client(daemon, token) as client:
            await gone_and_out(client)
    except InvalidStatus:
        pass
    status, words = await refused(daemon, token)
    assert (status, "revoked" in words) == (401, True), words


def test_a_message_of_any_program_revokes_and_what_is_none_is_ignored(
    guarded: Callable[..., Daemon], issuer: Issuer, own_redis: OwnRedis
) -> None:
    own = own_redis()
    found = guarded(redis=own.url)

    def publish(text: str) -> None:
        command = ["redis-cli", "-s", own.path, "PUBLISH", "quotepush:revoke", text]
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)
        assert done.stdout.strip() == b"1"

    async def run() -> None:
        token = issuer.token("ann", jti="by-hand")
        async with (
            authenticated_client(found, token) as client,
            authenticated_client(found, issuer.token("bob")) as bob,
        ):
            for text in ("[]", '{"user":7}', '{"user":"ann","token":"x"}', "\xff", "", '{"a":1}'):
                await asyncio.to_thread(publish, text)
            await stays(client)
            await asyncio.to_thread(publish, '{"token":"by-hand","reason":"lost"}')
            await gone_and_out(client)
            await stays(bob)
            await asyncio.to_thread(publish, '{"user":"bob"}')
            await gone_and_out(bob)
        assert (await refused(found, token))[0] == 401

    asyncio.run(run())
    assert "revokes nothing" in found.output()


def test_what_was_revoked_while_redis_was_away_is_known_once_it_is_back(
    guarded: Callable[..., Daemon], issuer: Issuer, own_redis: OwnRedis
) -> None:
    own = own_redis()
    found = guarded(redis=own.url)

    async def run() -> None:
        async with authenticated_client(found, issuer.token("ann", jti="away")) as client:
            own.stop()
            await asyncio.to_thread(found.wait_for, "lost")
            back = own_redis(port=own.port)
            # Before the daemon can have heard a message: only the hash tells.
            back.cli("HSET", "quotepush:revoked", "token:away", str(int(time.time())))
            while (event := await client.event())["ev"] != "error":
                assert event["ev"] in ("feed", "heartbeat", "gap"), event
            assert event["code"] == 401
            assert "revoked" in event["msg"]

    asyncio.run(run())


def test_revoking_shuts_out_on_all_workers(
    worker_daemon: StartWorkerDaemon, issuer: Issuer, own_redis: OwnRedis
) -> None:
    own = own_redis()
    served = worker_daemon(*issuer.options, "--log-level", "debug", redis=own.url, workers=2)
    token = issuer.token("ann", jti="worker_daemon")
    bob = issuer.token("bob")

    async def run() -> None:
        async with AsyncExitStack() as stack:
            found: dict[str, list[AuthenticatedClient]] = {}
            async with asyncio.timeout(DEADLINE):
                while len(found) < 2 or any(len(there) < 2 for there in found.values()):
                    client = await stack.enter_async_context(authenticated_client(served, token))
                    found.setdefault(client.welcome["epoch"], []).append(client)
            others = [
                await stack.enter_async_context(authenticated_client(served, bob)) for _ in range(4)
            ]
            await revoke(own, "--user", "ann")
            for client in (each for there in found.values() for each in there):
                await gone_and_out(client)
            for client in others:
                await stays(client)
        for _ in range(6):
            assert (await refused(served, token))[0] == 401
        # Nor does a worker let in that takes the place of one that died.
        before = served.pids()
        served_first = next(iter(before.values()))
        os.kill(served_first, signal.SIGKILL)
        await asyncio.to_thread(served.wait_until_serving, 2, [served_first])
        for _ in range(6):
            await out_again(served, token)

    asyncio.run(run())
    served.stop()
    check_not_logged(served.log(), issuer.made)


# -- tickets -------------------------------------------------------------------------------------


class Box:
    """Writes tickets with the command line, and remembers them."""

    def __init__(self, own: RedisServer) -> None:
        self._env = {"QUOTEPUSH_REDIS": own.url}
        self.made: list[str] = []

    def ticket(self, *options: str) -> str:
        self.made.append(quotepush("token", "ticket", *options, env=self._env))
        return self.made[-1]


def ticketing(daemon: StartDaemon, own: RedisServer, *options: str) -> Daemon:
    found = daemon("--auth", "redis", "--log-level", "debug", *options, redis=own.url)
    found.wait_for("connected for the tickets")
    return found


@pytest.mark.parametrize("way", TOKEN_PLACES)
def test_a_ticket_for_one_use_lets_one_in_of_two_who_come_at_once(
    daemon: StartDaemon, own_redis: OwnRedis, way: TokenPlace
) -> None:
    own = own_redis()
    box = Box(own)
    found = ticketing(daemon, own, "--token-in-url")

    async def come(ticket: str) -> str:
        try:
            async with connect_with_token(found, ticket, way) as connection:
                client = await welcomed(connection)
                if way == "op":
                    answer = await client.authenticate(ticket)
                    if answer["ev"] == "error":
                        assert answer["code"] == 402
                        return "refused"
                else:
                    answer = await client.expect("authenticated")
                assert answer["user"] == "ann"
                assert (await client.subscribe("A1", "B1"))["symbols"] == ["A1"]
                return "in"
        except InvalidStatus as refusal:
            status = refusal.response.status_code
            return "refused" if status == 401 else f"refused with {status}"

    async def run() -> None:
        ticket = box.ticket("--user", "ann", "--symbols", "A*", "--expires", "1h")
        assert sorted(await asyncio.gather(*(come(ticket) for _ in range(5)))) == [
            "in",
            *["refused"] * 4,
        ]
        assert await come(ticket) == "refused"

    asyncio.run(run())
    found.stop()
    check_not_logged(found.output(), box.made)


def test_a_lasting_ticket_serves_until_it_ends_and_a_revoked_one_no_more(
    daemon: StartDaemon, own_redis: OwnRedis
) -> None:
    own = own_redis()
    box = Box(own)
    found = ticketing(daemon, own, "--token-leeway", "0")

    async def run() -> None:
        lasting = box.ticket("--user", "board", "--lasting", "--id", "wall", "--expires", "1h")
        async with (
            authenticated_client(found, lasting),
            authenticated_client(found, lasting, way="op") as client,
        ):
            short = box.ticket("--user", "eva", "--lasting", "--expires", "2s")
            async with authenticated_client(found, short) as eva:
                await eva.expect("expiring")
                assert "expired" in (await eva.expect_token_ended())["msg"]
            status, words = await refused(found, short)
            assert status == 401
            assert "not known" in words or "expired" in words
            await revoke(own, "--id", "wall")
            await gone_and_out(client)
        assert (await refused(found, lasting))[0] == 401
        # One that nobody used is revoked with its user.
        unused = box.ticket("--user", "late")
        await revoke(own, "--user", "late")
        assert "revoked" in (await refused(found, unused))[1]
        # What is no ticket, and one that was never written.
        for text in ("short", "x" * 600, "never-written-never-written"):
            assert (await refused(found, text))[0] == 401

    asyncio.run(run())
    found.stop()
    check_not_logged(found.output(), box.made)


async def shown(client: AuthenticatedClient, token: str) -> dict[str, Any]:
    """What comes of a token while the feed comes and goes."""
    await client.send({"op": "auth", "token": token})
    while (event := await client.expect("authenticated", "error", "feed"))["ev"] == "feed":
        continue
    return event


def test_while_redis_is_away_tickets_are_refused_for_now_and_serve_afterwards(
    daemon: StartDaemon, own_redis: OwnRedis
) -> None:
    own = own_redis()
    box = Box(own)
    found = ticketing(daemon, own, "--auth-timeout", "60", "--heartbeat", "500")

    async def run() -> None:
        ticket = box.ticket("--user", "ann")
        async with connect_with_token(found) as connection:
            stranger = await welcomed(connection)
            # One that hangs: it answers nobody.
            own.process.send_signal(signal.SIGSTOP)
            assert (await refused(found, ticket))[0] == 503
            assert (await shown(stranger, ticket))["code"] == 402
            own.process.send_signal(signal.SIGCONT)
            own.stop()
            await asyncio.to_thread(found.wait_for, "lost")
            # As often as it likes: it is not closed for what is no fault of its.
            for _ in range(4):
                refusal = await shown(stranger, ticket)
                assert (refusal["code"], "try again" in refusal["msg"]) == (402, True), refusal
            own_redis(port=own.port)
            await asyncio.to_thread(found.wait_for, "connected for the tickets", times=2)
            # The Redis that is back keeps nothing of before.
            fresh = box.ticket("--user", "ann", "--expires", "1h")
            assert (await shown(stranger, fresh))["user"] == "ann"

    asyncio.run(run())
    found.stop()
    check_not_logged(found.output(), box.made)


# -- clients that nobody here wrote --------------------------------------------------------------

NODE = """
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const WebSocket = createRequire(`${process.argv[2]}/`)("ws");
const { url, ca, token, ways } = JSON.parse(readFileSync(0, "utf8"));

function visit(way) {
  const protocols = ["quotepush.v1.json"];
  const options = { ca: readFileSync(ca) };
  if (way === "subprotocol") protocols.push(`quotepush.auth.${token}`);
  if (way === "header") options.headers = { Authorization: `Bearer ${token}` };
  const where = way === "url" ? `${url}?token=${token}` : url;
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(where, protocols, options);
    const seen = [];
    socket.on("error", reject);
    socket.on("close", () => resolve([way, socket.protocol, ...seen]));
    socket.on("message", (data) => {
      for (const event of JSON.parse(data.toString())) {
        seen.push(event.ev === "authenticated" ? event.user : event.auth ?? event.ev);
        if (event.auth === "required") socket.send(JSON.stringify({ op: "auth", token }));
        if (event.ev === "authenticated") socket.close(1000);
      }
    });
  });
}
console.log(JSON.stringify(await Promise.all(ways.map(visit))));
"""


def test_node_s_ws_authenticates_in_every_way(
    served: Daemon, issuer: Issuer, node_modules: Path, certs_directory: Path
) -> None:
    script = node_modules / "visit.mjs"
    script.write_text(NODE)
    told = {
        "url": served.url,
        "ca": str(certs_directory / "dev.crt"),
        "token": issuer.token("node"),
        "ways": TOKEN_PLACES,
    }
    done = subprocess.run(
        ["node", str(script), str(node_modules)],
        input=json.dumps(told),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for way, protocol, *seen in json.loads(done.stdout):
        assert protocol == JSON
        assert seen[:2] == ["required" if way == "op" else "done", "node"]


# -- what is said, and what is not ---------------------------------------------------------------

#: An address of this machine alone that is not written like one.
HIDDEN_LOOPBACK = "0x7f000001"


@pytest.mark.parametrize(
    ("interface", "options", "warned"),
    [
        (HIDDEN_LOOPBACK, [], True),
        (HIDDEN_LOOPBACK, ["--auth", "none"], False),
        ("127.0.0.1", [], False),
        ("127.0.0.1", ["--auth", "none"], False),
    ],
)
def test_it_is_warned_of_that_everybody_may_connect_unless_that_was_asked_for(
    redis_server: RedisServer,
    certs_directory: Path,
    tmp_path: Path,
    interface: str,
    options: list[str],
    warned: bool,
) -> None:
    port = free_port()
    command = [TWISTD, "-n", "--pidfile=", "quotepush", "--port", str(port), "--workers", "0"]
    command += ["--interface", interface, "--certs", str(certs_directory), "--admin", "off"]
    command += ["--redis", redis_server.url, *options]
    found = Daemon(command, port=port, directory=tmp_path, certs=certs_directory)
    try:
        found.wait_for("is served")
        found.wait_until_fed()
    finally:
        found.stop()
    lines = [line for line in found.output().splitlines() if "everybody who can reach" in line]
    assert len(lines) == warned, found.output()
