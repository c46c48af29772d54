"""Identities and their rights: made from claims, and applied to subscriptions.

Must not know: tokens, tickets, where claims come from, how refusals reach a client, or Twisted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol, TypeAlias

from pushservice.protocol.commands import MAX_INTERVAL_MS

#: the greatest number of patterns in one list, and of characters in a pattern, a name or an id
MAX_PATTERNS: Final = 1000
MAX_TEXT: Final = 128
MAX_SYMBOLS: Final = 1_000_000
MAX_DELAY_S: Final = 86_400
#: the last second of the year 9999
MAX_TIME: Final = 253_402_300_799
#: the claim whose object may hold the rights, instead of the top level
NAMESPACE: Final = "quotepush"
#: the names of the claims that give rights
RIGHTS_CLAIMS: Final = ("symbols", "max_symbols", "min_interval", "delay")

Claims: TypeAlias = Mapping[str, Any]


class Refused(Exception):
    """Authentication failed. The text is safe to send to the client, and never holds a token.

    `temporary` says that the server could not check: the same token may be accepted later.
    """

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


# -- rights ---------------------------------------------------------------------------------------


class _Matcher:
    """Compiled patterns: a match takes a few calls of C, and never backtracks.

    `*` is any run of characters. Each part between stars is found as far left as possible; if that
    does not match, no other choice does. So a match takes linear time.
    """

    __slots__ = ("_ends", "_exact", "_others", "_starts")

    def __init__(self, patterns: Iterable[str]) -> None:
        exact, starts, ends = set(), set(), set()
        others: dict[tuple[str, tuple[str, ...], str], None] = {}
        for pattern in patterns:
            first, *rest = pattern.split("*")
            middle = tuple(part for part in rest[:-1] if part)
            if not rest:
                exact.add(first)
            elif not middle and not rest[-1]:
                starts.add(first)
            elif not middle and not first:
                ends.add(rest[-1])
            else:
                others[first, middle, rest[-1]] = None
        self._exact = frozenset(exact)
        self._starts = tuple(sorted(starts))
        self._ends = tuple(sorted(ends))
        self._others = tuple(others)

    def __call__(self, symbol: str) -> bool:
        return (
            symbol in self._exact
            or symbol.startswith(self._starts)
            or symbol.endswith(self._ends)
            or any(_fits(symbol, *other) for other in self._others)
        )


def _fits(symbol: str, first: str, middle: tuple[str, ...], last: str) -> bool:
    at, end = len(first), len(symbol) - len(last)
    if at > end or not symbol.startswith(first) or not symbol.endswith(last):
        return False
    for part in middle:
        at = symbol.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


@lru_cache(maxsize=256)
def _matchers(patterns: tuple[str, ...]) -> tuple[_Matcher | None, _Matcher | None]:
    """What allows (None: all) and what refuses (None: nothing). Equal patterns share them."""
    positive = [pattern for pattern in patterns if not pattern.startswith("!")]
    refusing = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    allowing = _Matcher(positive) if positive or not refusing else None
    return allowing, _Matcher(refusing) if refusing else None


@dataclass(frozen=True, slots=True)
class Rights:
    """What a client may see, and how fast; without arguments: everything.

    `patterns`: None for all symbols. Else a symbol is allowed that matches any positive pattern, or
    any symbol where only refusing ones (`!`) are given, unless it matches a refusing one; no
    pattern at all allows none. `*` is any run of characters, all else is literal. `max_symbols` on
    one connection, None for what the server allows; `min_interval_ms` between two updates of one
    symbol; `delay_s` by which quotes are delayed. Nothing is checked here: see `from_claims`.
    """

    patterns: tuple[str, ...] | None = None
    max_symbols: int | None = None
    min_interval_ms: int = 0
    delay_s: float = 0.0
    _allowing: _Matcher | None = field(init=False, repr=False, compare=False)
    _refusing: _Matcher | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        allowing, refusing = (None, None) if self.patterns is None else _matchers(self.patterns)
        object.__setattr__(self, "_allowing", allowing)
        object.__setattr__(self, "_refusing", refusing)

    def allows(self, symbol: str) -> bool:
        """Whether `symbol` may be seen."""
        if self._refusing is not None and self._refusing(symbol):
            return False
        return self._allowing is None or self._allowing(symbol)

    @classmethod
    def from_claims(cls, claims: Claims) -> Rights:
        """The rights that `claims` give, at their top level or in an object named `quotepush`.

        `symbols`: a list of patterns; `max_symbols`; `min_interval` in milliseconds; `delay` in
        seconds; all are optional. Other claims are ignored, but not within `quotepush`: a misspelt
        one there must not give more rights than was meant. Raises Refused with the name of the
        wrong claim.
        """
        given = {name: claims[name] for name in RIGHTS_CLAIMS if name in claims}
        if NAMESPACE in claims:
            own = claims[NAMESPACE]
            if not isinstance(own, Mapping):
                raise Refused(f"the claim {NAMESPACE} is no object")
            for name in own:
                if name not in RIGHTS_CLAIMS:
                    raise Refused(
                        f"the claim {NAMESPACE} holds what is none of {', '.join(RIGHTS_CLAIMS)}"
                    )
                if name in given:
                    raise Refused(f"the claim {name} is there twice: within {NAMESPACE} too")
            given.update(own)
        return cls(
            patterns=_patterns(given["symbols"]) if "symbols" in given else None,
            max_symbols=_whole(given, "max_symbols", MAX_SYMBOLS),
            min_interval_ms=_whole(given, "min_interval", MAX_INTERVAL_MS) or 0,
            delay_s=_number(given, "delay", MAX_DELAY_S) or 0.0,
        )


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Refused('the claim symbols is no list of patterns, such as ["*.SH"]')
    if len(value) > MAX_PATTERNS:
        raise Refused(f"the claim symbols has {len(value)} patterns; {MAX_PATTERNS} may be")
    for pattern in value:
        if not isinstance(pattern, str) or not 1 <= len(pattern.removeprefix("!")) <= MAX_TEXT:
            raise Refused(
                f"the claim symbols holds what is no pattern: a text of 1 to {MAX_TEXT} characters,"
                " after a ! where it refuses"
            )
    return tuple(dict.fromkeys(value))


def _whole(claims: Claims, name: str, high: int) -> int | None:
    """A whole number from 0 to `high`; None where there is none."""
    if name not in claims:
        return None
    value = claims[name]
    if type(value) is not int or not 0 <= value <= high:
        raise Refused(f"the claim {name} is no whole number from 0 to {high}")
    return value


def _number(claims: Claims, name: str, high: float) -> float | None:
    """A number from 0 to `high`; None where there is none."""
    if name not in claims:
        return None
    value = claims[name]
    if type(value) not in (int, float) or not 0 <= value <= high:
        raise Refused(f"the claim {name} is no number from 0 to {high}")
    return float(value)


# -- verdicts -------------------------------------------------------------------------------------


def decide(rights: Rights, symbol: str, *, raw: bool, interval_ms: int) -> int | str:
    """Decide on one subscription: the interval that applies, in milliseconds, or the reason not.

    A text is the reason for error 409. `raw` means every update at once, so it is refused where the
    rights allow one update in an interval; a delay is no obstacle, since it merges nothing.
    """
    if not rights.allows(symbol):
        return "your token does not cover this symbol"
    if raw and rights.min_interval_ms > 0:
        return (
            f"your token allows one update in {rights.min_interval_ms} ms,"
            " and mode raw brings every one: use mode auto"
        )
    return max(interval_ms, rights.min_interval_ms)


# -- identities -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is, as far as it has proven.

    `user` is what logs show: 1 to 128 printable characters, or None if the token names no user.
    `token_id` is the id by which this one token can be revoked. Times are seconds since the
    epoch, or None.
    """

    user: str | None = None
    token_id: str | None = None
    expires_at: float | None = None
    issued_at: float | None = None
    rights: Rights = field(default_factory=Rights)

    @classmethod
    def from_claims(cls, claims: Claims, *, user: str, token_id: str) -> Identity:
        """The identity in `claims`; `user` and `token_id` are the names of the claims for those.

        `exp` and `iat` are as in RFC 7519, 4.1, for the rest see `Rights.from_claims`. The times
        are not compared with now: see `check_time`. Raises Refused with the name of the wrong
        claim.
        """
        return cls(
            user=_name(claims, user),
            token_id=_name(claims, token_id),
            expires_at=time_of(claims, "exp"),
            issued_at=time_of(claims, "iat"),
            rights=Rights.from_claims(claims),
        )


