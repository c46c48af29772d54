"""One client's state machine: commands in, events out, limits.

Must not know: sockets, Twisted, WebSocket frames beyond asking the codec for them. What it says to
the client goes through the outbox, what it wants goes to the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pushservice import commands, wire
from pushservice.allowance import Allowance
from pushservice.closing import CloseCode, ErrorCode
from pushservice.hub import NoRoom
from pushservice.limits import BURST_SECONDS, SYMBOLS_A_MESSAGE, Limits

if TYPE_CHECKING:
    from pushservice.hub import Hub
    from pushservice.metrics import Counters
    from pushservice.outbox import Outbox
    from pushservice.topic import Topic


_NO_ROOM: Final = (
    "as many symbols as this server has room for are watched; only those that somebody watches"
    " already can be subscribed for now"
)


class Session:
    """One connected client: OPEN from construction until `close`, then for ever closed."""

    __slots__ = ("_allowance", "_counters", "_hub", "_limits", "closed", "outbox")

    def __init__(self, hub: Hub, outbox: Outbox, limits: Limits, counters: Counters) -> None:
        self.outbox = outbox
        self.closed = False
        # Made when something comes; many clients say little.
        self._allowance: Allowance | None = None
        self._hub = hub
        self._limits = limits
        self._counters = counters

    def open(self) -> None:
        """The handshake is done: greet the client."""
        self._hub.enter(self.outbox)
        limits = self._limits
        self._answer(
            wire.welcome(
                self.outbox.conn,
                self._hub.epoch,
                limits.heartbeat_ms,
                limits.symbols,
                limits.message,
            )
        )

    def arrived(self, size: int) -> None:
        """Bytes came from the client, whatever they are: it lives, and they count."""
        self.outbox.unanswered = None
        self.allowance.arrived(size, self._hub.seconds())

    @property
    def allowance(self) -> Allowance:
        """What the client may still send."""
        if self._allowance is None:
            self._allowance = Allowance(self._limits, self._hub.seconds())
        return self._allowance

    def frame(self) -> bool:
        """One of the frames in what arrived; False once the client is closed for flooding."""
        allowance = self._allowance
        if allowance is not None:
            allowance.frame()
            if allowance.exhausted and not self.closed:
                self._counters.closed_flooding += 1
                self.outbox.outlet.close(CloseCode.FLOODING)
        return not self.closed

    def receive(self, text: bytes) -> None:
        """One text message from the client; whatever is wrong with it is answered, not raised."""
        if self.closed:
            return
        self._counters.commands += 1
        codec = self.outbox.codec
        try:
            command = codec.parse(text)
        except commands.BadCommand as fault:
            if self._allowance is not None and self._allowance.overdrawn:
                self._refuse_flood(fault.id)
            else:
                self._refuse(fault.id, fault.code, str(fault))
            return
        if self._allowance is not None and self._allowance.overdrawn:
            self._refuse_flood(command.id)
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
        self._charge(len(command.symbols))
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
                try:
                    topic = hub.subscribe(
                        outbox, symbol, raw=command.raw, interval_ms=command.interval_ms
                    )
                except NoRoom:
                    errors[symbol] = (ErrorCode.TOO_MANY_SYMBOLS, _NO_ROOM)
                    continue
                accepted[topic] = True
            elif topic not in accepted:
                hub.subscribe(outbox, symbol, raw=command.raw, interval_ms=command.interval_ms)
                accepted[topic] = False
        symbols = [topic.symbol for topic in accepted]
        self._acknowledge(wire.subscribed, command.id, symbols, errors)
        if command.snapshot:
            outbox.send_snapshots(accepted.items())
            hub.await_values(outbox, accepted)
        outbox.tell_quiet([topic for topic in accepted if topic.stale], stale=True)

    def _unsubscribe(self, command: commands.Unsubscribe) -> None:
        outbox, hub = self.outbox, self._hub
        errors: dict[str, tuple[ErrorCode, str]] = {}
        gone: dict[str, None] = {}
        if command.symbols is None:
            gone = {topic.symbol: None for topic in outbox.topics}
            self._charge(len(gone))
        else:
            self._charge(len(command.symbols))
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

    def _charge(self, symbols: int) -> None:
        if self._allowance is not None:
            self._allowance.spend(symbols / SYMBOLS_A_MESSAGE)

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

    def _refuse_flood(self, id: commands.CommandId | None) -> None:
        self._counters.messages_refused += 1
        rates = (self._limits.message_rate, "messages"), (self._limits.byte_rate, "bytes")
        allowed = " and ".join(f"{rate} {what} a second" for rate, what in rates if rate)
        self._refuse(
            id,
            ErrorCode.TOO_MANY_MESSAGES,
            f"refused, and not carried out: over {BURST_SECONDS} seconds at most {allowed} are;"
            " who goes on like this is closed",
        )


def _as_key(symbol: object) -> str:
    """A bad symbol as the key of its error: itself, or its JSON text if it is no string."""
    return symbol if isinstance(symbol, str) else commands.shortened(symbol)
