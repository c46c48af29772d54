# ruff: noqa: INP001 - a program beside the documents, in no package
"""Takes the screenshots of the operator's page, with a simulated market and slow clients.

python docs/console_screenshots.py [SECONDS]

By default it waits five minutes until the charts are filled. It needs Chromium, playwright and
websockets, as the tests do.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from playwright.async_api import async_playwright
from websockets.asyncio.client import ClientConnection, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

IMAGES: Final = Path(__file__).with_name("images")
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
SIZE: Final = {"width": 1280, "height": 900}
WAIT: Final = 310.0
CLIENTS: Final = 120
SLOW: Final = 4
#: Bytes that the kernel takes for a client that does not read.
UNREAD: Final = 4096
STARTED_WITHIN: Final = 60.0
OPTIONS: Final = (
    *("--demo", "--demo-rate", "600", "--workers", "2", "--interface", "127.0.0.1"),
    # Keep slow clients connected.
    *("--ping-interval", "0", "--stall-timeout", "3600"),
)


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that were free a moment ago."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@asynccontextmanager
async def daemon(directory: Path, port: int, admin: int) -> AsyncIterator[None]:
    """A daemon with a simulated market that already publishes quotes."""
    twistd = Path(sys.executable).with_name("twistd")
    process = await asyncio.create_subprocess_exec(
        *(str(twistd), "-n", "--pidfile=", "quotepush", "--port", str(port), *OPTIONS),
        *("--admin", f"127.0.0.1:{admin}", "--send-buffer", str(UNREAD)),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(STARTED_WITHIN):
            async for line in process.stdout:
                if b"connected for the simulated market" in line:
                    break
        reading = asyncio.create_task(process.stdout.read())
        yield
        process.terminate()
        await reading
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def client(port: int, symbols: list[str], *, slow: bool) -> AsyncIterator[None]:
    """A client that reads all, or nothing once it has subscribed."""
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    link = socket.socket()
    if slow:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD)
    link.setblocking(False)
    await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", port))
    async with connect(
        f"wss://localhost:{port}/", sock=link, ssl=trusting, max_queue=1, ping_interval=None
    ) as connection:
        await connection.send(json.dumps({"op": "subscribe", "symbols": symbols}))
        reading = None if slow else asyncio.create_task(_read(connection))
        yield
        if reading is not None:
            reading.cancel()
        connection.transport.abort()


async def _read(connection: ClientConnection) -> None:
    async for _ in connection:
        pass


async def listed(port: int) -> list[str]:
    """The symbols of the market, asked of the daemon's own page."""
    trusting = ssl._create_unverified_context()  # noqa: S323 - its certificate is its own
    reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
    writer.write(b"GET /symbols.json?limit=200 HTTP/1.0\r\nHost: localhost\r\n\r\n")
    answer = await reader.read()
    writer.close()
    symbols: list[str] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return symbols


async def main(seconds: float) -> None:
    """Take one picture for each colour scheme."""
    port, admin = free_ports(2)
    browser_path = next(filter(None, map(shutil.which, BROWSERS)))
    chosen = Random(1)  # noqa: S311 - chooses symbols to watch
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        await stack.enter_async_context(daemon(directory, port, admin))
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        pages = {}
        for scheme in ("light", "dark"):
            context = await browser.new_context(color_scheme=scheme, viewport=SIZE)
            pages[scheme] = await context.new_page()
            await pages[scheme].goto(f"http://127.0.0.1:{admin}/")
        while len(symbols := await listed(port)) < 100:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.5)
        for number in range(CLIENTS):
            some = chosen.sample(symbols, chosen.randrange(10, 60))
            await stack.enter_async_context(client(port, some, slow=number % 30 == 7))
            await asyncio.sleep(seconds / CLIENTS / 2 if number > CLIENTS / 2 else 0)
        await asyncio.sleep(seconds / 2)
        for scheme, page in pages.items():
            await page.screenshot(path=IMAGES / f"console-{scheme}.png")
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else WAIT))
