"""Events: what the server says to a client, each as the bytes of a JSON object.

Must not know: how events are framed (a codec does that), or when they are sent. The codecs make
quotes and snapshots themselves. docs/protocol.rst describes every event in prose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from pushservice.protocol.close_codes import ErrorCode
from pushservice.protocol.codecs import Codec
from pushservice.protocol.commands import CommandId

_encode = msgspec.json.Encoder().encode


def welcome(
    conn: str,
    epoch: str,
    heartbeat_ms: int,
    max_symbols: int,
    max_message: int,
    auth: str | None = None,
) -> bytes:
    """The first event on a connection; limits are counts of symbols and bytes of a message.

    `auth` says whether to authenticate; None where nobody has to.
    """
    event: dict[str, object] = {
        "ev": "welcome",
        "v": 1,
        "conn": conn,
        "epoch": epoch,
        "hb": heartbeat_ms,
        "limits": {"symbols": max_symbols, "message": max_message},
    }
    if auth is not None:
        event["auth"] = auth
    return _encode(event)


def subscribed(
    id: CommandId | None,
    symbols: Sequence[str],
    errors: Mapping[str, tuple[ErrorCode, str]],
    total: int,
) -> bytes:
    """Answers Subscribe: what is served now, what is not and why, and how many in all."""
    return _symbols_answered("subscribed", id, symbols, errors, total)


def unsubscribed(
    id: CommandId | None,
    symbols: Sequence[str],
    errors: Mapping[str, tuple[ErrorCode, str]],
    total: int,
) -> bytes:
    """Answers Unsubscribe: what is no longer served, and how many still are."""
    return _symbols_answered("unsubscribed", id, symbols, errors, total)


def listing(id: CommandId | None, symbols: Sequence[str]) -> bytes:
    """Answers ListSymbols."""
    return _encode(_answer("list", id) | {"symbols": symbols})


def pong(id: CommandId | None) -> bytes:
    """Answers Ping."""
    return _encode(_answer("pong", id))


def authenticated(
    id: CommandId | None, user: str | None, expires: int | None, delay: float
) -> bytes:
    """Answers Authenticate; `expires` in milliseconds since the epoch, `delay` in seconds."""
    event = _answer("authenticated", id)
    if user is not None:
        event["user"] = user
    if expires is not None:
        event["expires"] = expires
    if delay:
        event["delay"] = int(delay) if delay == int(delay) else delay
    return _encode(event)


def expiring(left_ms: int) -> bytes:
    """Says that the client's token ends in so many milliseconds."""
    return _encode({"ev": "expiring", "in": left_ms})


def error(id: CommandId | None, code: ErrorCode, message: str, retry: int | None = None) -> bytes:
    """Says what was wrong with a command and what would be right.

    `retry` is milliseconds after which the very same command may be carried out.
    """
    event = _answer("error", id) | {"code": code, "msg": message}
    if retry is not None:
        event["retry"] = retry
    return _encode(event)


def internal_error(incident: str) -> str:
    """The message for a fault of the daemon; the log has the same incident id."""
    return f"internal error: incident {incident}"


def incident(codec: Codec, incident: str) -> bytes:
    """Says that the daemon failed, by the incident id in the log; a piece for `codec`."""
    return codec.failure(error(None, ErrorCode.INTERNAL, internal_error(incident)))


def heartbeat(t: int, feed_up: bool, age: int | None, merged: int) -> bytes:
    """Says that the link lives: `t` and `age` in milliseconds, `merged` the connection's total."""
    feed = "up" if feed_up else "down"
    return _encode({"ev": "heartbeat", "t": t, "feed": feed, "age": age, "merged": merged})


def feed(up: bool, t: int) -> bytes:
    """Says that the feed was lost or is back; `t` in milliseconds since the epoch."""
    return _encode({"ev": "feed", "state": "up" if up else "down", "t": t})


def gap(symbol: bytes) -> bytes:
    """Says that updates of a symbol may be missing before the next; `symbol` is JSON text."""
    return b'{"ev":"gap","s":%b}' % symbol


def quiet(symbols: Sequence[str], stale: bool, everything: bool = False) -> bytes:
    """Says which symbols have gone quiet for long, or are back; `everything`: all of the feed."""
    event: dict[str, object] = {"ev": "stale" if stale else "fresh", "symbols": symbols}
    if everything:
        event["all"] = True
    return _encode(event)


def bye(code: int, retry: int | None) -> bytes:
    """Announces a close; `retry` is milliseconds to wait before reconnecting."""
    event: dict[str, object] = {"ev": "bye", "code": code}
    if retry is not None:
        event["retry"] = retry
    return _encode(event)


def _answer(ev: str, id: CommandId | None) -> dict[str, object]:
    return {"ev": ev} if id is None else {"ev": ev, "id": msgspec.Raw(id)}


def _symbols_answered(
    ev: str,
    id: CommandId | None,
    symbols: Sequence[str],
    errors: Mapping[str, tuple[ErrorCode, str]],
    total: int,
) -> bytes:
    event = _answer(ev, id)
    event["symbols"] = symbols
    if errors:
        event["errors"] = {
            symbol: {"code": code, "msg": message} for symbol, (code, message) in errors.items()
        }
    event["total"] = total
    return _encode(event)
