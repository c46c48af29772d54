"""Which strings are symbols."""

from __future__ import annotations

import pytest

from pushservice.protocol.symbols import symbol_fault


@pytest.mark.parametrize(
    "symbol",
    [
        "A",
        "AAPL",
        "600519.SH",
        "0700.HK",
        "BTC/USDT",
        "EUR-USD",
        "茅台",
        "x" * 64,
        "a,b",
        "{x}",
        "é" * 32,
    ],
)
def test_a_well_formed_symbol_has_no_fault(symbol):
    assert symbol_fault(symbol) is None


@pytest.mark.parametrize(
    ("symbol", "words"),
    [
        ("", "1 to 64 bytes, this one 0"),
        ("x" * 65, "this one 65"),
        ("é" * 33, "this one 66"),
        ("6005 19", "U+0020 at position 4"),
        ("a\tb", "U+0009"),
        ("a\u00a0b", "U+00A0"),
        ("a\u2003b", "U+2003"),
        ("a\x00", "U+0000"),
        ("a\x7f", "U+007F"),
        ("a\x85", "U+0085"),
        *[(f"a{char}", f"U+{ord(char):04X} at position 1") for char in '*?[]\\"'],
        ("\ud800", "valid UTF-8"),
        (5, "a symbol is a string"),
        (None, "a symbol is a string"),
        (["AAPL"], "a symbol is a string"),
    ],
)
def test_a_bad_symbol_is_told_what_is_wrong(symbol, words):
    fault = symbol_fault(symbol)
    assert fault is not None
    assert words in fault
