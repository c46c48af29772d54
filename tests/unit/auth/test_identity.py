"""Rights from claims, what they allow, and who somebody is: whatever is wrong is named."""

from __future__ import annotations

import pytest

from pushservice.auth.identity import (
    MAX_PATTERNS,
    MAX_TIME,
    Everybody,
    Identity,
    Refused,
    Rights,
    check_time,
    decide,
    is_name,
    time_of,
)


def rights(*symbols: str) -> Rights:
    return Rights.from_claims({"symbols": list(symbols)})


# -- symbols ---------------------------------------------------------------------------------------


def test_without_a_claim_all_symbols_are_allowed():
    assert Rights().allows("AAPL")
    assert Rights.from_claims({}).allows("AAPL")


def test_an_empty_list_allows_none():
    assert not rights().allows("AAPL")


@pytest.mark.parametrize(
    ("patterns", "allowed", "refused"),
    [
        (["AAPL"], ["AAPL"], ["aapl", "AAPL2", "AAP", ""]),
        (["*.SH"], ["600519.SH", ".SH"], ["600519.SZ", "600519.SHX", "600519xSH"]),
        (["BTC/*"], ["BTC/USD", "BTC/"], ["BTC", "xBTC/USD"]),
        (["*"], ["A", ""], []),
        (["**"], ["A", ""], []),
        (["A*B"], ["AB", "AxB", "ABB"], ["A", "B", "ABC"]),
        (["AB*BA"], ["ABBA", "ABxBA"], ["ABA"]),
        (["*x*"], ["x", "axb"], ["ab"]),
        (["a*b*c*d"], ["abcd", "a1b2c3d", "abbccd"], ["acbd", "abc", "abdc"]),
        (["*ab*ab*"], ["abab", "xabyabz"], ["ab", "aba"]),
        (["6005?9.SH"], ["6005?9.SH"], ["600519.SH"]),
        (["[AB]"], ["[AB]"], ["A"]),
        (["a.c"], ["a.c"], ["abc"]),
        (["!BTC/*"], ["ETH/USD"], ["BTC/USD"]),
        (["*.SH", "!600*"], ["688981.SH"], ["600519.SH", "AAPL"]),
        (["!600519.SH", "*"], ["AAPL"], ["600519.SH"]),
        (["!!x"], ["x"], ["!x"]),
        (["!*"], [], ["AAPL", ""]),
        (["行*"], ["行情"], ["情行"]),
        (["a\n*"], ["a\nb"], ["a"]),
    ],
)
def test_patterns_allow_and_refuse(patterns, allowed, refused):
    found = rights(*patterns)
    assert [symbol for symbol in allowed if not found.allows(symbol)] == []
    assert [symbol for symbol in refused if found.allows(symbol)] == []


def test_a_hostile_pattern_costs_no_more_steps_than_it_has_parts():
    class Counted(str):
        __slots__ = ()
        searches = 0

        def find(self, *bounds: object) -> int:
            Counted.searches += 1
            return str.find(self, *bounds)

    hostile = "a*" * 62 + "b"
    assert not rights(hostile).allows(Counted("a" * 200 + "b" + "a"))
    assert not rights("x" + hostile + "b").allows(Counted("x" + "a" * 40 + "bb"))
    assert Counted.searches <= 64


def test_equal_patterns_are_taken_apart_once():
    one, other = rights("a*b", "c"), rights("a*b", "c")
    assert one == other
    assert one._allowing is other._allowing


# -- claims ----------------------------------------------------------------------------------------


