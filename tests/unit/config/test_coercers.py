"""The coercers: what each takes, its bounds, and how each refusal reads."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from pushservice.config.coercers import (
    admin,
    network,
    node_name,
    nonempty_text,
    one_of,
    toml_types_of,
    whole_number,
    workers,
)
from pushservice.config.coercers import seconds as seconds_between


def refusal(coerce, text: str) -> str:
    """The words in which `coerce` must refuse the text."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        coerce(text)
    return str(caught.value)


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
    assert refusal(whole_number(5, 7), text) == f"{text!r} is not a whole number from 5 to 7"


def test_endless_digits_are_refused_before_they_are_read():
    # Past 4300 digits Python's own refusal would be another one.
    digits = "6" * 5000
    assert refusal(whole_number(5, 7), digits) == f"{digits!r} is not a whole number from 5 to 7"
    assert "is not a number of seconds" in refusal(seconds_between(5, 7), digits)


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
def test_a_bad_duration_is_refused_with_the_bounds(text):
    words = f"{text!r} is not a number of seconds from 0.5 to 60"
    assert refusal(seconds_between(0.5, 60), text) == words


@pytest.mark.parametrize("text", ["-1", "-0.001", "", "nan"])
def test_where_no_time_at_all_is_allowed_less_than_that_is_not(text):
    coerce = seconds_between(0, 5)
    assert coerce("0") == coerce("0.000") == 0
    assert refusal(coerce, text) == f"{text!r} is not a number of seconds from 0 to 5"


@pytest.mark.parametrize("name", ["n", "push-1", "push_1.example", "0", "x" * 64])
def test_a_name_that_fits_into_a_key_is_taken_as_it_is(name):
    assert node_name(name) == name


@pytest.mark.parametrize("name", ["", ".", ".n", "n.", "a b", "a:b", "ü", "x" * 65, "n\n", "a/b"])
def test_a_name_that_does_not_is_refused_with_what_would(name):
    assert refusal(node_name, name).startswith(f"{name!r} is not a name: use up to 64 letters, ")


def test_a_text_is_taken_as_it_is_and_an_empty_one_refused():
    assert nonempty_text(" a=b ") == " a=b "
    assert refusal(nonempty_text, "") == "the value is empty"


def test_one_of_a_few_words_is_taken_and_no_other():
    coerce = one_of("all", "demand")
    assert [coerce(word) for word in ("all", "demand")] == ["all", "demand"]
    for word in ("", "All", "some", "all "):
        assert refusal(coerce, word) == f"{word!r} is none of: all, demand"


def test_workers_are_a_number_or_auto():
    assert [workers(text) for text in ("0", "1", "256", "auto")] == [0, 1, 256, "auto"]
    for text in ("257", "-1", "Auto", "", "2.0"):
        words = f"{text!r} is not a whole number from 0 to 256, or auto"
        assert refusal(workers, text) == words


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.0/8", "::1", "fd00::/8"])
def test_a_network_is_an_address_or_several(text):
    assert network(text) == ip_network(text)


def test_the_network_of_unix_sockets_has_a_name():
    assert network("unix") == "unix"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "host", "", "10.0.0", "Unix", "10.0.0.0/33"])
def test_what_is_no_network_is_refused_with_an_example(text):
    words = f"{text!r} is not an address, a network such as 10.0.0.0/8, or unix ("
    assert refusal(network, text).startswith(words)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("off", None),
        ("unix:/run/admin.sock", "/run/admin.sock"),
        ("127.0.0.1:8009", ("127.0.0.1", 8009)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_operators_ask_at_an_address_a_socket_or_nowhere(text, where):
    assert admin(text) == where


@pytest.mark.parametrize(
    "text",
    [
        *("", "8009", ":8009", "host", "host:", "host:0", "host:65536", "host:x", "::1:80"),
        *("[::1]", "[]:80", "[::1:80", "::1]:80", "[[::1]]:80", "unix:admin.sock", "Off"),
    ],
)
def test_a_bad_admin_address_is_refused_with_all_forms(text):
    words = f"{text!r} is none of: HOST:PORT, [IPV6]:PORT, unix:/path, off"
    assert refusal(admin, text) == words


def test_numbers_are_written_as_numbers_and_all_else_as_strings():
    assert toml_types_of(whole_number(1, 2)) == (int,)
    assert toml_types_of(seconds_between(1, 2)) == (int, float)
    assert toml_types_of(workers) == (int, str)
    assert [toml_types_of(each) for each in (nonempty_text, one_of("a"), admin, network)] == [
        (str,)
    ] * 4
