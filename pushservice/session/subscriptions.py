"""Subscribe and unsubscribe a client as it asks and as its rights allow.

Must not know: how commands come and answers are sent, who the client is, or Twisted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from pushservice.auth.identity import Rights, decide
from pushservice.fanout.subscriptions import NoRoom
from pushservice.fanout.watchlist import raw_and_interval
from pushservice.protocol import commands
from pushservice.protocol.close_codes import ErrorCode
from pushservice.protocol.symbols import symbol_fault

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub
    from pushservice.fanout.outbox import Outbox
    from pushservice.fanout.topic import Topic

#: The error of each symbol that was refused.
Errors: TypeAlias = dict[str, tuple[ErrorCode, str]]

_NO_ROOM: Final = (
    "as many symbols as this server has room for are watched; only those that somebody watches"
    " already can be subscribed for now"
)


def subscribe(
    hub: Hub, outbox: Outbox, command: commands.Subscribe, rights: Rights | None, most: int
) -> tuple[dict[Topic, bool], Errors]:
    """Subscribe the client to the symbols of `command` that it may see, up to `most` in all.

    Returns the topics, each with whether the subscription is new, and the errors. Rights of None
    are all rights.
    """
    accepted: dict[Topic, bool] = {}
    errors: Errors = {}
    for symbol in command.symbols:
        fault = symbol_fault(symbol)
        if fault is not None:
            errors[_as_key(symbol)] = (ErrorCode.BAD_SYMBOL, fault)
            continue
        assert isinstance(symbol, str)
        interval_ms = command.interval_ms
        if rights is not None:
            verdict = decide(rights, symbol, raw=command.raw, interval_ms=interval_ms)
            if isinstance(verdict, str):
                errors[symbol] = (ErrorCode.NOT_ENTITLED, verdict)
                continue
            interval_ms = verdict
        topic = hub.topic(symbol)
        if topic is None or topic not in outbox.topics:
            if len(outbox.topics) >= most:
                errors[symbol] = _too_many(most)
                continue
            try:
                topic = hub.subscribe(outbox, symbol, raw=command.raw, interval_ms=interval_ms)
            except NoRoom:
                errors[symbol] = (ErrorCode.TOO_MANY_SYMBOLS, _NO_ROOM)
                continue
            accepted[topic] = True
        elif topic not in accepted:
            hub.subscribe(outbox, symbol, raw=command.raw, interval_ms=interval_ms)
            accepted[topic] = False
    return accepted, errors


def unsubscribe(
    hub: Hub, outbox: Outbox, symbols: Sequence[object] | None
) -> tuple[list[str], Errors]:
    """Unsubscribe the client from `symbols`, None for all; returns the well-formed ones."""
    errors: Errors = {}
    gone: dict[str, None] = {}
    if symbols is None:
        gone = {topic.symbol: None for topic in outbox.topics}
    else:
        for symbol in symbols:
            fault = symbol_fault(symbol)
            if fault is not None:
                errors[_as_key(symbol)] = (ErrorCode.BAD_SYMBOL, fault)
            else:
                assert isinstance(symbol, str)
                gone[symbol] = None
    for symbol in gone:
        topic = hub.topic(symbol)
        if topic is not None and topic in outbox.topics:
            hub.unsubscribe(outbox, topic)
    return list(gone), errors


def review(hub: Hub, outbox: Outbox, rights: Rights, most: int) -> Errors:
    """End subscriptions that `rights` do not allow or that exceed `most`; slow down too fast ones.

    Returns the ended ones, each with its error.
    """
    errors: Errors = {}
    kept = 0
    for topic, mode in list(outbox.topics.items()):
        raw, interval_ms = raw_and_interval(mode)
        verdict = decide(rights, topic.symbol, raw=raw, interval_ms=interval_ms)
        if isinstance(verdict, str):
            errors[topic.symbol] = (ErrorCode.NOT_ENTITLED, verdict)
            hub.unsubscribe(outbox, topic)
        elif kept >= most:
            errors[topic.symbol] = _too_many(most)
            hub.unsubscribe(outbox, topic)
        else:
            kept += 1
            if verdict != interval_ms:
                hub.subscribe(outbox, topic.symbol, raw=raw, interval_ms=verdict)
    return errors


def _too_many(most: int) -> tuple[ErrorCode, str]:
    return ErrorCode.TOO_MANY_SYMBOLS, f"at most {most} symbols on one connection"


def _as_key(symbol: object) -> str:
    """A bad symbol as the key of its error: itself, or its JSON text if it is no string."""
    return symbol if isinstance(symbol, str) else commands.shortened(symbol)