def test_rights_come_from_the_top_level_or_from_the_object_quotepush_or_both():
    expected = Rights(("A",), 5, 250, 1.5)
    claims = {"symbols": ["A"], "max_symbols": 5, "min_interval": 250, "delay": 1.5}
    assert Rights.from_claims({**claims, "sub": "ann"}) == expected
    assert Rights.from_claims({"quotepush": claims}) == expected
    del claims["symbols"]
    assert Rights.from_claims({"symbols": ["A"], "quotepush": claims}) == expected


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"symbols": "AAPL"}, "symbols"),
        ({"symbols": None}, "symbols"),
        ({"symbols": {"A": 1}}, "symbols"),
        ({"symbols": [1]}, "symbols"),
        ({"symbols": [""]}, "symbols"),
        ({"symbols": ["!"]}, "symbols"),
        ({"symbols": ["a" * 129]}, "symbols"),
        ({"symbols": ["a"] * (MAX_PATTERNS + 1)}, "symbols"),
        ({"max_symbols": -1}, "max_symbols"),
        ({"max_symbols": True}, "max_symbols"),
        ({"max_symbols": 5.0}, "max_symbols"),
        ({"max_symbols": "5"}, "max_symbols"),
        ({"max_symbols": 10**400}, "max_symbols"),
        ({"max_symbols": None}, "max_symbols"),
        ({"min_interval": 60_001}, "min_interval"),
        ({"min_interval": False}, "min_interval"),
        ({"delay": -0.1}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": float("inf")}, "delay"),
        ({"delay": True}, "delay"),
        ({"delay": 86_401}, "delay"),
        ({"quotepush": []}, "quotepush"),
        ({"quotepush": None}, "quotepush"),
        ({"quotepush": {"symbol": ["A"]}}, "quotepush"),
        ({"quotepush": {"delay": "1"}}, "delay"),
        ({"delay": 1, "quotepush": {"delay": 1}}, "delay"),
    ],
)
def test_a_wrong_claim_is_refused_by_its_name(claims, named):
    with pytest.raises(Refused, match=rf"the claim {named} ") as caught:
        Rights.from_claims(claims)
    assert not caught.value.temporary


def test_the_bounds_themselves_are_allowed():
    found = Rights.from_claims(
        {
            "symbols": ["!" + "a" * 128] + ["b"] * (MAX_PATTERNS - 1),
            "max_symbols": 0,
            "min_interval": 60_000,
            "delay": 86_400,
        }
    )
    assert (found.max_symbols, found.min_interval_ms, found.delay_s) == (0, 60_000, 86_400.0)


# -- verdicts --------------------------------------------------------------------------------------


def test_the_interval_that_holds_is_the_longer_one():
    assert decide(Rights(min_interval_ms=250), "A", raw=False, interval_ms=100) == 250
    assert decide(Rights(min_interval_ms=250), "A", raw=False, interval_ms=500) == 500
    assert decide(Rights(), "A", raw=False, interval_ms=0) == 0


def test_a_symbol_that_is_not_covered_is_refused_with_a_reason():
    reason = decide(rights("B"), "A", raw=False, interval_ms=0)
    assert isinstance(reason, str)
    assert "does not cover" in reason


def test_raw_is_refused_for_an_interval_and_not_for_a_delay():
    reason = decide(Rights(min_interval_ms=250), "A", raw=True, interval_ms=0)
    assert isinstance(reason, str)
    assert "250 ms" in reason
    assert decide(Rights(delay_s=900), "A", raw=True, interval_ms=0) == 0


# -- identities ------------------------------------------------------------------------------------


def test_an_identity_has_what_its_claims_say():
    claims = {"sub": "ann", "jti": "7", "exp": 20, "iat": 10.5, "delay": 3, "user": 9}
    assert Identity.from_claims(claims, user="sub", token_id="jti") == Identity(
        "ann", "7", 20.0, 10.5, Rights(delay_s=3.0)
    )
    assert Identity.from_claims({}, user="sub", token_id="jti") == Identity()


@pytest.mark.parametrize("name", ["sub", "jti"])
@pytest.mark.parametrize("value", ["", "a" * 129, "a\nb", "a\x1b[31m", "\u202e", "\ud800", 5, None])
def test_a_name_that_logs_could_not_show_is_refused(name, value):
    with pytest.raises(Refused, match=f"the claim {name} is no text"):
        Identity.from_claims({name: value}, user="sub", token_id="jti")
    assert not is_name(value)


@pytest.mark.parametrize(
    "value", [True, None, "5", -1, MAX_TIME + 1, 10**400, float("nan"), float("inf"), [5]]
)
def test_what_is_no_time_is_refused(value):
    with pytest.raises(Refused, match="the claim exp is no time"):
        time_of({"exp": value}, "exp")


def test_a_time_holds_up_to_its_end_and_from_its_beginning_with_leeway_on_both_sides():
    check_time(99.9, 0, expires=100.0, begins=[None, 99.9])
    check_time(104.9, 5, expires=100.0)
    check_time(95, 5, expires=None, begins=[100.0, 1.0])
    with pytest.raises(Refused, match="expired 5 s ago"):
        check_time(105, 5, expires=100.0)
    with pytest.raises(Refused, match="not valid for another 6 s"):
        check_time(94.9, 5, expires=None, begins=[1.0, 100.0])


def test_everybody_is_let_in_with_all_rights():
    found: list[Identity | Refused] = []
    Everybody().verify("", found.append)
    assert found == [Identity()]
    assert found[0].rights == Rights()
