"""What a log event says: its message, traceback and fields, bounded and as plain JSON values.

Must not know: where events go, or how lines look.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

import msgspec
from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr

#: Characters of a field, of a message and of a traceback; what is over is cut out.
MAX_FIELD: Final = 1024
MAX_MESSAGE: Final = 8 * 1024
MAX_TRACEBACK: Final = 16 * 1024
#: Fields of an event, and things in a field that is a list or a mapping.
MAX_FIELDS: Final = 50
#: What Twisted's older log adds to each event, beside what names itself log_...
_LEGACY: Final = frozenset({"system", "message", "time", "isError", "failure", "format", "why"})


def shortened(text: str, most: int) -> str:
    """`text` with at most `most` characters: its beginning and its end."""
    if len(text) <= most:
        return text
    left_out = f" [... {len(text) - most} characters ...] "
    return text[: most // 2] + left_out + text[len(text) - most // 2 :]


def message_and_traceback(event: LogEvent) -> tuple[str, str | None]:
    """The message of an event, and the traceback of its failure, if it has one."""
    if isinstance(worker_traceback := event.get("log_traceback"), str):
        return str(event.get("log_text")), worker_traceback
    failure = event.get("log_failure")
    if failure is None and isinstance(event.get("failure"), Failure):
        # Twisted's older log puts the traceback into the text.
        return str(event.get("why") or "Unhandled Error"), _traceback(event["failure"])
    return formatEvent(event), None if failure is None else _traceback(failure)


def _traceback(failure: Failure) -> str:
    try:
        return str(failure.getTraceback()).rstrip("\n")
    except Exception as error:  # noqa: BLE001 - the failure itself must still be logged
        return f"(no traceback: {safe_repr(error)})"


def json_fields(event: LogEvent, most: int) -> dict[str, object]:
    """The fields of the event as JSON values; a text has at most `most` characters."""
    legacy = _LEGACY if "isError" in event else frozenset()
    own = [name for name in event if not name.startswith("log_") and name not in legacy]
    return {
        shortened(name, MAX_FIELD): _plain(event[name], most, depth=2) for name in own[:MAX_FIELDS]
    }


def _plain(value: object, most: int, depth: int) -> object:
    """`value` as a JSON value, or its repr."""
    # Exactly these types: a method of a subclass may do anything.
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is int and abs(cast("int", value)) < 1 << 63:
        return value
    if kind is str:
        return shortened(cast("str", value), most)
    if depth and kind in (list, tuple, set, frozenset):
        items = list(cast("Iterable[object]", value))[:MAX_FIELDS]
        return [_plain(each, most // 4, depth - 1) for each in items]
    if depth and kind is dict:
        pairs = list(cast("dict[object, object]", value).items())[:MAX_FIELDS]
        return {
            shortened(str(key) if type(key) is str else safe_repr(key), MAX_FIELD): _plain(
                each, most // 4, depth - 1
            )
            for key, each in pairs
        }
    return shortened(safe_repr(value), most)


def encoded_json(value: object) -> bytes:
    """`value` as JSON; a lone surrogate, which no UTF-8 has, is escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_without_surrogates(value))


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    return value


def level_name(event: LogEvent) -> str:
    """The name of the level of `event`, or `-` where it has none."""
    return str(getattr(event.get("log_level"), "name", "-"))
