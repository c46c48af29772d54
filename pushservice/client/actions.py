"""What a conversation wants done: actions that an adapter for asyncio or Twisted carries out.

Must not know: how they are carried out, or why they are due.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pushservice.client.options import Why

#: Takes the outcome of a user's call: its result, or a QuoteError.
Done: TypeAlias = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection, then report each message by `received`, and how it ended."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a text message, which may hold a token."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the connection, `politely` with a close frame, and report nothing more of it."""

    politely: bool


@dataclass(frozen=True, slots=True)
class AskToken:
    """Call the token function, then call `token_came` with the same number."""

    number: int
    why: Why


@dataclass(frozen=True, slots=True)
class Answer:
    """Call `done` with `outcome`, which may be a QuoteError."""

    done: Done
    outcome: Any


Command: TypeAlias = Connect | Send | Hangup | AskToken | Answer
