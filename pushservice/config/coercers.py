"""Coercers: each takes the text of an option's value and returns the value, or raises ValueError.

The text of each ValueError names what is wrong and what would be right. Must not know: which option
has which coercer, or where texts come from. Own code: a library would replace ten lines each,
and word errors its own way; here they name the bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, TypeAlias

Coercer: TypeAlias = Callable[[str], Any]

MAX_DIGITS: Final = 15


@dataclass(frozen=True, slots=True)
class Numeric:
    """A coercer whose values are numbers in TOML, of the types in `toml_types`."""

    read: Coercer
    toml_types: tuple[type, ...]

    def __call__(self, text: str) -> Any:
        return self.read(text)


def toml_types_of(coerce: Coercer) -> tuple[type, ...]:
    """The TOML types that a value may have in the configuration file: str, int or float."""
    return coerce.toml_types if isinstance(coerce, Numeric) else (str,)


def whole_number(low: int, high: int) -> Numeric:
    """A coercer for whole numbers from `low` to `high`."""

    def coerce(text: str) -> int:
        plain = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
        number = int(text) if plain else low - 1
        if not low <= number <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
        return number

    return Numeric(coerce, (int,))


def nonempty_text(text: str) -> str:
    """A coercer for text that may not be empty."""
    if not text:
        raise ValueError("the value is empty")
    return text


def seconds(low: float, high: float) -> Numeric:
    """A coercer for durations from `low` to `high`, with up to three decimals."""

    def coerce(text: str) -> float:
        number = float(text) if _SECONDS.fullmatch(text) else low - 1
        if not low <= number <= high:
            raise ValueError(f"{text!r} is not a number of seconds from {low:.9g} to {high:.9g}")
        return number

    return Numeric(coerce, (int, float))


def one_of(*words: str) -> Coercer:
    """A coercer for one of a few words."""

    def coerce(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of: {', '.join(words)}")
        return text

    return coerce


def node_name(text: str) -> str:
    """A coercer for a name that is part of the registry's keys."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a name: use up to 64 letters, digits, - and _, and dots inside"
        )
    return text


def _workers(text: str) -> int | str:
    if text == AUTO:
        return AUTO
    try:
        number: int = _count(text)
    except ValueError as error:
        raise ValueError(f"{error}, or {AUTO}") from None
    return number


def network(text: str) -> Network | str:
    """A coercer for an address or a network of them, or `unix` for peers on Unix sockets."""
    if text == UNIX:
        return UNIX
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not an address, a network such as 10.0.0.0/8, or {UNIX} ({error})"
        ) from None


def admin(text: str) -> Admin | None:
    """A coercer for the admin port's address: HOST:PORT, unix:/path, or `off`, which is None."""
    if text == "off":
        return None
    if text.startswith("unix:/"):
        return text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    bare = host.strip("[]")
    if host in (bare, f"[{bare}]") and bare and (":" not in bare or "[" in host):
        try:
            return bare, _port(port)
        except ValueError:
            pass
    raise ValueError(f"{text!r} is none of: HOST:PORT, [IPV6]:PORT, unix:/path, off")


_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}(?<!\.)", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")

AUTO: Final = "auto"
UNIX: Final = "unix"
Network: TypeAlias = IPv4Network | IPv6Network
#: a host and a port, or the path of a Unix socket
Admin: TypeAlias = tuple[str, int] | str
_count: Final = whole_number(0, 256)
#: a coercer for how many worker processes: a whole number, or `auto` for one a core
workers: Final = Numeric(_workers, (int, str))
_port: Final = whole_number(1, 65535)
