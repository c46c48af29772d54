"""One client's state machine: commands in, events out, limits.

Must not know: sockets, Twisted, WebSocket frames beyond asking the codec for them. What it says to
the client goes through the outbox, what it wants goes to the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pushservice import commands, wire
from pushservice.closing import ErrorCode

if TYPE_CHECKING:
    from pushservice.hub import Hub, Topic
    from pushservice.metrics import Counters
    from pushservice.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may use, as its welcome says.

    `symbols`: subscriptions at a time; `message`: bytes of one message; `heartbeat_ms`:
    milliseconds between heartbeats.
    """

    symbols: int = 1000
    message: int = 16384
    heartbeat_ms: int = 5000


class Session:
    """One connected client: OPEN from construction until `close`, then for ever closed."""

    __slots__ = ("_counters", "_hub", "_limits", "closed", "conn", "outbox")

    def __init__(
        self, conn: str, hub: Hub, outbox: Outbox, limits: Limits, counters: Counters
    ) -> None:
        """`conn` is the connection's id, unique among all daemons, for the client and the log."""
        self.conn = conn
        self.outbox = outbox
        self.closed = False
        self._hub = hub
        self._limits = limits
        self._counters = counters

    def open(self) -> None:
        """The handshake is done: greet the client."""
        self._hub.enter(self.outbox)
        limits = self._limits
        self._answer(
            wire.welcome(
                self.conn, self._hub.epoch, limits.heartbeat_ms, limits.symbols, limits.message
            )
        )

    def receive(self, text: bytes) -> None:
        """One text message from the client; whatever is wrong with it is answered, not raised."""
        if self.closed:
            return
        self._counters.commands += 1
        codec = self.outbox.codec
        try:
            command = codec.parse(text)
        except commands.BadCommand as fault:
            self._refuse(fault.id, fault.code, str(fault))
            return
        if isinstance(command, commands.Subscribe):
            self._subscribe(command)
        elif isinstance(command, commands.Unsubscribe):
            self._unsubscribe(command)
        elif not codec.converses:
            self._refuse(command.id, ErrorCode.MALFORMED, f"{codec.name} has no answers but errors")
        elif isinstance(command, commands.ListSymbols):
            symbols = [topic.symbol for topic in self.outbox.topics]
            self._answer(wire.listing(command.id, symbols))
        else:
            self._answer(wire.pong(command.id))

    def ping(self, payload: bytes) -> None:
        """A ping frame came (RFC 6455, 5.5.2)."""
        self.outbox.send_pong(payload)

    def close(self) -> None:
        """The client is going, or about to be closed: leave the hub first. May be called twice."""
        if not self.closed:
            self.closed = True
            self._hub.leave(self.outbox)

    # -- commands --------------------------------------------------------------------------------

    def _subscribe(self, command: commands.Subscribe) -> None:
        outbox, hub = self.outbox, self._hub
        accepted: dict[Topic, bool] = {}
        errors: dict[str, tuple[ErrorCode, str]] = {}
        for symbol in command.symbols:
            fault = wire.symbol_fault(symbol)
            if fault is not None:
                errors[_as_key(symbol)] = (ErrorCode.BAD_SYMBOL, fault)
                continue
            assert isinstance(symbol, str)
            topic = hub.topic(symbol)
            if topic is None or topic not in outbox.topics:
                if len(outbox.topics) >= self._limits.symbols:
                    errors[symbol] = (
                        ErrorCode.TOO_MANY_SYMBOLS,
                        f"at most {self._limits.symbols} symbols on one connection",
                    )
                    continue
                accepted[hub.subscribe(outbox, symbol)] = True
            else:
                accepted.setdefault(topic, False)
        symbols = [topic.symbol for topic in accepted]
        self._acknowledge(wire.subscribed, command.id, symbols, errors)
        if command.snapshot:
            outbox.send_snapshots(accepted.items())

    def _unsubscribe(self, command: commands.Unsubscribe) -> None:
        outbox, hub = self.outbox, self._hub
        errors: dict[str, tuple[ErrorCode, str]] = {}
        gone: dict[str, None] = {}
        if command.symbols is None:
            gone = {topic.symbol: None for topic in outbox.topics}
        else:
            for symbol in command.symbols:
                fault = wire.symbol_fault(symbol)
                if fault is not None:
                    errors[_as_key(symbol)] = (ErrorCode.BAD_SYMBOL, fault)
                else:
                    assert isinstance(symbol, str)
                    gone[symbol] = None
        for symbol in gone:
            topic = hub.topic(symbol)
            if topic is not None and topic in outbox.topics:
                hub.unsubscribe(outbox, topic)
        self._acknowledge(wire.unsubscribed, command.id, list(gone), errors)

    # -- what goes to the client -----------------------------------------------------------------

    def _acknowledge(
        self,
        event: Callable[
            [commands.CommandId | None, Sequence[str], Mapping[str, tuple[ErrorCode, str]], int],
            bytes,
        ],
        id: commands.CommandId | None,
        symbols: Sequence[str],
        errors: Mapping[str, tuple[ErrorCode, str]],
    ) -> None:
        """Answer a command about symbols; a codec without answers gets the errors alone."""
        if self.outbox.codec.converses:
            self._answer(event(id, symbols, errors, len(self.outbox.topics)))
            self._counters.command_errors += len(errors)
        else:
            for symbol, (code, message) in errors.items():
                self._refuse(id, code, f"{symbol}: {message}")

    def _answer(self, event: bytes) -> None:
        codec = self.outbox.codec
        if codec.converses:
            self.outbox.send(codec.frames([event]))

    def _refuse(self, id: commands.CommandId | None, code: ErrorCode, message: str) -> None:
        self._counters.command_errors += 1
        codec = self.outbox.codec
        self.outbox.send(codec.frames([codec.failure(wire.error(id, code, message))]))


def _as_key(symbol: object) -> str:
    """A bad symbol as the key of its error: itself, or its JSON text if it is no string."""
    return symbol if isinstance(symbol, str) else commands.shortened(symbol)
