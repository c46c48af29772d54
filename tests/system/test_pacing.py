"""`interval`: at most one update a symbol and interval, always the newest, and nothing unaccounted.

Clients are Python's websockets and Node's ws; quotes come as fast as Redis takes them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from system_clients import Client, Ledger, Undisturbed, client_of
from system_harness import DEADLINE, Publisher, StartDaemon, environment

INTERVAL: Final = 250
BATCH: Final = 100
#: Seconds for which quotes are published without a pause.
BUSY: Final = 1.5
LAST: Final = "last"


def publish_at_full_speed(
    publisher: Publisher, prefix: str, fast: str, calm: str = ""
) -> dict[str, int]:
    """Publish 1, 2, ... and at the end LAST to each symbol; returns how many each one got.

    Of those in `calm` one goes out for every BATCH of those in `fast`, so that whoever gets each
    of them keeps up.
    """
    published = dict.fromkeys(fast, BATCH) | dict.fromkeys(calm, 1)
    numbers = {symbol: itertools.count(1) for symbol in published}
    rounds = 0
    until = time.monotonic() + BUSY
    while time.monotonic() < until:
        rounds += 1
        publisher.publish(
            (f"{prefix}.{symbol}", str(next(numbers[symbol])))
            for symbol, count in published.items()
            for _ in range(count)
        )
    publisher.publish([(f"{prefix}.{symbol}", f'"{LAST}"') for symbol in published])
    return {symbol: rounds * count + 1 for symbol, count in published.items()}


async def read_to_last(client: Client, ledger: Ledger, symbols: str) -> dict[str, list[Any]]:
    """Read to a heartbeat after the LAST of each of `symbols`; returns (n, t, payload) of each."""
    got: dict[str, list[Any]] = {symbol: [] for symbol in symbols}
    async with asyncio.timeout(BUSY + DEADLINE):
        while True:
            event = await client.event()
            ledger.enter(event)
            if event["ev"] == "quote":
                got[event["s"]].append((event["n"], event["t"], event["d"]))
            elif all(updates and updates[-1][2] == LAST for updates in got.values()):
                return got


def check_paced(got: list[tuple[int, int, Any]], published: int) -> None:
    """`got` is (n, t, payload) of a symbol that was published without a pause."""
    assert all(n == payload for n, _, payload in got[:-1])
    assert (got[-1][0], got[-1][2]) == (published, LAST)
    # By the daemon's own clock; at each of the two ends may be a part of an interval.
    lasted = got[-1][1] - got[0][1]
    assert 2 < len(got) <= lasted / INTERVAL + 2, f"{len(got)} updates in {lasted} ms"
    assert published > 50 * len(got), "there was not much to merge"


def test_a_paced_client_gets_one_update_an_interval_and_the_last_one_and_disturbs_nobody(
    daemon: StartDaemon, publisher: Publisher, undisturbed: Undisturbed
) -> None:
    served = daemon("--channels", "pace.*", "--heartbeat", "200")

    async def run() -> None:
        async with (
            undisturbed(served, "pace"),
            client_of(served) as paced,
            asyncio.TaskGroup() as group,
        ):
            await paced.subscribe("A", "B", interval=INTERVAL)
            ledger = Ledger()
            reading = group.create_task(read_to_last(paced, ledger, "AB"))
            published = await asyncio.to_thread(publish_at_full_speed, publisher, "pace", "AB")
            got = await reading
        for symbol, updates in got.items():
            check_paced(updates, published[symbol])
        assert ledger.jumped == sum(published.values()) - sum(map(len, got.values()))

    asyncio.run(run())


def test_paced_and_unpaced_symbols_go_together_on_one_connection(
    daemon: StartDaemon, publisher: Publisher
) -> None:
    served = daemon("--channels", "both.*", "--heartbeat", "200")

    async def run() -> None:
        async with client_of(served, "U") as client, asyncio.TaskGroup() as group:
            await client.subscribe("P", interval=INTERVAL)
            ledger = Ledger()
            reading = group.create_task(read_to_last(client, ledger, "PU"))
            published = await asyncio.to_thread(publish_at_full_speed, publisher, "both", "P", "U")
            got = await reading
        check_paced(got["P"], published["P"])
        assert [n for n, _, _ in got["U"]] == list(range(1, published["U"] + 1))
        assert len(got["U"]) > 10 * len(got["P"])
        assert ledger.jumped == published["P"] - len(got["P"])

    asyncio.run(run())


class Watcher:
    """A client of symbol A that changes its interval, and its books."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ledger = Ledger()

    async def until(self, n: int) -> None:
        """Read to the update of this number."""
        async with asyncio.timeout(DEADLINE):
            while self.ledger.last.get("A", 0) < n:
                self.ledger.enter(await self.client.event())

    async def quiet(self) -> None:
        """Nothing comes for a while: two heartbeats."""
        for _ in range(3):
            self.ledger.enter(await self.client.expect("heartbeat"))

    async def change(self, interval: int) -> None:
        """Subscribe with another interval; what was pending under the old one comes at once."""
        more = {"interval": interval, "snapshot": False}
        await self.client.send({"op": "subscribe", "symbols": ["A"]} | more)
        while (event := await self.client.event())["ev"] != "subscribed":
            self.ledger.enter(event)


