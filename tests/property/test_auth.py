"""Rights against an independent model, and against arbitrary claims."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from pushservice.auth.identity import Identity, Refused, Rights, decide

SYMBOLS = st.text("ab.*/", max_size=10) | st.text(max_size=10)
PATTERNS = st.lists(
    st.one_of(
        st.text("ab.*/", min_size=1, max_size=8),
        st.text("ab.*/", min_size=1, max_size=8).map("!".__add__),
        SYMBOLS.filter(lambda text: text.removeprefix("!")),
    ),
    max_size=5,
)


def matches(pattern: str, symbol: str) -> bool:
    """By definition: try every run of characters for each star."""
    if not pattern:
        return not symbol
    if pattern[0] == "*":
        return any(matches(pattern[1:], symbol[at:]) for at in range(len(symbol) + 1))
    return symbol[:1] == pattern[0] and matches(pattern[1:], symbol[1:])


def allowed(patterns: list[str], symbol: str) -> bool:
    if any(matches(p[1:], symbol) for p in patterns if p[0] == "!"):
        return False
    positive = [p for p in patterns if p[0] != "!"]
    if not positive:
        return bool(patterns)
    return any(matches(p, symbol) for p in positive)


@given(PATTERNS, SYMBOLS)
def test_patterns_allow_what_the_model_allows(patterns, symbol):
    rights = Rights.from_claims({"symbols": patterns})
    assert rights.allows(symbol) == allowed(patterns, symbol)


@given(
    st.none() | PATTERNS,
    SYMBOLS,
    st.integers(0, 60_000),
    st.floats(0, 100),
    st.booleans(),
    st.integers(0, 60_000),
)
def test_verdicts_are_those_of_the_model(patterns, symbol, least, delay, raw, asked):
    claims = {} if patterns is None else {"symbols": patterns}
    rights = Rights.from_claims(claims | {"min_interval": least, "delay": delay})
    verdict = decide(rights, symbol, raw=raw, interval_ms=asked)
    served = patterns is None or allowed(patterns, symbol)
    if served and not (raw and least):
        assert verdict == sorted([least, asked])[1]
    else:
        assert isinstance(verdict, str)
        assert re.fullmatch(r"\S.*\S", verdict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = ["symbols", "max_symbols", "min_interval", "delay", "sub", "jti", "exp", "iat"]
CLAIMS = st.dictionaries(st.sampled_from(NAMES), JSON)


def identity_or_refusal(claims: dict[str, object]) -> Identity | Refused:
    try:
        return Identity.from_claims(claims, user="sub", token_id="jti")
    except Refused as refusal:
        return refusal


@given(
    CLAIMS, st.none() | JSON | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), JSON)
)
def test_any_claims_give_an_identity_within_bounds_or_are_refused(claims, own):
    if own is not None:
        claims["quotepush"] = own
    found = identity_or_refusal(claims)
    if isinstance(found, Refused):
        assert str(found).startswith("the claim ")
        return
    rights = found.rights
    assert found.user is None or found.user.isprintable()
    assert found.expires_at is None or 0 <= found.expires_at < 1e12
    assert rights.max_symbols is None or 0 <= rights.max_symbols <= 1_000_000
    assert 0 <= rights.min_interval_ms <= 60_000
    assert 0 <= rights.delay_s <= 86_400
    rights.allows("AAPL")
