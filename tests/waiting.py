"""Waiting for an event with a deadline: the only ways in which tests wait."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet import defer, reactor


def wait_for_line(stream: object, words: bytes) -> bytes:
    """Read lines of `stream` until one has `words`; returns all that was read. An end fails."""
    seen = b""
    for line in stream:  # type: ignore[attr-defined]  # any binary stream of lines
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"the stream ended without {words!r}: {seen.decode(errors='replace')}")


async def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Let the reactor turn until `condition` holds; fails, naming `what`, past a deadline."""
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline, f"waited {seconds} s for {what}"
        turn: defer.Deferred[None] = defer.Deferred()
        reactor.callLater(0.005, turn.callback, None)
        await turn


def read(client: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; a client's own time-out is the deadline."""
    parts = []
    while size:
        part = client.recv(size)
        assert part, "the stream ended early"
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
