"""What a client is told: frozen, comparable, exact."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from pushservice.client import Gap, Quote, QuoteError, frames
from pushservice.client.events import Event


def test_prices_are_exact_in_raw_and_decoded_once_in_data():
    quote = Quote("AAPL", 1, 2, b'{"last": 10.50, "big": 12345678901234567890.123}')
    assert quote.data is quote.data
    assert quote.data["last"] == 10.5
    exact = json.loads(quote.raw, parse_float=Decimal)
    assert str(exact["last"]) == "10.50"
    assert exact["big"] == Decimal("12345678901234567890.123")


def test_quotes_are_compared_by_what_they_tell_read_or_not():
    one, other = Quote("A", 1, 2, b"1"), Quote("A", 1, 2, b"1")
    assert one.data == 1
    assert one == other
    assert hash(one) == hash(other)
    assert one != Quote("A", 2, 2, b"1")
    assert one != "A"
    assert "_decoded" not in repr(one)


def test_events_cannot_be_changed():
    for event in (Quote("A", 1, 2, b"1"), Gap("A", "feed")):
        with pytest.raises(AttributeError):
            event.symbol = "B"


def test_every_event_is_exported():
    import pushservice.client

    for kind in Event.__args__:
        assert getattr(pushservice.client, kind.__name__) is kind


def test_an_unknown_name_is_an_attribute_error():
    import pushservice.client

    with pytest.raises(AttributeError, match="no attribute 'Quoot'"):
        pushservice.client.Quoot  # noqa: B018 - the access is what is tested


def test_an_error_shows_its_code():
    assert repr(QuoteError(409, "no", 1.5)) == "QuoteError(409, 'no', 1.5)"
    assert str(QuoteError(409, "no")) == "no"


def test_all_kinds_of_events_of_the_protocol_are_known():
    kinds = {kind.__struct_config__.tag for kind in frames._Event.__subclasses__()}
    assert kinds == frames._KNOWN
    assert {"quote", "snapshot", "welcome", "bye", "gap", "expiring"} <= kinds
