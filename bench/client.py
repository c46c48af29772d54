"""How many quotes a second the Python client processes on one core, without a network.

    python bench/client.py [seconds]

Frames as the daemon writes them, with 1, 10 or 100 quotes of 120 bytes each, go through the
conversation and, as with asyncio, the queue, to a reader that ignores payloads, or decodes
them too. On one busy core of a virtual machine, Python 3.11:

       1 a frame:   600,000 quotes/s,   400,000 with data decoded
      10 a frame: 1,100,000 quotes/s,   620,000 with data decoded
     100 a frame: 1,200,000 quotes/s,   670,000 with data decoded
"""

from __future__ import annotations

import json
import random
import sys
import time

from pushservice.client.conversation import Conversation
from pushservice.client.event_queue import EventQueue
from pushservice.client.events import Quote
from pushservice.client.options import Options

SYMBOLS = [f"S{n:04}" for n in range(500)]
PAYLOAD = (
    '{"last": 189.50, "bid": 189.49, "ask": 189.51, "volume": 1200, "ts": 1763799999123.25,'
    ' "exchange": "XNAS", "flags": []}'
)


def opened() -> Conversation:
    """A conversation that is subscribed to all symbols."""
    core = Conversation(Options("ws://localhost/"), random.random)
    core.subscribe(0.0, SYMBOLS, lambda _: None)
    core.open(0.0)
    welcome = {"ev": "welcome", "epoch": "e", "hb": 0, "limits": {"message": 1_000_000}}
    core.received(0.0, json.dumps([welcome]).encode())
    core.received(0.0, json.dumps([{"ev": "subscribed", "id": 1, "symbols": SYMBOLS}]).encode())
    core.take_commands()
    core.take_events()
    return core


def frames(size: int) -> list[bytes]:
    """Frames of `size` quotes, with each symbol at least twice."""
    quotes = [
        f'{{"ev":"quote","s":"{symbol}","n":{n},"t":1763799999123,"d":{PAYLOAD}}}'
        for n in range(1, 3)
        for symbol in SYMBOLS
    ]
    return [f"[{','.join(quotes[at : at + size])}]".encode() for at in range(0, len(quotes), size)]


def rate(size: int, *, decoded: bool, seconds: float) -> float:
    """Quotes per second of CPU."""
    texts = frames(size)
    core, queue = opened(), EventQueue(1000)
    count = 0
    start = time.process_time()
    while (spent := time.process_time() - start) < seconds:
        for text in texts:
            core.received(0.0, text)
            queue.put(core.take_events())
            while (event := queue.take()) is not None:
                if isinstance(event, Quote):
                    count += 1
                    if decoded:
                        assert event.data["volume"] == 1200
    return count / spent


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    for size in (1, 10, 100):
        plain, decoded = (rate(size, decoded=each, seconds=seconds) for each in (False, True))
        print(f"{size:>4} a frame: {plain:>9,.0f} quotes/s, {decoded:>9,.0f} with data decoded")


main()
