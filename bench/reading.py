"""How many messages a second of CPU the daemon reads from Redis for symbols that nobody watches.

    .venv/bin/python bench/reading.py --messages 2000000

Starts a Redis and a daemon of its own on loopback, publishes as fast as Redis takes it, and divides
the messages by the daemon's own CPU time. A client that watches one more symbol marks the end. Ends
by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import websockets

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from free_ports import free_port
from redis_process import start_redis
from waiting import wait_for_line

PAYLOAD = (
    b'{"symbol":"S","last":189.50,"bid":189.49,"ask":189.51,"volume":123456,"ts":1763799999123}'
)
SYMBOLS = 1000
AT_ONCE = 5000


def command(channel: bytes, payload: bytes) -> bytes:
    """One PUBLISH in RESP."""
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        *(len(channel), channel),
        *(len(payload), payload),
    )


def publish(path: str, messages: int) -> None:
    """Publish `messages` to symbols that nobody watches, then one to the symbol that is watched."""
    many = [command(b"quote.S%d" % (at % SYMBOLS), PAYLOAD) for at in range(AT_ONCE)]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        for _ in range(messages // AT_ONCE):
            connection.sendall(b"".join(many))
            replies = 0
            while replies < AT_ONCE:
                replies += connection.recv(1 << 20).count(b"\r\n")
        connection.sendall(command(b"quote.END", b"1"))
        connection.recv(100)


async def measure(url: str, path: str, messages: int, process: psutil.Process) -> float:
    """CPU seconds of the daemon from the first publish to the arrival of the last."""
    async with websockets.connect(url) as client:
        await client.send('{"op":"subscribe","symbols":["END"]}')
        while json.loads(await client.recv())[0]["ev"] != "subscribed":
            pass
        before = process.cpu_times()
        await asyncio.gather(asyncio.to_thread(publish, path, messages), until_quoted(client))
        after = process.cpu_times()
        return after.user + after.system - before.user - before.system


async def until_quoted(client: websockets.ClientConnection) -> None:
    """Read until the quote comes."""
    while json.loads(await client.recv())[0]["ev"] != "quote":
        pass


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--messages", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="quotepush-bench-") as directory:
        redis = start_redis(directory, "--client-output-buffer-limit", "pubsub", "0", "0", "0")
        port = free_port()
        options = ["--port", str(port), "--interface", "127.0.0.1", "--plain"]
        options += ["--redis", redis.socket_url]
        twistd = Path(sys.executable).with_name("twistd")
        daemon = subprocess.Popen(
            [twistd, "-n", "--pidfile=", "quotepush", "--workers", "0", "--admin", "off", *options],
            stdout=subprocess.PIPE,
        )
        try:
            wait_for_line(daemon.stdout, b"connected for the feed")
            process = psutil.Process(daemon.pid)
            for _ in range(given.rounds):
                url = f"ws://127.0.0.1:{port}/"
                seconds = asyncio.run(measure(url, redis.path, given.messages, process))
                rate = given.messages / seconds
                print(f"{rate:,.0f} messages a CPU second, {1e6 / rate:.2f} us each")
        finally:
            daemon.terminate()
            daemon.communicate(timeout=30)
            redis.stop()


if __name__ == "__main__":
    main()
