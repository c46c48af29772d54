"""Listings: those of the simulated market, and those that somebody asks for."""

from __future__ import annotations

import pytest

from pushservice.market.instruments import MAX_LISTINGS, SYMBOLS, parse_listings
from pushservice.market.simulator import Market
from pushservice.protocol.symbols import symbol_fault


def test_a_number_gives_the_busiest_first():
    assert parse_listings("3") == SYMBOLS[:3]
    assert parse_listings("200") == SYMBOLS


def test_more_than_there_are_are_made_up():
    found = parse_listings("1500")
    assert found[:200] == SYMBOLS
    assert [each.symbol for each in (found[200], found[-1])] == ["SIM0201", "SIM1500"]
    assert len({each.symbol for each in found}) == 1500
    assert len(parse_listings(str(MAX_LISTINGS))) == MAX_LISTINGS


def test_symbols_give_their_listings_once_in_order_and_unknown_ones_are_made_up():
    found = parse_listings("MINE, 600519.SH,,MINE")
    assert [each.symbol for each in found] == ["MINE", "600519.SH"]
    assert found[1] in SYMBOLS
    assert b'"last":' in Market(1, found).tick(0)[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "1 to 100000"),
        ("100001", "1 to 100000"),
        ("", "neither a number nor symbols"),
        (",", "neither a number nor symbols"),
        ("A,B C", "'B C': a symbol has no white space"),
    ],
)
def test_anything_else_is_refused_with_the_reason(text, words):
    with pytest.raises(ValueError, match=words):
        parse_listings(text)


def test_every_listing_has_a_symbol_that_can_be_one():
    assert [each for each in SYMBOLS if symbol_fault(each.symbol)] == []
