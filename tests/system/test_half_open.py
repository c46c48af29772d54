"""Clients that vanish without closing: found by pings, while others stay connected."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import pytest
from system_clients import Puppet, Undisturbed, frame
from system_harness import DEADLINE, StartDaemon, poll_async

PINGS: Final = ["--ping-interval", "0.8", "--ping-timeout", "0.7"]
#: Seconds in which a client is pinged several times.
SEVERAL_INTERVALS: Final = 3.6
TEXT, PING, PONG = 1, 9, 10


def given_up(conn: str) -> str:
    return f"{conn} is given up: no answer to a ping for 0.7 s"


@pytest.mark.parametrize("options", [["--plain"], []], ids=["plain", "tls"])
def test_a_silent_client_is_disconnected_and_logged(
    daemon: StartDaemon, undisturbed: Undisturbed, options: list[str]
) -> None:
    prefix = f"silent{len(options)}"
    served = daemon("--channels", f"{prefix}.*", *PINGS, *options)
    process = served.serving()

    async def run() -> None:
        async with undisturbed(served, prefix):
            files = process.num_fds()
            with Puppet(served) as puppet:
                began = time.monotonic()
                conn = (await asyncio.to_thread(puppet.upgrade))["conn"]
                await asyncio.to_thread(served.wait_for, given_up(conn))
                # The timeout has passed, but few intervals.
                assert 0.7 <= time.monotonic() - began < 8
                await poll_async(lambda: process.num_fds() == files, "the client's end")
                assert b"\x89\x00" in await asyncio.to_thread(puppet.rest)
        assert served.output().count("is given up") == 1

    asyncio.run(run())


STOPPED_CLIENT: Final = """
import sys
from websockets.sync.client import connect

with connect(sys.argv[1], compression=None, proxy=None) as connection:
    print(connection.recv(), flush=True)
    for _ in connection:
        pass
"""


def test_a_client_whose_process_is_suspended_is_disconnected_and_others_are_served(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    served = daemon("--channels", "stopped.*", *PINGS, "--plain")

    async def run(client: subprocess.Popen[str]) -> None:
        async with undisturbed(served, "stopped"):
            assert client.stdout is not None
            welcome = await asyncio.to_thread(client.stdout.readline)
            conn = welcome.partition('"conn":"')[2].partition('"')[0]
            assert conn
            client.send_signal(signal.SIGSTOP)
            await asyncio.to_thread(served.wait_for, given_up(conn))

    with subprocess.Popen(
        [sys.executable, "-c", STOPPED_CLIENT, served.url], stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            asyncio.run(run(client))
        finally:
            client.kill()


def answers_pings(puppet: Puppet) -> int:
    """Read a frame and answer it if it is a ping; returns the number of pings."""
    opcode, payload = puppet.frame()
    if opcode == PING:
        puppet.send(frame(PONG, payload))
    return opcode == PING


def sends_messages_only(puppet: Puppet) -> int:
    """Send a message at every heartbeat, and leave pings unanswered."""
    opcode, payload = puppet.frame()
    if b'"heartbeat"' in payload:
        puppet.send(frame(TEXT, b'{"op":"unsubscribe"}'))
    return opcode == PING


def test_clients_that_send_anything_in_time_stay_connected(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    served = daemon("--channels", "alive.*", "--heartbeat", "100", *PINGS)

    def live(behave: Callable[[Puppet], int]) -> int:
        pings = 0
        with Puppet(served) as puppet:
            puppet.upgrade()
            until = time.monotonic() + SEVERAL_INTERVALS
            while time.monotonic() < until:
                pings += behave(puppet)
            # It is still connected.
            puppet.subscribe("A")
        return pings

    async def run() -> None:
        async with undisturbed(served, "alive"):
            behaviours = (answers_pings, sends_messages_only)
            living = [asyncio.to_thread(live, behave) for behave in behaviours]
            assert min(await asyncio.gather(*living)) > 2
        assert "is given up" not in served.output()

    asyncio.run(run())


def test_no_ping_is_sent_if_pings_are_off(daemon: StartDaemon) -> None:
    options = ["--ping-interval", "0", "--ping-timeout", "0.7"]
    served = daemon("--channels", "off.*", "--heartbeat", "100", *options)
    pinged = daemon("--channels", "off.*", "--heartbeat", "100", *PINGS)

    def opcodes(puppet: Puppet, heartbeats: int) -> list[int]:
        return [puppet.frame()[0] for _ in range(heartbeats)]

    with Puppet(served) as puppet, Puppet(pinged) as other:
        puppet.upgrade()
        other.upgrade()
        deadline = time.monotonic() + DEADLINE
        while answers_pings(other) == 0:
            assert time.monotonic() < deadline, f"no ping in {DEADLINE} s"
        # With pings there would be three in so many heartbeats.
        assert opcodes(puppet, 25) == [TEXT] * 25
