"""What is sent to one client in reply: answers, errors and the goodbye, as its codec has them.

Must not know: commands' effects, who the client is, sockets, or Twisted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from pushservice.limits import BURST_SECONDS, Limits
from pushservice.protocol import commands, events
from pushservice.protocol.close_codes import CloseCode, ErrorCode
from pushservice.session.subscriptions import Errors

if TYPE_CHECKING:
    from pushservice.fanout.outbox import Outbox
    from pushservice.metrics import Counters

#: Makes an event of the command's id, symbols, errors, and how many symbols are subscribed.
Acknowledgement: TypeAlias = Callable[
    [commands.CommandId | None, Sequence[str], Mapping[str, tuple[ErrorCode, str]], int], bytes
]


def answer(outbox: Outbox, event: bytes) -> None:
    """Send an event; a codec without answers gets none."""
    codec = outbox.codec
    if codec.converses:
        outbox.send(codec.frames([codec.event(event)]))


def acknowledge(
    outbox: Outbox,
    counters: Counters,
    event: Acknowledgement,
    id: commands.CommandId | None,
    symbols: Sequence[str],
    errors: Errors,
) -> None:
    """Answer a command about symbols; a codec without answers gets the errors alone."""
    if outbox.codec.converses:
        answer(outbox, event(id, symbols, errors, len(outbox.topics)))
        counters.command_errors += len(errors)
    else:
        for symbol, (code, message) in errors.items():
            refuse(outbox, counters, id, code, f"{symbol}: {message}")


def refuse(
    outbox: Outbox,
    counters: Counters,
    id: commands.CommandId | None,
    code: ErrorCode,
    message: str,
    retry_ms: int | None = None,
) -> None:
    """Answer a command with an error, and count that."""
    counters.command_errors += 1
    codec = outbox.codec
    outbox.send(codec.frames([codec.failure(events.error(id, code, message, retry_ms))]))


def refuse_flood(
    outbox: Outbox, counters: Counters, id: commands.CommandId | None, limits: Limits
) -> None:
    """Answer a command that came above the rate limit, and is not carried out."""
    counters.messages_refused += 1
    rates = (limits.message_rate, "messages"), (limits.byte_rate, "bytes")
    allowed = " and ".join(f"{rate} {what} a second" for rate, what in rates if rate)
    refuse(
        outbox,
        counters,
        id,
        ErrorCode.TOO_MANY_MESSAGES,
        f"refused, and not carried out: over {BURST_SECONDS} seconds at most {allowed} are;"
        " who goes on like this is closed",
    )


def close(outbox: Outbox, code: CloseCode, retry_ms: int | None = None) -> None:
    """Say goodbye, where the codec can, and begin the closing handshake."""
    codec = outbox.codec
    if codec.converses:
        outbox.send_last(codec.frames([codec.event(events.bye(code, retry_ms))]))
    outbox.outlet.close(code)


def close_for(outbox: Outbox, error: ErrorCode, reason: str, code: CloseCode) -> None:
    """Send a last error that no command asked for, and close."""
    codec = outbox.codec
    outbox.send_last(codec.frames([codec.failure(events.error(None, error, reason))]))
    close(outbox, code)


def authenticated(
    outbox: Outbox,
    id: commands.CommandId | None,
    user: str | None,
    expires_at: float | None,
    delay_s: float,
) -> None:
    """Tell a client who it is now; `expires_at` is in seconds since the epoch."""
    expires_ms = None if expires_at is None else int(expires_at * 1000)
    answer(outbox, events.authenticated(id, user, expires_ms, delay_s))
