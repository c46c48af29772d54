"""Options that several commands of `quotepush token` have, and the checks of their values.

Must not know: how tokens are signed, or how Redis is reached.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from pushservice.auth.identity import MAX_DELAY_S, MAX_SYMBOLS, MAX_TEXT, is_name
from pushservice.protocol.commands import MAX_INTERVAL_MS
from pushservice.protocol.symbols import symbol_fault

#: most seconds that a token or a ticket may live: ten years
_MAX_LIFETIME_S: Final = 10 * 366 * 86_400
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
PATH: Final = click.Path(path_type=Path)

Command = Callable[..., None]


def checked(check: Callable[[Any], Any]) -> Callable[[Any, click.Parameter, Any], Any]:
    """A callback of an option: `check` converts its value, or raises ValueError."""

    def callback(_context: Any, option: click.Parameter, given: Any) -> Any:
        try:
            if isinstance(given, tuple):
                return tuple(check(each) for each in given)
            return None if given is None else check(given)
        except ValueError as error:
            raise click.ClickException(f"{option.opts[0]}: {error}") from None

    return callback


def duration(text: str) -> int:
    """The seconds of a duration such as 90s or 1h."""
    parts = re.fullmatch(r"([0-9]{1,10})([smhd])", text, re.ASCII)
    length = int(parts[1]) * _UNITS[parts[2]] if parts else 0
    if not 1 <= length <= _MAX_LIFETIME_S:
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m, 1h or 7d, up to ten years")
    return length


def _pattern(text: str) -> str:
    literal = text.removeprefix("!").replace("*", "")
    fault = symbol_fault(literal) if literal else None
    if not text.removeprefix("!") or fault is not None:
        raise ValueError(f"{text!r} matches no symbol: {fault or 'it is empty'}")
    return text


def printable_name(text: str) -> str:
    """The name of a user or the id of a token, which must be short and printable."""
    if not is_name(text):
        raise ValueError(f"{text!r} is not 1 to {MAX_TEXT} printable characters")
    return text


def _number(value: float) -> float:
    if math.isnan(value):
        # NaN passes the check of a range.
        raise ValueError("nan is not a number of seconds")
    return value


def _whole(high: int) -> click.IntRange:
    return click.IntRange(0, high)


def rights_options(command: Command) -> Command:
    """Adds the options of user, id and rights to a command."""
    options = [
        click.option(
            "--user",
            callback=checked(printable_name),
            help="User that it is issued to; logs show it.",
        ),
        click.option(
            "--id",
            callback=checked(printable_name),
            help="Id by which it can be revoked; random when not given.",
        ),
        click.option(
            "--symbols",
            callback=checked(_pattern),
            multiple=True,
            metavar="PATTERN",
            help="Symbols that are allowed, such as '*.SH', or forbidden, such as '!BTC/*'."
            " May be given more than once; all symbols when not given.",
        ),
        click.option(
            "--max-symbols", type=_whole(MAX_SYMBOLS), help="Most symbols on one connection."
        ),
        click.option(
            "--min-interval",
            type=_whole(MAX_INTERVAL_MS),
            help="Least milliseconds between two updates of a symbol.",
        ),
        click.option(
            "--delay",
            type=click.FloatRange(0, MAX_DELAY_S),
            callback=checked(_number),
            help="Seconds by which quotes are delayed.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def claims_of(given: dict[str, Any]) -> dict[str, Any]:
    """The claims about rights that were given."""
    claims = {name: given[name] for name in ("max_symbols", "min_interval", "delay")}
    claims["symbols"] = list(given["symbols"]) or None
    return {name: value for name, value in claims.items() if value is not None}
