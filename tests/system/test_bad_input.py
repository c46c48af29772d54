"""Whatever a client, a stranger or a publisher sends, it is answered, and nobody else is disturbed.

In every test a second, well-behaved client watches a symbol that is quoted without a break; it must
get each of those quotes, in order, before, while and after the bad input is dealt with.
"""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
from system_clients import BareSocket, Undisturbed, bare_socket, client_of, frame
from system_harness import Daemon, Publish, RedisServer, StartDaemon

MAX_MESSAGE: Final = 1000
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


@pytest.fixture(scope="module")
def served(module_daemon: StartDaemon) -> Daemon:
    """One daemon for all of the tests that need no options of their own."""
    options = ["--max-message", str(MAX_MESSAGE), "--max-symbols", "5"]
    return module_daemon("--channels", "bad.*", *options)


# -- messages that are no commands ---------------------------------------------------------------

MALFORMED: Final = {
    "no JSON": ("hello", "not JSON"),
    "half of a JSON text": ('{"op":"ping"', "not JSON"),
    "nothing": ("", "not JSON"),
    "an array": ("[1]", "JSON object"),
    "a string": ('"ping"', "JSON object"),
    "null": ("null", "JSON object"),
    "no op": ("{}", "op is missing"),
    "an op that is a number": ('{"op":1}', "unknown op 1"),
    "an unknown op": ('{"op":"dance"}', 'unknown op "dance"'),
    "no symbols": ('{"op":"subscribe"}', "needs symbols"),
    "symbols that are a string": ('{"op":"subscribe","symbols":"A"}', "list of strings"),
    "symbols that are an object": ('{"op":"unsubscribe","symbols":{}}', "list of strings"),
    "an id that is a list": ('{"op":"ping","id":[]}', "id is a number or a string"),
    "snapshot that is a number": (
        '{"op":"subscribe","symbols":["A"],"snapshot":1}',
        "true or false",
    ),
    "an unknown mode": ('{"op":"subscribe","symbols":["A"],"mode":"fast"}', '"auto" or "raw"'),
    "mode that is a list": ('{"op":"subscribe","symbols":["A"],"mode":[]}', '"auto" or "raw"'),
    "a negative interval": ('{"op":"subscribe","symbols":["A"],"interval":-1}', "0 to 60000"),
    "an interval too long": ('{"op":"subscribe","symbols":["A"],"interval":60001}', "0 to 60000"),
    "an interval that is text": ('{"op":"subscribe","symbols":["A"],"interval":"1"}', "0 to 60000"),
    "raw with an interval": (
        '{"op":"subscribe","symbols":["A"],"mode":"raw","interval":250}',
        "interval goes with mode auto",
    ),
    "a token that is no text": ('{"op":"auth","token":7}', 'auth needs a token, such as "token"'),
    "arrays nested 400 deep": ('{"op":' + "[" * 400 + "]" * 400 + "}", "unknown op"),
    "a lone surrogate": (r'{"op":"\ud800"}', "not JSON"),
}


def test_a_message_that_is_no_command_is_answered_with_error_400_and_the_connection_stays(
    served: Daemon, undisturbed: Undisturbed
) -> None:
    async def run() -> None:
        async with undisturbed(served), client_of(served) as client:
            for what, (text, words) in MALFORMED.items():
                answer = await client.ask(text)
                assert (answer["ev"], answer["code"]) == ("error", 400), f"{what}: {answer}"
                assert words in answer["msg"], f"{what}: {answer}"
            answer = await client.ask({"op": "dance", "id": "x-1"})
            assert answer["id"] == "x-1"
            assert (await client.ask({"op": "list"}))["symbols"] == []

    asyncio.run(run())


def test_bad_symbols_are_named_and_the_good_ones_beside_them_are_served(
    served: Daemon, undisturbed: Undisturbed, publish: Publish, redis_server: RedisServer
) -> None:
    bad = ["", "white space", "tab\t", "star*", "que?", "[", "]", "\\", '"', "\x00", "x" * 65]
    longest = "茅" * 21

    async def run() -> None:
        async with undisturbed(served), client_of(served) as client:
            symbols = [bad[0], "GOOD", *bad[1:], 7, None, ["A"], longest]
            answer = await client.subscribe(*symbols, id=1)
            assert answer["symbols"] == ["GOOD", longest]
            assert answer["total"] == 2
            assert set(answer["errors"]) == {*bad, "7", "null", '["A"]'}
            assert {error["code"] for error in answer["errors"].values()} == {411}
            publish(redis_server, [("bad.GOOD", "1"), (f"bad.{longest}", "2")])
            assert [(await client.expect("quote"))["s"] for _ in range(2)] == ["GOOD", longest]

    asyncio.run(run())


