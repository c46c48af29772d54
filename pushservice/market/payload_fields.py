"""Reads the fields of a payload: price, bid, ask, volume, time, under any of their usual names.

Numbers keep the digits they were sent with. Must not know: how they are shown, or where payloads
come from. Own code: no library knows what publishers call their fields; msgspec parses the JSON.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple

import msgspec

#: Names of fields, the most usual one first.
PRICE: Final = ("last", "price", "p", "close", "c")
BID: Final = ("bid", "b")
ASK: Final = ("ask", "a")
VOLUME: Final = ("volume", "vol", "v")
OPEN: Final = ("open", "o")
TIME: Final = ("ts", "timestamp", "time", "t")
NAME: Final = ("name",)

# A number whose digits would fill the terminal is shown with its exponent.
_MAX_PLACES: Final = 24
#: the years 2001 to 2286 in milliseconds since the epoch, and the factors from ms, s, us and ns
_FIRST_MS: Final = 1_000_000_000_000
_LAST_MS: Final = 9_999_999_999_999
_UNITS: Final = (Decimal(1), Decimal(1000), Decimal("0.001"), Decimal("0.000001"))


def _to_decimal(text: str) -> Decimal:
    return Decimal(text)


_decode = msgspec.json.Decoder(float_hook=_to_decimal).decode


class Ticker(NamedTuple):
    """A payload's fields, None for those that are not there.

    `text` is what to show of a payload that has no price. `ts` is milliseconds since the epoch.
    """

    price: Decimal | None = None
    bid: Decimal | None = None
    ask: Decimal | None = None
    volume: Decimal | None = None
    open: Decimal | None = None
    ts: int | None = None
    name: str | None = None
    text: str = ""


def read_ticker(payload: bytes, price_field: str | None = None) -> Ticker:
    """The fields of `payload`; a bare number is a price. `price_field` replaces PRICE."""
    try:
        found = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidOperation):
        return Ticker(text=payload.decode("utf-8", "replace"))
    if not isinstance(found, dict):
        price = None if isinstance(found, str) else _number(found)
        text = found if isinstance(found, str) else payload.decode("utf-8", "replace")
        return Ticker(price=price, text=text)
    name = _first(found, NAME)
    return Ticker(
        _number(_first(found, (price_field,) if price_field else PRICE)),
        _number(_first(found, BID)),
        _number(_first(found, ASK)),
        _number(_first(found, VOLUME)),
        _number(_first(found, OPEN)),
        _milliseconds(_number(_first(found, TIME))),
        name if isinstance(name, str) else None,
        payload.decode("utf-8", "replace"),
    )


def format_number(number: Decimal) -> str:
    """A number with the digits it was sent with."""
    if abs(number.adjusted()) > _MAX_PLACES or number.as_tuple().exponent < -_MAX_PLACES:  # type: ignore[operator]  # numbers of JSON are finite
        return str(number)
    return f"{number:f}"


def printable(text: str) -> str:
    """Untrusted text with every character replaced that a terminal might interpret."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _first(found: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)


def _number(value: Any) -> Decimal | None:
    """A JSON number, or one that was sent as a string."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    try:
        number = Decimal(value)
    except (InvalidOperation, ValueError):
        return None
    return number if number.is_finite() else None


def _milliseconds(number: Decimal | None) -> int | None:
    """A publisher's time in milliseconds; its size tells the unit, s, ms, us or ns."""
    if number is None:
        return None
    for unit in _UNITS:
        if _FIRST_MS <= number * unit <= _LAST_MS:
            return int(number * unit)
    return None
