"""Every limit on what clients may use, in one place.

Must not know: what enforces a limit, or where the numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Seconds over which rates are averaged: the messages of so many seconds may come at once.
BURST_SECONDS: Final = 10
#: Symbols of a command that count as one further message.
SYMBOLS_A_MESSAGE: Final = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use, each and together. A rate of 0 is unlimited.

    For one client: `symbols`, subscriptions at a time; `message`, bytes of one message;
    `message_rate` and `byte_rate`, frames and bytes a second from it, averaged over BURST_SECONDS;
    `raw_budget`, bytes kept for its raw subscriptions while it is behind; `send_buffer`, bytes the
    kernel keeps for it, 0 for as many as the kernel likes; `heartbeat_ms`, milliseconds between
    heartbeats.

    When a client is disconnected, in seconds: `stall_timeout`, after it last read anything while
    behind; `ping_interval`, 0 for no pings, and `ping_timeout`, for the pong.

    For one address: `per_address`, connections at a time, 0 for any number; `connect_rate`,
    connections a second, averaged.

    For all together: `connections`, clients at a time; `handshakes`, connections that are not
    clients yet or no longer; `total_symbols`, symbols known at a time.

    For one step, in seconds: `tls_timeout`, from the accept to the end of the TLS handshake;
    `upgrade_timeout`, from there to the whole request; `close_timeout`, for the answer to a close.
    """

    symbols: int = 1000
    message: int = 16384
    message_rate: int = 100
    byte_rate: int = 65536
    raw_budget: int = 1024 * 1024
    send_buffer: int = 65536
    heartbeat_ms: int = 5000
    stall_timeout: float = 30
    ping_interval: float = 20
    ping_timeout: float = 10
    per_address: int = 1000
    connect_rate: int = 100
    connections: int = 10_000
    handshakes: int = 1000
    total_symbols: int = 100_000
    tls_timeout: float = 10
    upgrade_timeout: float = 10
    close_timeout: float = 5

    def __post_init__(self) -> None:
        if self.ping_interval and self.ping_timeout > self.ping_interval:
            raise ValueError(
                f"--ping-timeout {self.ping_timeout:g} is longer than --ping-interval"
                f" {self.ping_interval:g}: each ping is to be answered before the next"
            )
