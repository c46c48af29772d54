"""What payloads say, whatever their fields are called, with the digits they were sent with."""

from __future__ import annotations

from decimal import Decimal

import pytest

from pushservice.market.payload_fields import format_number, printable, read_ticker


@pytest.mark.parametrize(
    "payload",
    [
        b'{"last":10.50,"bid":10.49,"ask":10.51,"volume":1200,"open":10.00}',
        b'{"price":10.50,"b":10.49,"a":10.51,"vol":1200,"o":10.00}',
        b'{"p":"10.50","bid":"10.49","ask":"10.51","v":"1200","open":"10.00"}',
        b'{"close":10.50,"bid":10.49,"ask":10.51,"volume":1200,"open":10.00,"last":null}',
    ],
)
def test_fields_are_found_by_any_of_their_names(payload):
    ticker = read_ticker(payload)
    numbers = (ticker.price, ticker.bid, ticker.ask, ticker.volume, ticker.open)
    assert list(map(format_number, numbers)) == ["10.50", "10.49", "10.51", "1200", "10.00"]


def test_a_field_that_is_named_is_the_price_and_no_other():
    payload = b'{"last":10.50,"mid":10.495}'
    assert format_number(read_ticker(payload, "mid").price) == "10.495"
    assert read_ticker(payload, "nothing").price is None


@pytest.mark.parametrize(
    "text",
    ["10.50", "0.80850", "1689", "0.00000010", "-37.63", "91250.10", "12345678901234567890.12"],
)
def test_digits_stay_as_they_were_sent(text):
    assert format_number(read_ticker(b'{"last":%b}' % text.encode()).price) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [("1e3", "1000"), ("1e-7", "0.0000001"), ("1e400", "1E+400"), ("1e-400", "1E-400")],
)
def test_exponents_are_written_out_where_that_is_short(text, seen):
    assert format_number(read_ticker(b'{"last":%b}' % text.encode()).price) == seen


def test_a_bare_number_is_a_price():
    assert read_ticker(b"10.50").price == Decimal("10.50")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'"closed"', "closed"),
        (b"[1,2]", "[1,2]"),
        (b"true", "true"),
        (b"null", "null"),
        (b'{"note":"closed"}', '{"note":"closed"}'),
        (b"no JSON", "no JSON"),
        (b"\xff", "\ufffd"),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_what_has_no_price_is_text(payload, text):
    ticker = read_ticker(payload)
    assert ticker.price is None
    assert ticker.text == text


@pytest.mark.parametrize("value", ['"abc"', "true", "[1]", "{}", '"NaN"', '"Infinity"', '""'])
def test_what_is_no_number_is_no_price(value):
    assert read_ticker(f'{{"last":{value}}}'.encode()).price is None


@pytest.mark.parametrize(
    "sent", ["1763799999123", "1763799999.123", "1763799999123456", '"1763799999123"']
)
def test_times_are_milliseconds_whatever_the_publisher_counts_in(sent):
    assert read_ticker(f'{{"ts":{sent}}}'.encode()).ts == 1_763_799_999_123


@pytest.mark.parametrize("sent", ["5", '"12:00"', "null", "1e300", "-1"])
def test_an_impossible_time_is_none(sent):
    assert read_ticker(f'{{"ts":{sent}}}'.encode()).ts is None


def test_text_does_not_speak_to_the_terminal():
    assert printable("a\x1b[31m贵\u202e\n") == "a\ufffd[31m贵\ufffd\ufffd"
