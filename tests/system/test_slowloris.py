"""Connections that take their time or vanish on the way: each has its limit, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest
from system_clients import UPGRADE, Puppet, Undisturbed, client_of, frame
from system_harness import Daemon, StartDaemon, poll_async

LIMIT: Final = 1
#: What a limit may be late by on a machine that has other things to do.
LATE: Final = 4
#: Seconds between two bytes of those who trickle.
TRICKLE: Final = 0.05


def client_hello() -> bytes:
    """What a TLS client says first."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    talk = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    return outgoing.read()


HELLO: Final = client_hello()
PAGE: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n"


# -- slow ----------------------------------------------------------------------------------------


def says_nothing(served: Daemon) -> Puppet:
    return Puppet(served, tls=False)


def says_nothing_after_tls(served: Daemon) -> Puppet:
    return Puppet(served)


def trickle(puppet: Puppet, data: bytes) -> Puppet:
    """Send byte by byte and hold back the last one, or until the server has ended it."""
    with contextlib.suppress(OSError):
        for byte in data[:-1]:
            puppet.send(bytes([byte]))
            # The pace of the bytes; nothing is waited for here.
            time.sleep(TRICKLE)
    return puppet


def trickles_its_tls_handshake(served: Daemon) -> Puppet:
    return trickle(Puppet(served, tls=False), HELLO)


