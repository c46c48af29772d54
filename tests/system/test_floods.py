"""Clients that flood are refused, then closed as the protocol says, and nobody else notices.

Each flood is bounded: at most FRAMES frames, or CONNECTIONS connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, cycle, islice, repeat
from typing import Final

import pytest
from system_clients import BareSocket, Puppet, Undisturbed, bare_socket, client_of, frame
from system_harness import DEADLINE, Daemon, StartDaemon, poll_async

pytestmark = pytest.mark.alone

FRAMES: Final = 20_000
CONNECTIONS: Final = 1000
#: Messages a second, of which ten seconds' worth may come at once.
RATE: Final = 50
TEXT, CONTINUATION, CLOSE, PING, PONG = 1, 0, 8, 9, 10

MANY: Final = [f"M{number:03}" for number in range(1000)]


def _command(op: str) -> bytes:
    return frame(TEXT, json.dumps({"op": op, "symbols": MANY}).encode())


FLOODS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "subscriptions and their ends, of 1000 symbols each": lambda: cycle(
        [_command("subscribe"), _command("unsubscribe")]
    ),
    "ping frames": lambda: repeat(frame(PING, b"x" * 125)),
    "pong frames": lambda: repeat(frame(PONG, b"")),
    "fragments of one byte": lambda: chain(
        [frame(TEXT, b"{", final=False)], repeat(frame(CONTINUATION, b" ", final=False))
    ),
    "fragments of nothing": lambda: chain(
        [frame(TEXT, b"", final=False)], repeat(frame(CONTINUATION, b"", final=False))
    ),
    "tiny messages": lambda: repeat(frame(TEXT, b"1")),
    "empty messages": lambda: repeat(frame(TEXT, b"")),
}


async def flood(connection: BareSocket, frames: Iterator[bytes]) -> None:
    """Send FRAMES frames, as far as the daemon takes them."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        for _ in range(FRAMES // 100):
            await connection.send(b"".join(islice(frames, 100)))


async def listen(connection: BareSocket) -> tuple[Counter[int], set[int], int]:
    """Read to the close; returns the frames' opcodes, the codes of the errors, the close code."""
    opcodes: Counter[int] = Counter()
    errors: set[int] = set()
    async with asyncio.timeout(DEADLINE):
        while True:
            opcode, payload = await connection.frame()
            opcodes[opcode] += 1
            if opcode == CLOSE:
                return opcodes, errors, int.from_bytes(payload[:2])
            if opcode == TEXT:
                events = json.loads(payload)
                errors |= {event["code"] for event in events if event["ev"] == "error"}


@pytest.fixture(scope="module")
def served(module_daemon: StartDaemon) -> Daemon:
    """One daemon for all floods of frames."""
    limits = ["--message-rate", str(RATE), "--close-timeout", "0.5"]
    return module_daemon("--channels", "flood.*", *limits)


@pytest.mark.parametrize("what", FLOODS)
def test_who_floods_with_frames_is_closed_as_flooding(
    served: Daemon, undisturbed: Undisturbed, what: str
) -> None:
    process = served.serving()

    async def run() -> None:
        async with undisturbed(served, "flood"):
            files = process.num_fds()
            async with bare_socket(served) as connection:
                assert b" 101 " in await connection.upgrade()
                flooding = asyncio.create_task(flood(connection, FLOODS[what]()))
                opcodes, errors, code = await listen(connection)
                assert code == 4029
                # Ten seconds' worth was heard, what one second brings refused, the rest not read.
                assert sum(opcodes.values()) < 40 * RATE
                assert errors <= {400, 429}
                # It does not answer the close, and sends as long as it can.
                await poll_async(lambda: process.num_fds() == files, "its end")
                async with asyncio.timeout(DEADLINE):
                    await flooding
            async with client_of(served, "A") as client:
                assert (await client.ask({"op": "list"}))["symbols"] == ["A"]

    asyncio.run(run())


def test_what_a_client_sends_after_it_was_closed_for_flooding_costs_the_daemon_nothing(
    daemon: StartDaemon,
) -> None:
    served = daemon("--channels", "after.*", "--message-rate", str(RATE), "--close-timeout", "2")
    process = served.serving()

    def spent() -> float:
        times = process.cpu_times()
        return times.user + times.system

    async def run() -> None:
        files = process.num_fds()
        async with bare_socket(served) as connection:
            assert b" 101 " in await connection.upgrade()
            flooding = asyncio.create_task(flood(connection, repeat(frame(PING, b"x" * 125))))
            assert (await listen(connection))[2] == 4029
            before = spent()
            await poll_async(lambda: process.num_fds() == files, "its end")
            # Of the two seconds and more until then.
            assert spent() - before < 0.2
            async with asyncio.timeout(DEADLINE):
                await flooding

    asyncio.run(run())


def test_an_address_that_floods_with_connections_is_turned_away_and_others_get_in(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    served = daemon("--channels", "knock.*", "--connect-rate", "20", "--max-per-address", "0")
    process = served.serving()

    def gets_in(_: int) -> bool:
        try:
            with Puppet(served, source="127.0.0.2") as puppet:
                puppet.upgrade()
        except (ConnectionError, ssl.SSLError):
            return False
        return True

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with undisturbed(served, "knock"):
            files = process.num_fds()
            with ThreadPoolExecutor(8) as threads:
                knocking = [
                    loop.run_in_executor(threads, gets_in, number) for number in range(CONNECTIONS)
                ]
                async with client_of(served, "A") as meanwhile:
                    inside = sum(await asyncio.gather(*knocking))
                    assert (await meanwhile.ask({"op": "list"}))["symbols"] == ["A"]
            # Ten seconds' worth, and what the time it took has brought.
            assert 200 <= inside < CONNECTIONS / 2
            await poll_async(lambda: process.num_fds() == files, "the end of all of them")

    asyncio.run(run())


@pytest.mark.parametrize("options", [["--plain"], []], ids=["plain", "tls"])
def test_floods_of_many_at_once_disturb_nobody(
    daemon: StartDaemon, undisturbed: Undisturbed, options: list[str]
) -> None:
    prefix = f"all{len(options)}"
    limits = ["--message-rate", str(RATE), "--close-timeout", "0.5"]
    served = daemon("--channels", f"{prefix}.*", *limits, *options)

    async def one(served: Daemon, frames: Iterator[bytes]) -> int:
        async with bare_socket(served) as connection:
            assert b" 101 " in await connection.upgrade()
            flooding = asyncio.create_task(flood(connection, frames))
            _, _, code = await listen(connection)
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            return code

    async def run() -> None:
        async with undisturbed(served, prefix):
            floods = [one(served, make()) for make in FLOODS.values() for _ in range(2)]
            assert set(await asyncio.gather(*floods)) == {4029}

    asyncio.run(run())