def is_name(text: object) -> bool:
    """Whether `text` can be a user, or the id of a token: 1 to 128 printable characters."""
    return isinstance(text, str) and 1 <= len(text) <= MAX_TEXT and text.isprintable()


def _name(claims: Claims, name: str) -> str | None:
    if name not in claims:
        return None
    value = claims[name]
    if not is_name(value):
        raise Refused(f"the claim {name} is no text of 1 to {MAX_TEXT} printable characters")
    assert isinstance(value, str), "or else it is no name"
    return value


def time_of(claims: Claims, name: str) -> float | None:
    """A time (RFC 7519, NumericDate) in seconds since the epoch; None where the claim is missing.

    Raises Refused, naming the claim, if its value is no such time.
    """
    if name not in claims:
        return None
    value = claims[name]
    if type(value) not in (int, float) or not 0 <= value <= MAX_TIME:
        raise Refused(f"the claim {name} is no time in seconds since 1970")
    return float(value)


def check_time(
    now: float, leeway: float, *, expires: float | None, begins: Sequence[float | None] = ()
) -> None:
    """Raises Refused unless `now` lies before `expires` and not before any of `begins`.

    All are seconds since the epoch, and None is no bound. Clocks may differ by `leeway` seconds.
    """
    if expires is not None and now >= expires + leeway:
        raise Refused(f"the token expired {math.floor(now - expires)} s ago")
    begin = max((each for each in begins if each is not None), default=None)
    if begin is not None and now < begin - leeway:
        raise Refused(f"the token is not valid for another {math.ceil(begin - now)} s")


Done: TypeAlias = Callable[[Identity | Refused], None]


class Authenticator(Protocol):
    """Verifies tokens."""

    def verify(self, token: str, done: Done) -> None:
        """Call `done` with the identity or the refusal: exactly once, now or later. Never raises.

        An exception of `done` itself is not caught.
        """
        ...


class Everybody:
    """Accepts every token, with all rights."""

    def verify(self, token: str, done: Done) -> None:
        """See Authenticator."""
        done(Identity())
