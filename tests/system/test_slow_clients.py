"""Clients that do not read, or hardly: what they get, when they are given up, what they cost."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from typing import Any, Final

import pytest
from system_clients import Ledger, Puppet, Undisturbed, client_of, frame
from system_harness import DEADLINE, Daemon, Publisher, StartDaemon, poll_async

#: What the kernel takes for a client that does not read; the daemon's takes 64 KiB too.
UNREAD: Final = 32 * 1024
PAYLOAD: Final = 600
MEBIBYTE: Final = 1024 * 1024


def quotes(prefix: str, symbols: str, count: int) -> list[tuple[str, str]]:
    """`count` quotes that take turns among `symbols`; `c` counts the updates of each, from 1."""
    each = len(symbols)
    payloads = [f'{{"c":{n},"fill":"{"x" * PAYLOAD}"}}' for n in range(1, count // each + 1)]
    return [(f"{prefix}.{symbol}", payload) for payload in payloads for symbol in symbols]


async def publish_all(
    served: Daemon, publisher: Publisher, prefix: str, messages: list[tuple[str, str]]
) -> None:
    """Publish, and wait until the daemon has sent all of it on its way."""
    async with client_of(served) as fast:
        await fast.subscribe("END", snapshot=False)
        for at in range(0, len(messages), 1000):
            await asyncio.to_thread(publisher.publish, messages[at : at + 1000])
        await asyncio.to_thread(publisher.publish, [(f"{prefix}.END", '"end"')])
        await fast.expect("quote")


def connected(
    served: Daemon, *symbols: str, receive_buffer: int = UNREAD, **more: Any
) -> tuple[Puppet, str]:
    """A client of a small receive buffer, and its name in the log."""
    puppet = Puppet(served, receive_buffer=receive_buffer)
    conn = puppet.upgrade()["conn"]
    puppet.subscribe(*symbols, **more)
    return puppet, conn


def read_to_heartbeat_after(
    newest: dict[str, int], puppet: Puppet, ledger: Ledger
) -> list[list[dict[str, Any]]]:
    """Read and book frames to the heartbeat after `newest`; returns the frames of quotes."""
    frames = []
    deadline = time.monotonic() + DEADLINE
    while True:
        assert time.monotonic() < deadline, f"after {DEADLINE} s there is {ledger.last}"
        events = puppet.events()
        for event in events:
            ledger.enter(event)
        if events[0]["ev"] == "quote":
            frames.append(events)
        elif ledger.last == newest:
            return frames


# -- merged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--plain"], []], ids=["plain", "tls"])
def test_a_client_that_stops_reading_gets_what_was_in_flight_and_then_the_newest_in_one_frame(
    daemon: StartDaemon, publisher: Publisher, undisturbed: Undisturbed, options: list[str]
) -> None:
    prefix = f"stop{len(options)}"
    served = daemon("--channels", f"{prefix}.*", "--heartbeat", "200", *options)
    process = served.serving()
    count = 20_000
    messages = quotes(prefix, "ABCD", count)
    newest = dict.fromkeys("ABCD", count // 4)

    async def run() -> None:
        # What the daemon keeps for whatever reason, it keeps from here on.
        await publish_all(served, publisher, prefix, quotes(prefix, "W", 2000))
        async with undisturbed(served, prefix):
            puppet, _ = await asyncio.to_thread(connected, served, *"ABCD")
            with puppet:
                before = process.memory_info().rss
                await publish_all(served, publisher, prefix, messages)
                assert process.memory_info().rss - before < 4 * MEBIBYTE < count * PAYLOAD / 2
                ledger = Ledger()
                frames = await asyncio.to_thread(read_to_heartbeat_after, newest, puppet, ledger)
        for events in frames[:-1]:
            for event in events:
                assert event["n"] == event["d"]["c"]
        # In flight was an unbroken beginning, the last frame bridged all that came after.
        in_flight = sum(map(len, frames[:-1]))
        assert sorted(event["s"] for event in frames[-1]) == list("ABCD")
        assert {event["s"]: event["d"]["c"] for event in frames[-1]} == newest
        assert ledger.jumped == count - in_flight - 4
        assert ledger.jumped > count / 2

    asyncio.run(run())


# -- given up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--plain"], []], ids=["plain", "tls"])
def test_a_client_that_never_reads_again_is_given_up_and_the_log_names_it(
    daemon: StartDaemon, publisher: Publisher, undisturbed: Undisturbed, options: list[str]
) -> None:
    prefix = f"never{len(options)}"
    served = daemon("--channels", f"{prefix}.*", "--stall-timeout", "1", *options)
    process = served.serving()

    async def run() -> None:
        async with undisturbed(served, prefix):
            files = process.num_fds()
            puppet, conn = await asyncio.to_thread(connected, served, "A")
            with puppet:
                began = time.monotonic()
                await publish_all(served, publisher, prefix, quotes(prefix, "A", 2000))
                line = await asyncio.to_thread(served.wait_for, f"{conn} is given up")
                assert "took nothing for 1 s" in line
                assert 1 <= time.monotonic() - began < 10
                await poll_async(lambda: process.num_fds() == files, "the client's end")
                # It was aborted: what its own kernel has is all that it ever gets.
                assert len(await asyncio.to_thread(puppet.rest)) < 4 * UNREAD
        assert served.output().count("is given up") == 1

    asyncio.run(run())


def test_a_client_that_reads_slowly_stays_however_often_the_time_out_passes(
    daemon: StartDaemon, publisher: Publisher, undisturbed: Undisturbed
) -> None:
    options = ["--stall-timeout", "1.5", "--send-buffer", str(MEBIBYTE // 2), "--heartbeat", "200"]
    served = daemon("--channels", "slow.*", *options)

    def read_slowly(puppet: Puppet) -> None:
        until = time.monotonic() + 4.6
        while time.monotonic() < until:
            assert puppet.read_some(2048)
            # The pace of the reader; nothing is waited for here.
            time.sleep(0.04)
        puppet.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MEBIBYTE)

    async def run() -> None:
        async with undisturbed(served, "slow"):
            # A kernel tells of room again when half of the buffer is free: a small one tells often.
            puppet, _ = await asyncio.to_thread(connected, served, *"AB", receive_buffer=4096)
            with puppet:
                await publish_all(served, publisher, "slow", quotes("slow", "AB", 10_000))
                await asyncio.to_thread(read_slowly, puppet)
                ledger = Ledger()
                newest = {"A": 5000, "B": 5000}
                frames = await asyncio.to_thread(read_to_heartbeat_after, newest, puppet, ledger)
        # It was behind all the while: only what came last was merged.
        assert len(json.dumps(frames[:-1])) > 50 * 2048
        assert len(frames[-1]) == 2
        assert ledger.jumped == 10_000 - sum(map(len, frames))
        assert "is given up" not in served.output()

    asyncio.run(run())


# -- raw -----------------------------------------------------------------------------------------

BUDGET: Final = 512 * 1024


def test_a_stalled_raw_client_is_closed_as_too_slow_and_reads_so_if_it_reads_again_in_time(
    daemon: StartDaemon, publisher: Publisher, undisturbed: Undisturbed
) -> None:
    served = daemon("--channels", "over.*", "--raw-budget", str(BUDGET), "--close-timeout", "10")
    messages = quotes("over", "R", 3000)
    assert len(messages) * PAYLOAD > 3 * BUDGET

    def read_to_the_close(puppet: Puppet) -> int:
        ledger = Ledger()
        deadline = time.monotonic() + DEADLINE
        while (taken := puppet.frame())[0] != 8:
            assert time.monotonic() < deadline, f"no close in {DEADLINE} s"
            for event in json.loads(taken[1] or b"[]"):
                assert ledger.enter(event) == 1
        puppet.send(frame(8, taken[1][:2]))
        assert puppet.rest() == b""
        assert ledger.last["R"] > 0
        return int.from_bytes(taken[1][:2])

    async def run() -> None:
        async with undisturbed(served, "over"):
            puppet, _ = await asyncio.to_thread(connected, served, "R", mode="raw")
            with puppet:
                await publish_all(served, publisher, "over", messages)
                assert await asyncio.to_thread(read_to_the_close, puppet) == 4008
            # It may come again, and is served as if nothing had been.
            async with client_of(served) as again:
                await again.subscribe("R", mode="raw", snapshot=False)
                await asyncio.to_thread(publisher.publish, [("over.R", "1")])
                assert (await again.expect("quote"))["n"] == len(messages) + 1

    asyncio.run(run())


def test_a_raw_client_over_its_budget_that_never_reads_again_is_ended_by_the_close_time_out(
    daemon: StartDaemon, publisher: Publisher, undisturbed: Undisturbed
) -> None:
    options = ["--raw-budget", str(BUDGET), "--close-timeout", "1"]
    served = daemon("--channels", "mute.*", *options)
    process = served.serving()

    async def run() -> None:
        async with undisturbed(served, "mute"):
            files = process.num_fds()
            puppet, _ = await asyncio.to_thread(connected, served, "R", mode="raw")
            with puppet:
                assert process.num_fds() == files + 1
                began = time.monotonic()
                await publish_all(served, publisher, "mute", quotes("mute", "R", 3000))
                await poll_async(lambda: process.num_fds() == files, "the client's end")
                assert time.monotonic() - began > 1

    asyncio.run(run())


def test_raw_and_merged_symbols_on_one_connection_that_pauses_keep_to_their_modes(
    daemon: StartDaemon, publisher: Publisher, undisturbed: Undisturbed
) -> None:
    options = ["--raw-budget", str(BUDGET), "--heartbeat", "200"]
    served = daemon("--channels", "mix.*", *options)
    # The merged symbol fills what the kernels take; what comes then fits into the budget.
    messages = quotes("mix", "A", 2000) + quotes("mix", "RS", 600)
    after = [(f"mix.{symbol}", '{"c":0}') for symbol in "ARAS"]
    newest = {"A": 2002, "R": 301, "S": 301}

    async def run() -> None:
        async with undisturbed(served, "mix"):
            puppet, _ = await asyncio.to_thread(connected, served, "A")
            with puppet:
                await asyncio.to_thread(puppet.subscribe, "R", "S", mode="raw")
                await publish_all(served, publisher, "mix", messages + after)
                ledger = Ledger()
                frames = await asyncio.to_thread(read_to_heartbeat_after, newest, puppet, ledger)
        got = [event for events in frames for event in events]
        # Every raw update, in the order in which they were published.
        raw = [(event["s"], event["d"]["c"]) for event in got if event["s"] != "A"]
        wanted = [(symbol, count) for count in range(1, 301) for symbol in "RS"]
        assert raw == [*wanted, ("R", 0), ("S", 0)]
        merged = [event["n"] for event in got if event["s"] == "A"]
        assert merged == sorted(merged)
        assert ledger.jumped == 2002 - len(merged) > 1000

    asyncio.run(run())


# -- the end of the daemon -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--plain"], []], ids=["plain", "tls"])
def test_a_client_that_is_behind_when_the_daemon_stops_gets_what_is_in_flight_and_a_goodbye(
    daemon: StartDaemon, publisher: Publisher, options: list[str]
) -> None:
    prefix = f"bye{len(options)}"
    served = daemon("--channels", f"{prefix}.*", *options)

    async def run() -> None:
        puppet, _ = await asyncio.to_thread(connected, served, "A")
        async with client_of(served) as other:
            await publish_all(served, publisher, prefix, quotes(prefix, "A", 5000))
            served.process.send_signal(signal.SIGTERM)
            # The daemon has said goodbye to everybody in the same moment.
            assert (await other.expect("bye"))["code"] == 1001
            assert await other.closed() == 1001
        with puppet:
            ledger = Ledger()
            while (event := (events := puppet.events())[0])["ev"] != "bye":
                for event in events:
                    ledger.enter(event)
            assert (event["code"], events) == (1001, [event])
            assert 0 < ledger.last["A"] < 5000
            opcode, payload = puppet.frame()
            assert (opcode, int.from_bytes(payload[:2])) == (8, 1001)
            puppet.send(frame(8, payload[:2]))
            assert puppet.rest() == b""
        assert await asyncio.to_thread(served.wait) == 0

    asyncio.run(run())