def test_symbols_beyond_the_limit_are_refused_one_by_one(
    served: Daemon, undisturbed: Undisturbed
) -> None:
    async def run() -> None:
        async with undisturbed(served), client_of(served) as client:
            answer = await client.subscribe(*"ABCDEFG")
            assert answer["symbols"] == list("ABCDE")
            assert {s: error["code"] for s, error in answer["errors"].items()} == {
                "F": 405,
                "G": 405,
            }
            assert "errors" not in await client.subscribe("A", "E")
            await client.ask({"op": "unsubscribe", "symbols": ["B"]})
            answer = await client.subscribe("F")
            assert (answer["symbols"], answer["total"]) == (["F"], 5)

    asyncio.run(run())


# -- frames --------------------------------------------------------------------------------------


def ping_of(size: int) -> bytes:
    """A ping command of exactly `size` bytes."""
    head = b'{"op":"ping","fill":"'
    return head + b"x" * (size - len(head) - 2) + b'"}'


async def opened(connection: BareSocket) -> None:
    assert b" 101 " in await connection.upgrade()
    assert b'"welcome"' in (await connection.frame())[1]


def in_fragments(payload: bytes, count: int) -> bytes:
    size = -(-len(payload) // count)
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    last = len(parts) - 1
    return b"".join(
        frame(CONTINUATION if number else TEXT, part, final=number == last)
        for number, part in enumerate(parts)
    )


FATAL: Final = {
    "a message over the limit": (frame(TEXT, ping_of(MAX_MESSAGE + 1)), 1009),
    "the head alone of a frame over the limit": (frame(TEXT, b"x" * 100_000)[:14], 1009),
    "a frame that says it has 2^62 bytes": (b"\x81\xff" + (2**62).to_bytes(8) + b"mask", 1009),
    "fragments that are over the limit together": (in_fragments(b"x" * 1200, 3), 1009),
    "text that is not UTF-8": (frame(TEXT, b'{"op":"\xff"}'), 1007),
    "text that ends in the middle of a character": (frame(TEXT, "茅".encode()[:2]), 1007),
    "a binary message": (frame(BINARY, b'{"op":"ping"}'), 1003),
    "a frame without a mask": (frame(TEXT, b'{"op":"ping"}', masked=False), 1002),
    "a reserved opcode": (frame(3, b""), 1002),
    "a reserved bit": (bytes([0xC1]) + frame(TEXT, b"{}")[1:], 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
    "a new message within fragments": (frame(TEXT, b"{", final=False) + frame(TEXT, b"}"), 1002),
    "a ping in fragments": (frame(PING, b"x", final=False), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a close frame of one byte": (frame(CLOSE, b"x"), 1002),
    "a close code that no one may send": (frame(CLOSE, (1005).to_bytes(2)), 1002),
}


@pytest.mark.parametrize("what", FATAL)
def test_what_is_no_websocket_is_closed_with_the_code_that_says_why(
    served: Daemon, undisturbed: Undisturbed, what: str
) -> None:
    data, code = FATAL[what]

    async def run() -> None:
        async with undisturbed(served), bare_socket(served) as connection:
            await opened(connection)
            await connection.send(data)
            assert await connection.close_code() == code
            assert await connection.rest() == b""

    asyncio.run(run())


def test_a_message_exactly_at_the_limit_is_taken_whole_or_in_fragments(
    served: Daemon, undisturbed: Undisturbed
) -> None:
    async def run() -> None:
        async with undisturbed(served), bare_socket(served) as connection:
            await opened(connection)
            whole = ping_of(MAX_MESSAGE)
            for data in (frame(TEXT, whole), in_fragments(whole, 7), in_fragments(whole, 500)):
                await connection.send(data)
                assert await connection.frame() == (TEXT, b'[{"ev":"pong"}]')
            # A control frame may come between fragments (RFC 6455, section 5.4).
            first, rest = frame(TEXT, whole[:9], final=False), frame(CONTINUATION, whole[9:])
            await connection.send(first + frame(PING, b"now") + rest)
            assert await connection.frame() == (PONG, b"now")
            assert await connection.frame() == (TEXT, b'[{"ev":"pong"}]')

    asyncio.run(run())