def test_subscribing_again_replaces_the_interval_and_loses_nothing(
    daemon: StartDaemon, publisher: Publisher
) -> None:
    served = daemon("--channels", "again.*", "--heartbeat", "100")

    def publish(*numbers: int) -> None:
        publisher.publish([("again.A", str(number)) for number in numbers])

    async def run() -> None:
        async with client_of(served) as client:
            watcher = Watcher(client)
            ledger = watcher.ledger
            await watcher.change(60_000)
            publish(1, 2, 3)
            await watcher.quiet()
            assert ledger.last == {}
            await watcher.change(50)
            await watcher.until(3)
            assert ledger.jumped == 2
            publish(4, 5)
            await watcher.until(5)
            await watcher.change(0)
            jumped = ledger.jumped
            publish(6, 7, 8)
            await watcher.until(8)
            assert ledger.jumped == jumped
            await watcher.change(60_000)
            publish(9, 10)
            await watcher.quiet()
            assert ledger.last == {"A": 8}
            # The newest value is asked for, and what was merged into it is accounted for.
            await client.subscribe("A", interval=60_000)
            assert (await client.expect("snapshot"))["n"] == 10
            assert (await client.expect("heartbeat"))["merged"] == jumped + 1

    asyncio.run(run())


NODE_CLIENT: Final = """
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const [modules, url, ca, symbols, interval] = process.argv.slice(1);
const WebSocket = createRequire(`${modules}/`)("ws");
const socket = new WebSocket(url, ["quotepush.v1.json"], { ca: readFileSync(ca) });
const events = [];
let open = symbols.length;
socket.on("message", (data) => {
  for (const event of JSON.parse(data.toString())) {
    if (event.ev === "welcome") {
      const message = { op: "subscribe", symbols: [...symbols], interval: Number(interval) };
      socket.send(JSON.stringify(message));
    } else if (event.ev === "subscribed") {
      console.log("subscribed");
    } else {
      events.push(event);
      if (event.d === "last") open -= 1;
      if (open === 0 && event.ev === "heartbeat") socket.close(1000);
    }
  }
});
socket.on("close", (code) => {
  console.log(JSON.stringify({ code, events }));
  process.exit();
});
"""


def test_a_client_of_node_s_ws_gets_one_update_an_interval_and_the_last_one(
    daemon: StartDaemon,
    publisher: Publisher,
    node_modules: Path,
    certs_directory: Path,
) -> None:
    served = daemon("--channels", "node.*", "--heartbeat", "200")
    told = [str(node_modules), served.url, str(certs_directory / "dev.crt"), "AB", str(INTERVAL)]
    with subprocess.Popen(
        ["node", "--input-type=module", "-e", NODE_CLIENT, *told],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as node:
        try:
            assert node.stdout is not None
            assert node.stdout.readline() == b"subscribed\n"
            published = publish_at_full_speed(publisher, "node", "AB")
            output, _ = node.communicate(timeout=60)
        finally:
            node.kill()
    seen = json.loads(output)
    assert seen["code"] == 1000
    ledger = Ledger()
    got: dict[str, list[Any]] = {"A": [], "B": []}
    for event in seen["events"]:
        ledger.enter(event)
        if event["ev"] == "quote":
            got[event["s"]].append((event["n"], event["t"], event["d"]))
    for symbol, updates in got.items():
        check_paced(updates, published[symbol])
    assert ledger.jumped == sum(published.values()) - sum(map(len, got.values()))
