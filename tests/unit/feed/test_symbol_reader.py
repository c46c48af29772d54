"""The symbol of a message: patterns, regular expressions, fields, and refused options."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from pushservice.feed import symbol_reader
from pushservice.feed.symbol_reader import IGNORED, SymbolReader, single_star

# -- patterns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "channel", "symbol"),
    [
        ("quote.*", b"quote.AAPL", "AAPL"),
        ("quote.*", b"quote.600519.SH", "600519.SH"),
        ("*", b"AAPL", "AAPL"),
        ("*.last", b"AAPL.last", "AAPL"),
        ("a.*.z", b"a.b.z", "b"),
        ("a.*.z", b"a..z.z", ".z"),
        ("q?.*", b"q7.AAPL", "AAPL"),
        ("q[0-9].*", b"q7.AAPL", "AAPL"),
        ("q[^0-9].*", b"qx.AAPL", "AAPL"),
        ("q[.|&~].*", b"q|.AAPL", "AAPL"),
        (r"q\*.*", b"q*.AAPL", "AAPL"),
        (r"q\[.*", b"q[.AAPL", "AAPL"),
        ("q+(x).*", b"q+(x).AAPL", "AAPL"),
        ("行情.*", "行情.贵州茅台".encode(), "贵州茅台"),
    ],
)
def test_the_symbol_is_what_the_star_matched(pattern, channel, symbol):
    assert SymbolReader([pattern]).read(pattern.encode(), channel, b"{}") == symbol


@pytest.mark.parametrize(
    ("name", "channel"),
    [
        ("empty", b"quote."),
        ("white space", b"quote.A B"),
        ("a line end", b"quote.A\nB"),
        ("a forbidden character", b"quote.A*"),
        ("too long", b"quote." + b"A" * 65),
        ("not UTF-8", b"quote.\xff"),
        ("not of the pattern", b"other.AAPL"),
    ],
)
def test_a_channel_without_a_well_formed_symbol_has_none(name, channel):
    assert SymbolReader(["quote.*"]).read(b"quote.*", channel, b"{}") is None


def test_an_unknown_pattern_has_no_symbol():
    assert SymbolReader(["quote.*"]).read(b"q*", b"quote.AAPL", b"{}") is None


def test_the_longest_symbol_is_taken():
    symbol = "é" * 32
    assert SymbolReader(["*"]).read(b"*", symbol.encode(), b"") == symbol


# -- what is refused at construction ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), ["at least one channel pattern", "quote.*"]),
        ((["quote.AAPL"],), ["'quote.AAPL' has 0 *", "--symbol-regex or --symbol-field"]),
        ((["a.*", "b.*.*"],), ["'b.*.*' has 2 *", "use one *"]),
        (([r"a.\*"],), ["has 0 *"]),
        ((["a.[*]"],), ["has 0 *"]),
        ((["a.[bc*"],), ["'a.[bc*'", "no ]", "write \\["]),
        ((["*"], "a", "b"), ["--symbol-regex and --symbol-field exclude each other"]),
        ((["*"], "(?P<symbol>"), ["'(?P<symbol>' is no regular expression: missing )"]),
        ((["*"], "(?P<name>.+)"), ["'(?P<name>.+)' has no group named symbol", "(?P<symbol>.+)"]),
        ((["*"], None, ""), ["--symbol-field needs the name of a field"]),
    ],
)
def test_options_that_do_not_determine_the_symbol_are_refused(arguments, words):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the words follow
        SymbolReader(*arguments)
    for word in words:
        assert word in str(refusal.value)


def test_a_reversed_range_is_swapped_as_redis_does():
    assert SymbolReader(["a[z-x]*"]).read(b"a[z-x]*", b"ayAAPL", b"") == "AAPL"


def test_with_a_regex_or_a_field_a_pattern_may_have_any_number_of_stars():
    SymbolReader(["a", "b.*.*"], regex="(?P<symbol>.+)")
    SymbolReader(["a", "b.*.*"], field="s")


# -- the regular expression and the field ----------------------------------------------------------


def test_a_regular_expression_finds_the_symbol_anywhere_in_the_channel():
    reader = SymbolReader(["md:*"], regex=r"/(?P<symbol>[A-Z.]+)$|(?P<other>x)")
    assert reader.read(b"md:*", b"md:SSE/level1/BRK.B", b"") == "BRK.B"
    assert reader.read(b"md:*", b"md:SSE/level1/brk", b"") is None
    assert reader.read(b"md:*", b"md:x", b"") is None, "the other branch sets no symbol"


def test_a_regular_expression_that_finds_a_malformed_symbol_gives_none():
    reader = SymbolReader(["*"], regex="^(?P<symbol>.*)$")
    assert reader.read(b"*", b"A B", b"") is None


@pytest.mark.parametrize(
    ("payload", "symbol"),
    [
        ({"s-1": "AAPL", "last": 1}, "AAPL"),
        ({"last": [{"s-1": "inner"}], "s-1": "贵州茅台"}, "贵州茅台"),
        ({"s": "AAPL"}, None),
        ({"s-1": 7}, None),
        ({"s-1": None}, None),
        ({"s-1": "A B"}, None),
        ({"s-1": ""}, None),
        (["s-1"], None),
        (7, None),
    ],
)
def test_the_symbol_is_taken_from_the_field_of_the_payload(payload, symbol):
    reader = SymbolReader(["all"], field="s-1")
    assert reader.read(b"all", b"all", json.dumps(payload).encode()) == symbol


@pytest.mark.parametrize(
    "payload", [b"", b"AAPL", b'{"s":', b'{"s":"\xff"}', b'{"s":"A"', b"[" * 100_000, b'\xff{"s":1']
)
def test_a_payload_that_is_no_json_has_no_symbol(payload):
    assert SymbolReader(["all"], field="s").read(b"all", b"all", payload) is None


def test_the_field_is_read_anew_from_each_message_of_a_channel():
    reader = SymbolReader(["all"], field="s")
    read = [reader.read(b"all", b"all", b'{"s":"%b"}' % s) for s in (b"A", b"B", b"A")]
    assert read == ["A", "B", "A"]


# -- overlapping patterns --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ways", [{}, {"regex": r"(?P<symbol>\w+)$"}, {"field": "s"}], ids=["star", "regex", "field"]
)
def test_a_message_that_two_patterns_match_counts_once(ways):
    reader = SymbolReader(["quote.*", "*.AAPL", "quote.A*"], **ways)
    payload = b'{"s":"AAPL"}'
    read = [reader.read(p, b"quote.AAPL", payload) for p in (b"*.AAPL", b"quote.*", b"quote.A*")]
    assert read == [IGNORED, "AAPL", IGNORED]
    assert reader.read(b"*.AAPL", b"trade.AAPL", payload) != IGNORED


def test_a_pattern_given_twice_counts_once():
    # Redis keeps one subscription of it and sends each message once.
    assert SymbolReader(["a.*", "a.*"]).read(b"a.*", b"a.X", b"") == "X"


def test_a_message_that_two_patterns_match_counts_once_on_a_channel_that_is_not_utf_8():
    reader = SymbolReader(["*", "q*"], field="s")
    payload = b'{"s":"AAPL"}'
    assert [reader.read(p, b"q\xff", payload) for p in (b"*", b"q*")] == ["AAPL", IGNORED]


# -- memory ----------------------------------------------------------------------------------------


def test_a_channel_is_decided_once():
    reader = SymbolReader(["quote.*"])
    first = reader.read(b"quote.*", b"quote.AAPL", b"1")
    assert reader.read(b"quote.*", b"quote.AAPL", b"2") is first


def test_the_cache_is_bounded_and_clearing_it_changes_no_answer(monkeypatch):
    monkeypatch.setattr(symbol_reader, "MAX_CACHED", 1000)
    reader = SymbolReader(["quote.*", "*.last"])

    def read(count: int) -> None:
        for at in range(count):
            symbol = f"S{at}"
            assert reader.read(b"quote.*", f"quote.{symbol}".encode(), b"") == symbol
        assert reader.read(b"*.last", b"quote.A.last", b"") is IGNORED
        assert reader.read(b"*.last", b"A.last", b"") == "A"

    read(1000)
    tracemalloc.start()
    read(20_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 1_000_000, "a thousand channels take a quarter of this, 20,000 five times it"


def test_the_cache_holds_the_channels_of_a_real_market():
    assert 50_000 <= symbol_reader.MAX_CACHED <= 200_000


# -- the demonstration's pattern -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("quote.*", ("quote.", "")),
        ("*", ("", "")),
        ("a.*.z", ("a.", ".z")),
        ("quote", None),
        ("a.*.*", None),
        ("a?.*", None),
        ("a[b].*", None),
        ("a].*", None),
        (r"a\*", None),
        (r"a\.*", None),
    ],
)
def test_a_pattern_has_parts_only_if_one_star_is_its_only_wildcard(pattern, parts):
    assert single_star(pattern) == parts


@pytest.mark.parametrize("field", [None, "symbol"])
def test_an_ignored_channel_brings_no_quotes_whichever_pattern_matches(field):
    reader = SymbolReader(["*"], None, field, ["quotepush:demand"])
    payload = b'{"symbol":"A"}'
    assert reader.read(b"*", b"quotepush:demand", payload) is IGNORED
    assert reader.read(b"*", b"A", payload) == "A"
