"""Options that bound what clients may use: connections, symbols, messages, memory, time.

Must not know: where values come from (command line, environment, file), or how limits are enforced.
"""

from __future__ import annotations

from typing import Final

from pushservice.config.coercers import seconds, whole_number
from pushservice.config.option import Option

LIMITS: Final[tuple[Option, ...]] = (
    Option(
        "max-connections",
        "most clients at a time; when not given, the process's limit of open files less a reserve",
        None,
        whole_number(1, 10_000_000),
        "clients",
        "N",
        section="limits",
    ),
    Option(
        "max-per-address",
        "most connections at a time from one address (IPv6: from one /64 network); 0 for no limit",
        "1000",
        whole_number(0, 10_000_000),
        "connections",
        "N",
        section="limits",
    ),
    Option(
        "connect-rate",
        "most new connections from one address, averaged over 10 seconds; 0 for no limit",
        "100",
        whole_number(0, 1_000_000),
        "connections a second",
        "N",
        section="limits",
    ),
    Option(
        "max-handshakes",
        "most connections at a time that are not clients: those in a handshake, fetching a page,"
        " or closing",
        "1000",
        whole_number(16, 1_000_000),
        "connections",
        "N",
        section="limits",
    ),
    Option(
        "tls-timeout",
        "time from the accept to the end of the TLS handshake",
        "10",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "upgrade-timeout",
        "time for the HTTP request of the opening handshake",
        "10",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "close-timeout",
        "time a client has to answer a close before the connection is aborted",
        "5",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "max-symbols",
        "most symbols that one client may subscribe to",
        "1000",
        whole_number(1, 1_000_000),
        "symbols",
        "N",
        section="limits",
    ),
    Option(
        "max-total-symbols",
        "most symbols known at a time, watched or quoted; to make room, the last values of"
        " symbols that nobody watches are dropped, oldest first",
        "100000",
        whole_number(1, 100_000_000),
        "symbols",
        "N",
        section="limits",
    ),
    Option(
        "max-message",
        "size of the largest message that a client may send",
        "16384",
        whole_number(128, 16 * 1024 * 1024),
        "bytes",
        "N",
        section="limits",
    ),
    Option(
        "message-rate",
        "most messages from one client, averaged over 10 seconds; 0 for no limit",
        "100",
        whole_number(0, 1_000_000),
        "messages a second",
        "N",
        section="limits",
    ),
    Option(
        "byte-rate",
        "most bytes from one client, averaged over 10 seconds; 0 for no limit",
        "65536",
        whole_number(0, 1_000_000_000),
        "bytes a second",
        "N",
        section="limits",
    ),
    Option(
        "raw-budget",
        "updates kept for the raw subscriptions of one slow client; a client that exceeds it is"
        " closed with 4008",
        "1048576",
        whole_number(1024, 1024 * 1024 * 1024),
        "bytes",
        "N",
        section="limits",
    ),
    Option(
        "send-buffer",
        "size of the kernel's send buffer for one client (SO_SNDBUF); 0 leaves it to the kernel",
        "65536",
        whole_number(0, 64 * 1024 * 1024),
        "bytes",
        "N",
        section="limits",
    ),
    Option(
        "stall-timeout",
        "time after which a client that is behind and takes no data is disconnected",
        "30",
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "ping-interval",
        "time between pings to a client, which find dead connections; 0 for no pings",
        "20",
        seconds(0, 3600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "ping-timeout",
        "time for the answer to a ping before the connection is aborted",
        "10",
        seconds(0.1, 3600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "heartbeat",
        "time between heartbeats on a connection",
        "5000",
        whole_number(100, 600_000),
        "milliseconds",
        "N",
        section="limits",
    ),
)
