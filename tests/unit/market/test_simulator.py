"""The simulated market: what it lists, who trades when, and what every quote promises."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections import Counter
from decimal import Decimal
from itertools import pairwise
from statistics import correlation, fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushservice.market.instruments import SMALLEST_PRICE_TICKS, SYMBOLS, Listing
from pushservice.market.simulator import (
    PRICE_LIMIT,
    TURN_EVERY,
    Market,
)

NOW_MS = 1763799999123
PRICE_FIELDS = ("last", "bid", "ask", "open", "high", "low")
FIELDS = ["symbol", "name", "last", "bid", "ask", "volume", "open", "high", "low", "ts"]
LISTED = {listing.symbol: listing for listing in SYMBOLS}

# Few ticks to the price: the hardest case for rounding, and so for reversion to the mean.
PENNY = Listing("PENNY", "Penny", Decimal("4.05"), 2, 100)
STEADY = Listing("STEADY", "Steady", Decimal("84648.36"), 2, 1)
WHOLE = Listing("WHOLE", "No decimals", Decimal(13510), 0, 10)

QUOTE_TEXT = re.compile(
    r'\{"symbol":"(?P<symbol>[^"]+)","name":"[^"]+"'
    r',"last":(?P<last>[0-9.]+),"bid":(?P<bid>[0-9.]+),"ask":(?P<ask>[0-9.]+)'
    r',"volume":(?P<volume>[0-9]+)'
    r',"open":(?P<open>[0-9.]+),"high":(?P<high>[0-9.]+),"low":(?P<low>[0-9.]+)'
    r',"ts":(?P<ts>[0-9]+)\}'
)


def lasts_in_ticks(listing: Listing, count: int, seed: int = 7) -> list[int]:
    """The last prices of a market of one listing, in ticks of its decimals."""
    market = Market(seed, (listing,))
    texts = (market.tick(NOW_MS)[1].decode() for _ in range(count))
    return [int(text.split('"last":', 1)[1].split(",", 1)[0].replace(".", "")) for text in texts]


def check_quote(symbol: str, payload: bytes, now_ms: int) -> dict[str, object]:
    """Assert what every quote of a listed symbol promises; prices come back as Decimal."""
    text = payload.decode("utf-8")
    quote: dict[str, object] = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    listing = LISTED[symbol]
    assert list(quote) == FIELDS
    assert quote["symbol"] == symbol
    assert quote["name"] == listing.name
    assert quote["ts"] == now_ms
    assert quote["open"] == listing.price
    prices = {field: quote[field] for field in PRICE_FIELDS}
    for price in prices.values():
        assert isinstance(price, Decimal)
        # Decimal keeps the digits of the text: 10.50 has the exponent -2, 10.5 has -1.
        assert price.as_tuple().exponent == -listing.decimals
        assert f'":{price:f},' in text
    assert 0 < quote["bid"] < quote["ask"]  # type: ignore[operator]
    assert quote["bid"] <= quote["last"] <= quote["ask"]  # type: ignore[operator]
    assert quote["low"] <= quote["last"] <= quote["high"]  # type: ignore[operator]
    assert quote["low"] <= quote["open"] <= quote["high"]  # type: ignore[operator]
    assert " " not in text.replace(listing.name, "").replace(symbol, "")
    return quote


def test_exactly_200_different_symbols_are_listed() -> None:
    assert len(SYMBOLS) == 200
    assert len(LISTED) == 200


def test_a_listed_symbol_may_be_subscribed_to_as_it_is_written() -> None:
    for symbol in LISTED:
        assert 1 <= len(symbol.encode("utf-8")) <= 64
        assert not set(symbol) & set('*?[]\\"')
        assert not any(c.isspace() or unicodedata.category(c) == "Cc" for c in symbol), symbol


def test_a_listing_has_a_name_and_a_price_with_its_decimals() -> None:
    for listing in SYMBOLS:
        assert listing.name.strip() == listing.name != ""
        assert listing.price.as_tuple().exponent == -listing.decimals
        assert Decimal(listing.price_ticks).scaleb(-listing.decimals) == listing.price
        assert listing.price_ticks >= SMALLEST_PRICE_TICKS
        assert listing.lot >= 1


@pytest.mark.parametrize(
    ("form", "least"),
    [
        (r"6\d{5}\.SH", 30),
        (r"[03]\d{5}\.SZ", 30),
        (r"\d{4}\.HK", 25),
        (r"[A-Z]+(\.[A-Z])?(?<!\.[LT])", 40),
        (r"[A-Z]+/USDT", 20),
        (r"[A-Z]+\.L", 5),
        (r"\d{4}\.T", 5),
        (r"[A-Z]{3}/[A-Z]{3}", 5),
    ],
)
def test_each_exchange_is_listed_in_its_native_form(form: str, least: int) -> None:
    assert sum(re.fullmatch(form, symbol) is not None for symbol in LISTED) >= least


def test_the_front_of_the_list_has_some_of_every_market() -> None:
    fronts = {re.sub(r"^\d+|^[A-Z]+(?=\.)", "", listing.symbol) for listing in SYMBOLS[:8]}
    assert fronts == {".SH", ".HK", "AAPL", "BTC/USDT", ".SZ", "EUR/USD", ".T", ".L"}


def test_a_listing_cannot_be_changed_and_takes_no_other_fields() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PENNY.lot = 1  # type: ignore[misc]
    assert not hasattr(PENNY, "__dict__")


@pytest.mark.parametrize(
    ("price", "decimals", "lot"),
    [
        ("10.505", 2, 100),
        ("0.99", 2, 100),
        ("0", 2, 100),
        ("-5.00", 2, 1),
        ("500", -1, 1),
        ("9.00", 2, 0),
    ],
)
def test_a_listing_that_could_not_trade_is_refused(price: str, decimals: int, lot: int) -> None:
    with pytest.raises(ValueError, match=r"^BAD: "):
        Listing("BAD", "Bad", Decimal(price), decimals, lot)


def test_a_market_without_listings_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Market(1, ())


def test_a_market_that_lists_a_symbol_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        Market(1, (PENNY, STEADY, PENNY))


@given(seed=st.integers(), now_ms=st.integers(0, 2**53))
@settings(max_examples=25, deadline=None)
def test_whatever_the_seed_every_symbol_is_quoted_first_and_every_quote_is_sound(
    seed: int, now_ms: int
) -> None:
    market = Market(seed)
    volumes: dict[str, object] = {}
    for number in range(500):
        symbol, payload = market.tick(now_ms + number)
        volume = check_quote(symbol, payload, now_ms + number)["volume"]
        assert volume > volumes.get(symbol, 0)  # type: ignore[operator]
        assert volume % LISTED[symbol].lot == 0  # type: ignore[operator]
        volumes[symbol] = volume
        if number < len(SYMBOLS):
            assert len(volumes) == number + 1
    assert set(volumes) == set(LISTED)


@given(seed=st.integers())
@settings(max_examples=25, deadline=None)
def test_the_same_seed_gives_the_same_ticks(seed: int) -> None:
    one, other = Market(seed), Market(seed)
    assert [one.tick(n) for n in range(400)] == [other.tick(n) for n in range(400)]


def test_different_seeds_give_different_orders_and_prices() -> None:
    first_rounds = [[market.tick(NOW_MS) for _ in SYMBOLS] for market in (Market(1), Market(2))]
    assert [symbol for symbol, _ in first_rounds[0]] != [symbol for symbol, _ in first_rounds[1]]
    assert sorted(first_rounds[0]) != sorted(first_rounds[1])


def test_without_a_seed_two_markets_differ() -> None:
    one, other = Market(), Market()
    assert [one.tick(NOW_MS) for _ in SYMBOLS] != [other.tick(NOW_MS) for _ in SYMBOLS]


def test_the_first_round_is_shuffled() -> None:
    market = Market(3)
    assert [market.tick(NOW_MS)[0] for _ in SYMBOLS] != [listing.symbol for listing in SYMBOLS]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 199, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_symbol_waits_longer_than_its_turn(count: int, seed: int) -> None:
    market = Market(seed, SYMBOLS[:count])
    longest = TURN_EVERY * count
    seen: dict[str, int] = {}
    for number in range(8 * longest):
        symbol, _ = market.tick(NOW_MS)
        assert number - seen.get(symbol, -1) <= longest
        seen[symbol] = number
    assert len(seen) == count
    assert min(seen.values()) >= 7 * longest


def test_listings_nearer_the_front_trade_more_often() -> None:
    market = Market(4)
    trades = Counter(market.tick(NOW_MS)[0] for _ in range(40_000))
    quarters = [
        sum(trades[listing.symbol] for listing in SYMBOLS[start : start + 50])
        for start in (0, 50, 100, 150)
    ]
    assert quarters == sorted(quarters, reverse=True)
    assert trades[SYMBOLS[0].symbol] > 4 * trades[SYMBOLS[-1].symbol]


def test_the_text_of_a_price_keeps_trailing_zeros() -> None:
    market = Market(5)
    texts = [market.tick(NOW_MS)[1].decode() for _ in range(5_000)]
    assert any(re.search(r'"last":\d+\.\d0,', text) for text in texts)
    moutai = next(text for text in texts if "600519.SH" in text)
    assert '"open":1680.00,' in moutai
    assert '"name":"贵州茅台"' in moutai
    shib = next(text for text in texts if "SHIB/USDT" in text)
    assert '"open":0.00000780,' in shib
    astrazeneca = next(text for text in texts if "AZN.L" in text)
    assert '"open":13510,' in astrazeneca


def test_a_name_and_a_symbol_are_escaped_as_json() -> None:
    awkward = Listing('S%d"\\', 'O"Neil \\ 100%b\n\x01 茅台', Decimal("10.50"), 2, 1)
    symbol, payload = Market(1, (awkward,)).tick(NOW_MS)
    quote = json.loads(payload)
    assert symbol == quote["symbol"] == awkward.symbol
    assert quote["name"] == awkward.name


def test_over_a_long_run_every_price_stays_within_the_limit_and_every_volume_grows() -> None:
    market = Market(6)
    volumes = dict.fromkeys(LISTED, 0)
    bounds = {
        listing.symbol: (
            listing.price_ticks - listing.price_ticks // PRICE_LIMIT,
            listing.price_ticks + listing.price_ticks // PRICE_LIMIT,
        )
        for listing in SYMBOLS
    }
    highs: dict[str, int] = {}
    lows: dict[str, int] = {}
    for _ in range(200_000):
        symbol, payload = market.tick(NOW_MS)
        match = QUOTE_TEXT.fullmatch(payload.decode())
        assert match is not None
        fields = match.groups()
        last, bid, ask, opened, high, low = (
            int(fields[n].replace(".", "")) for n in (1, 2, 3, 5, 6, 7)
        )
        volume = int(fields[4])
        bottom, top = bounds[symbol]
        assert fields[0] == symbol
        assert bottom <= low <= last <= high <= top
        assert 0 < bid <= last <= ask
        assert bid < ask
        assert opened == LISTED[symbol].price_ticks
        # The range is that of the opening and of all trades, and of nothing else.
        assert high == max(highs.get(symbol, opened), last)
        assert low == min(lows.get(symbol, opened), last)
        highs[symbol], lows[symbol] = high, low
        assert volume > volumes[symbol]
        volumes[symbol] = volume
    assert all(volumes.values())
    assert max(volumes.values()) < 2**53


@pytest.mark.parametrize("listing", [PENNY, STEADY, WHOLE], ids=lambda listing: listing.symbol)
def test_a_price_wanders_but_returns_to_where_it_opened(listing: Listing) -> None:
    opened = listing.price_ticks
    lasts = lasts_in_ticks(listing, 100_000)
    assert fmean(lasts) == pytest.approx(opened, rel=0.02)
    assert 0.005 < pstdev(lasts) / opened < 0.04
    limit = opened // PRICE_LIMIT
    assert sum(abs(last - opened) == limit for last in lasts) < len(lasts) / 1000


def test_a_large_move_is_followed_by_large_moves_in_either_direction() -> None:
    moves = [later - earlier for earlier, later in pairwise(lasts_in_ticks(STEADY, 50_000))]
    sizes = [abs(move) for move in moves]
    assert correlation(sizes[:-1], sizes[1:]) > 0.1
    assert abs(correlation(moves[:-1], moves[1:])) < 0.05


def test_a_single_trade_never_moves_a_price_by_more_than_a_few_percent() -> None:
    moves = [later - earlier for earlier, later in pairwise(lasts_in_ticks(STEADY, 50_000))]
    assert max(map(abs, moves)) < STEADY.price_ticks * 0.03