def says_half_of_its_tls_handshake(served: Daemon) -> Puppet:
    puppet = Puppet(served, tls=False)
    puppet.send(HELLO[: len(HELLO) // 2])
    return puppet


def trickles_its_upgrade_request(served: Daemon) -> Puppet:
    return trickle(Puppet(served), f"{UPGRADE}\r\n".encode())


def says_half_of_its_upgrade_request(served: Daemon) -> Puppet:
    puppet = Puppet(served)
    puppet.send(UPGRADE.encode())
    return puppet


def trickles_a_request_for_the_page(served: Daemon) -> Puppet:
    return trickle(Puppet(served), PAGE)


SLOW: Final = [
    says_nothing,
    says_nothing_after_tls,
    trickles_its_tls_handshake,
    says_half_of_its_tls_handshake,
    trickles_its_upgrade_request,
    says_half_of_its_upgrade_request,
    trickles_a_request_for_the_page,
]


def test_whoever_takes_too_long_for_a_step_of_the_handshake_is_ended_soon_after_its_limit(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    limits = ["--tls-timeout", str(LIMIT), "--upgrade-timeout", str(LIMIT)]
    served = daemon("--channels", "late.*", *limits)
    process = served.serving()

    def lasts(begin: Callable[[Daemon], Puppet]) -> tuple[float, bytes]:
        began = time.monotonic()
        with begin(served) as puppet:
            heard = puppet.rest()
            return time.monotonic() - began, heard

    async def run() -> None:
        async with undisturbed(served, "late"):
            files = process.num_fds()
            with ThreadPoolExecutor(len(SLOW)) as threads:
                loop = asyncio.get_running_loop()
                running = [loop.run_in_executor(threads, lasts, begin) for begin in SLOW]
                await poll_async(
                    lambda: process.num_fds() >= files + len(SLOW), "all to be connected"
                )
                for begin, (seconds, heard) in zip(
                    SLOW, await asyncio.gather(*running), strict=True
                ):
                    assert heard == b"", begin
                    # TLS and the request have a limit each, one after the other.
                    assert LIMIT <= seconds < 2 * LIMIT + LATE, begin
            await poll_async(lambda: process.num_fds() == files, "the end of all of them")

    asyncio.run(run())


def test_a_new_client_gets_in_while_connections_that_send_nothing_take_all_the_room(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    served = daemon("--channels", "room.*", "--max-handshakes", "32", "--tls-timeout", "600")

    async def run() -> None:
        async with undisturbed(served, "room"):
            silent = [Puppet(served, tls=False) for _ in range(100)]
            async with client_of(served, "A"):
                pass
            # They made room one by one: those that came last are still there.
            silent[-1].socket.settimeout(0)
            with pytest.raises(BlockingIOError):
                silent[-1].read_some(1)
            ended = await asyncio.to_thread(silent[0].rest)
            assert ended == b""
            for puppet in silent:
                puppet.abort()

    asyncio.run(run())


# -- vanishing -----------------------------------------------------------------------------------


def vanishes_at_once(served: Daemon) -> None:
    Puppet(served, tls=False).abort()


def vanishes_in_the_middle_of_the_tls_handshake(served: Daemon) -> None:
    puppet = Puppet(served, tls=False)
    puppet.send(HELLO[: len(HELLO) // 2])
    puppet.abort()


def vanishes_after_tls(served: Daemon) -> None:
    Puppet(served).abort()


def vanishes_in_the_middle_of_the_request(served: Daemon) -> None:
    puppet = Puppet(served)
    puppet.send(UPGRADE.encode())
    puppet.abort()


def vanishes_right_after_the_request(served: Daemon) -> None:
    puppet = Puppet(served)
    puppet.send(f"{UPGRADE}\r\n".encode())
    puppet.abort()


def vanishes_in_the_middle_of_a_frame(served: Daemon) -> None:
    puppet = Puppet(served)
    puppet.upgrade()
    puppet.send(frame(1, b'{"op":"ping"}')[:9])
    puppet.abort()


def vanishes_after_it_subscribed(served: Daemon) -> None:
    puppet = Puppet(served)
    puppet.upgrade()
    puppet.subscribe("GONE", "GONE2")
    puppet.abort()


#: How many vanish in which way, in each of two rounds; what needs TLS costs us most.
VANISHING: Final = {
    vanishes_at_once: 750,
    vanishes_in_the_middle_of_the_tls_handshake: 750,
    vanishes_after_tls: 200,
    vanishes_in_the_middle_of_the_request: 200,
    vanishes_right_after_the_request: 200,
    vanishes_in_the_middle_of_a_frame: 200,
    vanishes_after_it_subscribed: 200,
}
#: What the second round may add; so little that of 2500 connections nothing can be kept.
NOISE: Final = 10 * 1024 * 1024


def test_5000_connections_that_vanish_on_the_way_leave_nothing_behind(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    served = daemon("--channels", "gone.*", "--connect-rate", "0", "--max-per-address", "0")
    process = served.serving()

    async def run() -> None:
        async with undisturbed(served, "gone"):
            loop = asyncio.get_running_loop()
            files = process.num_fds()

            async def vanish() -> int:
                with ThreadPoolExecutor(8) as threads:
                    for way, count in VANISHING.items():
                        calls = [loop.run_in_executor(threads, way, served) for _ in range(count)]
                        await asyncio.gather(*calls)
                await poll_async(lambda: process.num_fds() == files, f"{files} open files")
                return process.memory_info().rss

            # The first round shows what many at a time need, which the process keeps for later.
            before = await vanish()
            grown = await vanish() - before
            assert grown < NOISE, f"{grown} bytes more"
            async with client_of(served, "A"):
                pass

    asyncio.run(run())


# -- closing -------------------------------------------------------------------------------------


def test_a_client_that_never_answers_the_close_is_aborted_after_the_close_time_out(
    daemon: StartDaemon, undisturbed: Undisturbed
) -> None:
    served = daemon("--channels", "close.*", "--close-timeout", str(LIMIT))
    process = served.serving()

    def violate(puppet: Puppet) -> float:
        puppet.upgrade()
        began = time.monotonic()
        puppet.send(frame(3, b""))
        opcode, payload = puppet.frame()
        assert (opcode, payload[:2]) == (8, (1002).to_bytes(2))
        assert puppet.rest() == b""
        return time.monotonic() - began

    async def run() -> None:
        async with undisturbed(served, "close"):
            files = process.num_fds()
            with Puppet(served) as puppet:
                assert LIMIT <= await asyncio.to_thread(violate, puppet) < LIMIT + LATE
                await poll_async(lambda: process.num_fds() == files, "the client's end")

    asyncio.run(run())
    with Puppet(served) as puppet:
        puppet.upgrade()
        began = time.monotonic()
        assert served.stop() == 0
        assert LIMIT <= time.monotonic() - began < LIMIT + LATE
