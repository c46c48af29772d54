"""What clients say: the commands of the protocol, and how they are read from messages.

Must not know: what a command does, or how it is answered.

Own code: msgspec decodes the JSON; the errors that clients are told are this protocol's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec

from pushservice.protocol.close_codes import ErrorCode

MAX_INTERVAL_MS: Final = 60_000

#: A client's own id for a command, as the JSON text it sent, so that it goes back byte for byte.
CommandId: TypeAlias = bytes

_OPS: Final = "subscribe, unsubscribe, list, ping, auth"


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Wants updates for `symbols`, which are as sent: strings or not, well-formed or not."""

    id: CommandId | None
    symbols: Sequence[object]
    snapshot: bool = True
    raw: bool = False
    interval_ms: int = 0


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Wants no more updates for `symbols`; None means all."""

    id: CommandId | None
    symbols: Sequence[object] | None


@dataclass(frozen=True, slots=True)
class ListSymbols:
    """Asks what is subscribed."""

    id: CommandId | None


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong."""

    id: CommandId | None


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Says who it is, or shows a new token in place of one that is about to end."""

    id: CommandId | None
    token: str = field(repr=False)


Command: TypeAlias = Subscribe | Unsubscribe | ListSymbols | Ping | Authenticate


class BadCommand(ValueError):
    """A message that is no command. `id` is the command's own where one could be read."""

    def __init__(self, message: str, id: CommandId | None = None) -> None:
        super().__init__(message)
        self.id = id
        self.code = ErrorCode.MALFORMED


class _Message(msgspec.Struct):
    """One client message: the keys the protocol knows, unchecked; msgspec skips all others."""

    op: Any = msgspec.UNSET
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    symbols: Any = msgspec.UNSET
    mode: Any = msgspec.UNSET
    interval: Any = msgspec.UNSET
    snapshot: Any = msgspec.UNSET
    token: Any = msgspec.UNSET


_decode_message = msgspec.json.Decoder(_Message).decode


def parse_command(text: bytes) -> Command:
    """The command that the client message `text` holds; raises BadCommand, and nothing else."""
    try:
        text.decode()
        message = _decode_message(text)
    except UnicodeDecodeError:
        raise BadCommand("the message is not UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        if str(error).startswith("Expected `object`"):
            raise BadCommand('a message is one JSON object, such as {"op":"ping"}') from None
        raise BadCommand(f"the message is not JSON: {error}") from None
    command_id = _checked_id(message)
    try:
        return _command(message, command_id)
    except BadCommand as error:
        error.id = command_id
        raise


def parse_bare_symbols(text: bytes) -> Subscribe:
    """The subscription that `quotepush.raw` clients send as symbols separated by commas."""
    try:
        symbols = [part.strip() for part in text.decode().split(",")]
    except UnicodeDecodeError:
        raise BadCommand("the message is not UTF-8") from None
    return Subscribe(None, [symbol for symbol in symbols if symbol])


def _checked_id(message: _Message) -> CommandId | None:
    if isinstance(message.id, msgspec.UnsetType):
        return None
    text = bytes(message.id)
    if text[:1] in b'"-0123456789':
        return text
    raise BadCommand("id is a number or a string")


def _command(message: _Message, id: CommandId | None) -> Command:
    read = _READERS.get(message.op) if isinstance(message.op, str) else None
    if read is not None:
        return read(message, id)
    if message.op is msgspec.UNSET:
        raise BadCommand(f"op is missing; it is one of {_OPS}")
    raise BadCommand(f"unknown op {shortened(message.op)}; known are {_OPS}")


def _subscribe(message: _Message, id: CommandId | None) -> Subscribe:
    raw, interval_ms = _delivery(message)
    if message.symbols is msgspec.UNSET:
        raise BadCommand('subscribe needs symbols, such as "symbols":["AAPL"]')
    snapshot = True if message.snapshot is msgspec.UNSET else message.snapshot
    if not isinstance(snapshot, bool):
        raise BadCommand("snapshot is true or false")
    return Subscribe(id, _symbol_list(message.symbols), snapshot, raw, interval_ms)


def _unsubscribe(message: _Message, id: CommandId | None) -> Unsubscribe:
    if message.symbols is msgspec.UNSET:
        return Unsubscribe(id, None)
    return Unsubscribe(id, _symbol_list(message.symbols))


def _authenticate(message: _Message, id: CommandId | None) -> Authenticate:
    if not isinstance(message.token, str) or not message.token:
        raise BadCommand('auth needs a token, such as "token":"eyJ…"')
    return Authenticate(id, message.token)


_READERS: Final[dict[str, Callable[[_Message, CommandId | None], Command]]] = {
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "list": lambda _message, own: ListSymbols(own),
    "ping": lambda _message, own: Ping(own),
    "auth": _authenticate,
}


def _symbol_list(symbols: object) -> list[object]:
    if not isinstance(symbols, list):
        raise BadCommand('symbols is a list of strings, such as ["AAPL","600519.SH"]')
    return symbols


def _delivery(message: _Message) -> tuple[bool, int]:
    """Whether `mode` is raw, and `interval` in milliseconds."""
    mode, interval = message.mode, message.interval
    if mode is msgspec.UNSET:
        mode = "auto"
    if mode not in ("auto", "raw"):
        raise BadCommand(f'mode is "auto" or "raw", not {shortened(mode)}')
    if interval is msgspec.UNSET:
        interval = 0
    if type(interval) is not int or not 0 <= interval <= MAX_INTERVAL_MS:
        raise BadCommand(
            f"interval is a whole number of milliseconds, 0 to {MAX_INTERVAL_MS},"
            f" not {shortened(interval)}"
        )
    if interval and mode == "raw":
        raise BadCommand("interval goes with mode auto; raw brings every update at once")
    return mode == "raw", interval


def shortened(value: object, limit: int = 40) -> str:
    """`value` as JSON text of at most `limit` characters, for quoting it in a message."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
