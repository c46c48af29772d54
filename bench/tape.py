"""What it costs to keep fifteen minutes of quotes for clients with a delay.

    .venv/bin/python bench/tape.py [BUDGET_MIB ...]

900 s of 1,000 quotes a second of 120 bytes on a simulated clock, in turns of 10, read by one reader
with a delay of 900 s: microseconds of CPU to record and to read a quote, bytes kept for each, and
what was dropped, with ample room, with half of what that needs, with a third, and with a sixth.
"""

from __future__ import annotations

import random
import sys
import time

from pushservice.fanout.tape import Tape

RATE, SECONDS, TURN, DELAY = 1000, 900, 10, 900.0
SYMBOLS = [f"SYM{number:03d}.US" for number in range(500)]
MIB = 1 << 20
BUDGETS = (256, 75, 52, 24)


def quotes(count: int) -> list[tuple[str, bytes]]:
    """Quotes of a random walk, as a publisher writes them."""
    rng = random.Random(5)
    prices = {symbol: rng.uniform(10, 500) for symbol in SYMBOLS}
    made = []
    for number in range(count):
        symbol = rng.choice(SYMBOLS)
        price = prices[symbol] = prices[symbol] * rng.gauss(1, 0.0005)
        text = (
            f'{{"last":{price:.2f},"bid":{price - 0.01:.2f},"ask":{price + 0.01:.2f},'
            f'"volume":{rng.randrange(10**7)},"ts":{1_763_799_999_123 + number},'
            f'"change":{rng.uniform(-3, 3):.2f},"venue":"X{number % 40:03d}"}}'
        )
        made.append((symbol, text.encode().ljust(120)))
    return made


def run(budget: int, some: list[tuple[str, bytes]]) -> tuple[float, float, float, float, float]:
    """Microseconds to record and to read a quote, the slowest turn, MiB kept, share dropped."""
    tape = Tape(budget)
    reader = tape.reader(DELAY)
    now = 1_763_799_999.0
    recording = reading = slowest = 0.0
    most = got = 0
    # The first fifteen minutes fill the tape; from then on it is read as well.
    for turn in range(2 * SECONDS * RATE // TURN):
        begin = turn * TURN % len(some)
        used = time.thread_time()
        for symbol, payload in some[begin : begin + TURN]:
            tape.record(symbol, payload, now)
        took = time.thread_time() - used
        recording += took
        slowest = max(slowest, took)
        used = time.thread_time()
        got += sum(1 for _, symbol, _ in reader.take(now, 2000) if symbol)
        reading += time.thread_time() - used
        most = max(most, tape.used_bytes)
        now += TURN / RATE
    count = 2 * SECONDS * RATE
    played = count - SECONDS * RATE
    return (
        recording / count * 1e6,
        reading / played * 1e6,
        slowest * 1e3,
        most / MIB,
        1 - got / played,
    )


def main() -> None:
    """Print a line for each budget."""
    some = quotes(100_000)
    budgets = [int(word) for word in sys.argv[1:]] or BUDGETS
    print(f"{SECONDS} s of {RATE} quotes/s of {len(some[0][1])} bytes, and as long again")
    print("  budget   kept  record    read  slowest turn  dropped unread")
    print("     MiB    MiB      us      us            ms               %")
    for budget in budgets:
        record, read, slowest, kept, dropped = run(budget * MIB, some)
        print(f"{budget:8d} {kept:6.1f} {record:7.2f} {read:7.2f} {slowest:13.2f} {dropped:15.1%}")


if __name__ == "__main__":
    main()
