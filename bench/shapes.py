"""The shapes of load that are measured."""

from __future__ import annotations

from flooded import Flooded
from shape import Shape
from slow import Paced, Stalled

SHAPES: tuple[Shape, ...] = (
    Shape("broadcast", "500 clients on one symbol", "closed", 500, 1, 1),
    Shape("watchlist", "500 clients, each 50 of 500 symbols", "closed", 500, 500, 50),
    Shape("firehose", "100 clients on 250 symbols", "closed", 100, 250, 250),
    Shape("idle", "5,000 clients, no quotes", "idle", 5000, 500, 1),
    Shape("steady", "50,000 deliveries a second, 500 clients on one symbol", "open", 500, 1, 1),
    Shape("steady-watchlist", "50,000 a second, each 50 of 500 symbols", "open", 500, 500, 50),
    Stalled(
        name="stalled",
        title="1,000 clients, 100 not reading, 50 reading 1 KiB a second",
        loop="stalled",
        clients=1000,
        symbols=250,
        watched=4,
        stalled=100,
        slow=50,
        theirs=50,
    ),
    Paced(
        name="paced",
        title="1,000 clients, each 20 of 200 symbols, an update in 250 ms",
        loop="paced",
        clients=1000,
        symbols=200,
        watched=20,
        interval=250,
    ),
    Flooded(
        name="flood",
        title="500 clients as in steady, and one that floods",
        loop="flood",
        clients=500,
        symbols=1,
        watched=1,
    ),
)
