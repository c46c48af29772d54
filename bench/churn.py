"""Connects and disconnects many clients, and shows that the daemon's memory does not grow.

    python bench/churn.py --visits 100000          # plain
    python bench/churn.py --visits 20000 --tls

Starts a daemon on a loopback port. Clients connect, subscribe, and leave in one of three ways in
turn: WebSocket close, TCP close, reset. Prints the daemon's resident memory and open files as it
goes. Ends by itself; exit status 1 if memory grew by more than --allowed KiB after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from free_ports import free_port
from redis_process import start_redis
from visit_bytes import CLOSE, FRAME, REQUEST
from waiting import wait_for_line

WARM_UP = 10_000


async def visit(port: int, context: ssl.SSLContext | None, ending: int) -> None:
    """One client from connecting to its end; `ending` is 0, 1 or 2."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(REQUEST + FRAME)
    await reader.readuntil(b'"total":3}]')
    if ending == 0:
        writer.write(CLOSE)
        await reader.read()
        writer.close()
    elif ending == 1:
        writer.close()
    else:
        writer.transport.abort()


async def wave(port: int, context: ssl.SSLContext | None, visits: int, at_once: int) -> None:
    """`visits` clients, `at_once` of them at a time."""
    for start in range(0, visits, at_once):
        many = range(start, min(start + at_once, visits))
        await asyncio.gather(*(visit(port, context, at % 3) for at in many))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--visits", type=int, default=100_000)
    arguments.add_argument("--at-once", type=int, default=50)
    arguments.add_argument("--allowed", type=int, default=2048, help="KiB that memory may grow")
    arguments.add_argument("--tls", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="quotepush-bench-") as directory:
        redis = start_redis(directory)
        port = free_port()
        options = ["--port", str(port), "--interface", "127.0.0.1", "--redis", redis.socket_url]
        options += ["--certs", directory] if given.tls else ["--plain"]
        # All clients connect from one address, as fast as they can.
        options += ["--max-per-address", "0", "--connect-rate", "0"]
        twistd = Path(sys.executable).with_name("twistd")
        daemon = subprocess.Popen(
            [twistd, "-n", "--pidfile=", "quotepush", "--workers", "0", "--admin", "off", *options],
            stdout=subprocess.PIPE,
        )
        try:
            wait_for_line(daemon.stdout, b"connected for the feed")
            context = None
            if given.tls:
                context = ssl.create_default_context(cafile=f"{directory}/dev.crt")
                context.check_hostname = False
            process = psutil.Process(daemon.pid)
            step = max(given.visits // 10, 1)
            began = time.monotonic()
            # The allocator's arenas reach their size within the first thousands.
            asyncio.run(wave(port, context, WARM_UP, given.at_once))
            first = process.memory_info().rss
            print(f"warm-up: {WARM_UP} visits, {first // 1024} KiB, {process.num_fds()} files")
            for done in range(step, given.visits + 1, step):
                asyncio.run(wave(port, context, step, given.at_once))
                memory = process.memory_info().rss
                seconds = time.monotonic() - began
                print(
                    f"{done} visits: {memory // 1024} KiB ({(memory - first) // 1024:+d}),"
                    f" {process.num_fds()} files, {seconds:.0f} s"
                )
            grown = (process.memory_info().rss - first) // 1024
        finally:
            daemon.terminate()
            daemon.communicate(timeout=30)
            redis.stop()
    print(f"grown by {grown} KiB after the warm-up; allowed {given.allowed}")
    return 0 if grown <= given.allowed else 1


if __name__ == "__main__":
    sys.exit(main())
