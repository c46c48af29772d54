"""The options: what each takes, its bounds, and how each refusal reads."""

from __future__ import annotations

import pytest

from pushservice.options import OPTIONS, node_name, some_text, whole_number
from pushservice.options import seconds as seconds_between
from pushservice.redisurl import redis_address

BY_NAME = {option.name: option for option in OPTIONS}


def refusal(coerce, text: str) -> str:
    """The words in which `coerce` must refuse the text."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        coerce(text)
    return str(caught.value)


# -- the kinds of values ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["5", "6", "7", "007"])
def test_a_whole_number_within_its_bounds_is_taken(text):
    number = whole_number(5, 7)(text)
    assert number == int(text)
    assert type(number) is int


@pytest.mark.parametrize(
    "text",
    ["4", "8", "-5", "+5", "5.0", "five", "", " 5", "5\n", "5 000", "5_0", "1e9", "0x5", "٥", "５"],
)
def test_a_whole_number_outside_of_its_bounds_is_refused_with_the_bounds(text):
    assert refusal(whole_number(5, 7), text) == f"{text!r} is no whole number from 5 to 7"


def test_endless_digits_are_refused_before_they_are_read():
    # Past 4300 digits Python's own refusal would be another one.
    digits = "6" * 5000
    assert refusal(whole_number(5, 7), digits) == f"{digits!r} is no whole number from 5 to 7"
    assert "is no number of seconds" in refusal(seconds_between(5, 7), digits)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.5", 0.5), ("1", 1.0), ("1.25", 1.25), ("07.125", 7.125), ("60", 60.0), ("60.000", 60.0)],
)
def test_a_length_of_time_within_its_bounds_is_taken(text, seconds):
    taken = seconds_between(0.5, 60)(text)
    assert taken == seconds
    assert type(taken) is float


@pytest.mark.parametrize(
    "text",
    [
        *("1e3", "1e0", "-1", "+1", "", " 1", "1 ", "1\n", "1.2345", "1.", ".5", ".", "1,5", "1_0"),
        *("nan", "inf", "-inf", "NaN", "0x1", "one", "1s", "1:00", "١", "１", "1.٥", "²"),
        *("0.499", "60.001", "61", "1000000000", "0"),
    ],
)
def test_a_length_of_time_that_is_none_or_out_of_bounds_is_refused_with_the_bounds(text):
    words = f"{text!r} is no number of seconds from 0.5 to 60"
    assert refusal(seconds_between(0.5, 60), text) == words


@pytest.mark.parametrize("text", ["-1", "-0.001", "", "nan"])
def test_where_no_time_at_all_is_allowed_less_than_that_is_not(text):
    coerce = seconds_between(0, 5)
    assert coerce("0") == coerce("0.000") == 0
    assert refusal(coerce, text) == f"{text!r} is no number of seconds from 0 to 5"


# -- the options -----------------------------------------------------------------------------------

NUMBERS = {
    "port": (1, 65535),
    "max-connections": (1, 10_000_000),
    "max-per-address": (0, 10_000_000),
    "connect-rate": (0, 1_000_000),
    "max-handshakes": (16, 1_000_000),
    "max-symbols": (1, 1_000_000),
    "max-total-symbols": (1, 100_000_000),
    "max-message": (128, 16_777_216),
    "message-rate": (0, 1_000_000),
    "byte-rate": (0, 1_000_000_000),
    "raw-budget": (1024, 1_073_741_824),
    "send-buffer": (0, 67_108_864),
    "heartbeat": (100, 600_000),
    "demo-rate": (1, 100_000),
}
LENGTHS = {
    "tls-timeout": ("0.1", "600"),
    "upgrade-timeout": ("0.1", "600"),
    "close-timeout": ("0.1", "600"),
    "stall-timeout": ("0.1", "86400"),
    "ping-interval": ("0", "3600"),
    "ping-timeout": ("0.1", "3600"),
    "stale-after": ("0.1", "86400"),
    "feed-stale-after": ("0.1", "86400"),
}
TEXTS = {
    *("interface", "listen", "cert", "key", "certs", "channels", "symbol-regex", "symbol-field"),
    *("redis-ca", "redis-cert", "redis-key", "snapshot-hash", "registry-prefix"),
}
ADDRESSES = {"redis", "registry"}
FLAGS = {"plain", "no-page", "no-registry", "demo"}


def test_every_option_is_a_number_a_length_of_time_a_text_a_flag_an_address_a_word_or_a_name():
    kinds = [*NUMBERS, *LENGTHS, *TEXTS, *FLAGS, *ADDRESSES, "subscribe", "node"]
    assert sorted(kinds) == sorted(option.name for option in OPTIONS)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_of_the_options_have_these_bounds(name):
    low, high = NUMBERS[name]
    coerce = BY_NAME[name].coerce
    assert (coerce(str(low)), coerce(str(high))) == (low, high)
    for text in (str(low - 1), str(high + 1)):
        assert refusal(coerce, text) == f"{text!r} is no whole number from {low} to {high}"


@pytest.mark.parametrize("name", LENGTHS)
def test_the_lengths_of_time_of_the_options_have_these_bounds(name):
    low, high = LENGTHS[name]
    coerce = BY_NAME[name].coerce
    assert (coerce(low), coerce(high)) == (float(low), float(high))
    for text in ("0.099" if float(low) else "-0.001", f"{high}.001"):
        assert refusal(coerce, text) == f"{text!r} is no number of seconds from {low} to {high}"


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_text_is_taken_as_it_is_and_an_empty_one_refused(name):
    coerce = BY_NAME[name].coerce
    assert coerce is some_text
    assert coerce(" a=b ") == " a=b "
    assert refusal(coerce, "") == "the value is empty"


@pytest.mark.parametrize("name", sorted(ADDRESSES))
def test_a_redis_is_read_as_an_address(name):
    assert BY_NAME[name].coerce is redis_address


def test_one_listens_to_all_or_on_demand_and_to_nothing_else():
    coerce = BY_NAME["subscribe"].coerce
    assert [coerce(word) for word in ("all", "demand")] == ["all", "demand"]
    for word in ("", "All", "some", "all "):
        assert refusal(coerce, word) == f"{word!r} is none of: all, demand"


@pytest.mark.parametrize("name", ["n", "push-1", "push_1.example", "0", "x" * 64])
def test_a_name_that_fits_into_a_key_is_taken_as_it_is(name):
    assert BY_NAME["node"].coerce is node_name
    assert node_name(name) == name


@pytest.mark.parametrize("name", ["", ".", ".n", "n.", "a b", "a:b", "ü", "x" * 65, "n\n", "a/b"])
def test_a_name_that_does_not_is_refused_with_what_would(name):
    assert refusal(node_name, name).startswith(f"{name!r} is no name: it has letters, digits, -")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_default_is_a_value_that_the_option_takes_and_numbers_have_units(option):
    if option.default is not None:
        option.coerce(option.default)
    counts = option.name in LENGTHS or (option.name in NUMBERS and option.name != "port")
    assert (option.unit is not None) is counts
    assert option.flag is (option.name in FLAGS)
