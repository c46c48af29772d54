"""Whatever a publisher sends, clients get messages that parse, and the quotes after it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, NoReturn

import pytest
from system_clients import client_of
from system_harness import Publish, RedisServer, StartDaemon

#: payloads that are JSON, which arrive byte for byte
JSON: Final = {
    "an object": b'{"last":10.50,"bid":1E+2}',
    "a number": b"10.50",
    "a number beyond a double": b"1" + b"0" * 400,
    "a small number": b"-0.0e-0",
    "white space around": b' {"a" : [ 1 ] }\r\n',
    "duplicate keys": b'{"a":1,"a":2}',
    "nesting 400 deep": b"[" * 400 + b"]" * 400,
    "unicode": '{"名":"贵州茅台 \U0001f4c8"}'.encode(),
    "an escaped pair of surrogates": rb'"\ud83d\udcc8"',
    "one megabyte": b'"' + b"m" * (1024 * 1024 - 2) + b'"',
    "null": b"null",
}

#: payloads that are not, and the text that arrives as a JSON string
TEXT: Final = {
    "no JSON": (b"hello", "hello"),
    "nothing": (b"", ""),
    "white space": (b" ", " "),
    "half of an object": (b'{"a":', '{"a":'),
    "an attempt to add an event": (b'1},{"ev":"bye","code":1000', '1},{"ev":"bye","code":1000'),
    "NaN": (b"NaN", "NaN"),
    "NaN within": (b'{"last":NaN}', '{"last":NaN}'),
    "Infinity": (b"-Infinity", "-Infinity"),
    "two numbers": (b"1 2", "1 2"),
    "a byte order mark": (b"\xef\xbb\xbf1", "\ufeff1"),
    "invalid UTF-8": (b"caf\xe9", "caf\ufffd"),
    "invalid UTF-8 in a JSON string": (b'{"a":"\xff"}', '{"a":"\ufffd"}'),
    "control characters": (b"\x00\x1f\x7f", "\x00\x1f\x7f"),
    "a control character in a JSON string": (b'"\n"', '"\n"'),
    "a lone surrogate": (rb'"\ud800"', r'"\ud800"'),
    "quotes and a backslash": (rb'a"b\c', r'a"b\c'),
    "nesting 100000 deep": (b"[" * 100_000, "[" * 100_000),
    "one megabyte of text": (b"x" * (1024 * 1024), "x" * (1024 * 1024)),
    "one megabyte of no UTF-8": (b"\xff" * (1024 * 1024), "\ufffd" * (1024 * 1024)),
}


def strict(text: str) -> list[dict[str, Any]]:
    """Parse as a browser does, which knows no NaN."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    parsed: list[dict[str, Any]] = json.loads(text, parse_constant=refuse)
    return parsed


def test_payloads_arrive_byte_for_byte_or_as_a_json_string_and_the_quotes_after_them_too(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer
) -> None:
    served = daemon("--channels", "pay.*")
    cases: dict[str, tuple[bytes, str | None]] = {what: (data, None) for what, data in JSON.items()}
    cases |= TEXT

    async def run() -> None:
        async with client_of(served, "A") as odd, client_of(served, "CALM") as calm:
            for n, (what, (payload, text)) in enumerate(cases.items(), 1):
                await asyncio.to_thread(
                    publish, redis_server, [("pay.A", payload), ("pay.CALM", str(n))]
                )
                async with asyncio.timeout(20):
                    message = await odd.connection.recv()
                assert isinstance(message, str)
                (event,) = strict(message)
                assert (event["ev"], event["s"], event["n"]) == ("quote", "A", n), what
                if text is None:
                    sent = message[message.index('"d":') + 4 : -2].encode()
                    assert sent == payload, f"{what}: {sent[:100]!r}"
                else:
                    assert event["d"] == text, f"{what}: {event['d'][:100]!r}"
                quote = await calm.expect("quote")
                assert (quote["n"], quote["d"]) == (n, n), what

    asyncio.run(run())


@pytest.mark.parametrize("channel", ["odd.white space", "odd.", "odd.star*", f"odd.{'x' * 65}"])
def test_a_message_whose_channel_gives_no_symbol_is_logged_once_and_the_others_are_served(
    daemon: StartDaemon, publish: Publish, redis_server: RedisServer, channel: str
) -> None:
    served = daemon("--channels", "odd.*")

    async def run() -> None:
        async with client_of(served, "A") as client:
            for n in range(1, 6):
                messages = [(channel, "{}"), ("odd.A", str(n))]
                await asyncio.to_thread(publish, redis_server, messages)
                assert (await client.expect("quote"))["n"] == n

    asyncio.run(run())
    said = [line for line in served.output().splitlines() if "no symbol" in line]
    assert len(said) == 1, said
    assert channel[:80] in said[0]
