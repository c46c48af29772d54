"""What a client may be told: wrong options are named, with what would be right, and no secrets."""

from __future__ import annotations

import pytest

from pushservice.client.options import Options


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8008", "begins with neither"),
        ("", "begins with neither"),
        ("https://localhost/", "wss:// in place of https://"),
        ("http://localhost/", "ws:// in place of http://"),
        ("wss://", "begins with neither"),
        ("wss://:8008/", "no host"),
        ("wss://host:99999/", "out of range"),
        ("wss://host:0/", "port 0"),
        ("wss://ann:s3cret@host/", "token"),
        ("wss://host/#part", "after #"),
        ("wss://ho st/", "white space"),
        ("wss://[::1/", "IPv6"),
        (None, "no text"),
    ],
)
def test_an_address_that_is_none_is_refused_with_the_right_form_and_without_itself(url, words):
    with pytest.raises(ValueError, match="wss://HOST:PORT/") as refused:
        Options(url)
    assert words in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "fast"}, '"auto" or "raw"'),
        ({"interval": 250}, "0 to 60 seconds"),
        ({"interval": -1}, "0 to 60 seconds"),
        ({"interval": 1, "mode": "raw"}, "raw brings every update"),
        ({"backoff": -1}, "backoff is a number of seconds"),
        ({"connect_timeout": float("nan")}, "connect_timeout is a number of seconds"),
        ({"token": ""}, "token is empty"),
        ({"token": 7}, "token is a text"),
        ({"ca": "x.pem", "insecure": True}, "give one of them"),
    ],
)
def test_other_options_are_checked_too(settings, words):
    with pytest.raises(ValueError, match=words):
        Options("wss://localhost/", **settings)


def test_trust_is_for_addresses_with_tls():
    for settings in ({"ca": "x.pem"}, {"insecure": True}):
        with pytest.raises(ValueError, match="use wss://"):
            Options("ws://localhost/", **settings)


@pytest.mark.parametrize(
    ("url", "host", "port", "place"),
    [
        ("wss://localhost:8008/", "localhost", 8008, "wss://localhost:8008/"),
        ("ws://localhost", "localhost", 80, "ws://localhost:80/"),
        ("wss://[::1]/path?token=s3cret", "::1", 443, "wss://[::1]:443/"),
    ],
)
def test_an_address_has_a_host_a_port_and_a_form_for_people(url, host, port, place):
    options = Options(url)
    assert (options.host, options.port, options.place) == (host, port, place)
    assert options.secure == url.startswith("wss")
