"""Requests to the server and their answers, by the id that both carry.

Must not know: what requests ask, links beyond their loss, or I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from pushservice.client import frames
from pushservice.client.actions import Answer, Command, Done, Send
from pushservice.client.events import QuoteError

#: Takes the answer to a request; None if the link was lost before.
Answered: TypeAlias = Callable[[Any], None]


class Requests:
    """The requests of a conversation, of which only those of the present link await answers."""

    def __init__(
        self, carry_out: Callable[[Command], None], accepts: Callable[[str], bool]
    ) -> None:
        """`accepts` says whether the server takes a command of this `op` now."""
        self._carry_out = carry_out
        self._accepts = accepts
        self._next_id = 1
        self._pending: dict[int, Answered] = {}
        self._held: list[str] = []  # made while authenticating

    def __bool__(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._pending)

    def send(self, message: Mapping[str, Any], answered: Answered) -> int:
        """Send a request now, or once the server takes it; returns its id."""
        number = self._next_id
        self._next_id += 1
        self._pending[number] = answered
        text = msgspec.json.encode({**message, "id": number}).decode()
        if self._accepts(message["op"]):
            self._carry_out(Send(text))
        else:
            self._held.append(text)
        return number

    def ask(self, op: str, done: Done, result: Callable[[Any], object]) -> None:
        """Send a request that is only its `op`; `done` gets `result` of the answer, or an error."""

        def answered(event: Any) -> None:
            if event is None:
                self.settle(done, QuoteError(0, "the link was lost before the answer"))
            elif isinstance(event, frames.ErrorEvent):
                retry = None if event.retry is None else event.retry / 1000
                self.settle(done, QuoteError(event.code, event.msg, retry))
            else:
                self.settle(done, result(event))

        self.send({"op": op}, answered)

    def settle(self, done: Done, outcome: Any) -> None:
        """Tell the outcome of a user's call."""
        self._carry_out(Answer(done, outcome))

    def on_answer(self, event: Any) -> None:
        """Give an event to the request that it answers, if it does."""
        answered = self._pending.pop(event.id, None)
        if answered is not None:
            answered(event)

    def release(self) -> None:
        """Send what was held, as the server takes everything from now on."""
        for text in self._held:
            self._carry_out(Send(text))
        self._held.clear()

    def link_lost(self) -> None:
        """Drop what was held, and answer everything with None."""
        self._held.clear()
        pending, self._pending = self._pending, {}
        for answered in pending.values():
            answered(None)
