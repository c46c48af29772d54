"""Which pages may connect: exact origins after parsing, the daemon's own by default."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushservice.auth.origins import ANY, Origin, Origins, allowed_origin, parsed


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://example.org", Origin("https", "example.org", 443)),
        ("https://example.org:443", Origin("https", "example.org", 443)),
        ("http://EXAMPLE.org:8080", Origin("http", "example.org", 8080)),
        ("https://[::1]:8008", Origin("https", "::1", 8008)),
        ("chrome-extension://abcdef", Origin("chrome-extension", "abcdef", None)),
    ],
)
def test_an_origin_is_a_scheme_a_host_and_a_port(text, origin):
    assert parsed(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "example.org", "https://", "https://a/", "https://a/b", "https://a?b"),
        *(
            "https://a#",
            "https://a?",
            "https://u@a",
            "https://a:",
            "https://a:99999",
            "https://a:x",
        ),
        *(
            "https://a b",
            "https://a\n",
            "https://\u00e9.org",
            "https://[::1",
            "https://a[::1]",
            "https://[::1]a",
            "https://[::1]a:443",
            "https://" + "a" * 1024,
        ),
    ],
)
def test_whatever_else_is_no_origin_and_the_refusal_shows_what_would_be(text):
    with pytest.raises(ValueError, match=r"is no origin, such as https://example\.org"):
        parsed(text)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    with suppress(ValueError):
        assert parsed(text).host
    Origins().fault(text, text)


def test_the_option_takes_origins_and_a_star():
    assert allowed_origin("*") == ANY
    assert allowed_origin("https://a.org") == parsed("https://a.org")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://quotes.example.org", "quotes.example.org"),
        ("https://quotes.example.org", "QUOTES.example.org:443"),
        ("http://quotes.example.org", "quotes.example.org"),
        ("https://localhost:8008", "localhost:8008"),
        ("https://[::1]:8008", "[::1]:8008"),
        (None, "quotes.example.org"),
        (None, None),
    ],
)
def test_by_default_the_daemons_own_pages_and_programs_may_connect(origin, host):
    assert Origins().fault(origin, host) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example.com", "quotes.example.org"),
        ("https://quotes.example.org.evil.com", "quotes.example.org"),
        ("https://quotes.example.org:8443", "quotes.example.org"),
        ("https://localhost:8009", "localhost:8008"),
        ("https://xquotes.example.org", "quotes.example.org"),
        ("https://quotes.example.org", None),
        ("https://quotes.example.org", "quotes.example.org@evil"),
        ("chrome-extension://quotes", "quotes"),
        ("null", "quotes.example.org"),
        ("", "quotes.example.org"),
        ("nonsense", "nonsense"),
    ],
)
def test_by_default_no_other_page_may(origin, host):
    assert Origins().fault(origin, host) is not None


def test_with_a_list_those_on_it_may_and_the_daemons_own_must_be_on_it_too():
    origins = Origins([parsed("https://app.example.org"), parsed("https://b.org:8443")])
    assert origins.fault("https://app.example.org:443", "quotes.example.org") is None
    assert origins.fault("https://b.org:8443", "quotes.example.org") is None
    assert origins.fault("https://b.org", "quotes.example.org") is not None
    assert origins.fault("http://app.example.org", "quotes.example.org") is not None
    assert origins.fault("https://quotes.example.org", "quotes.example.org") is not None
    assert origins.fault("null", "quotes.example.org") is not None
    assert origins.fault(None, "quotes.example.org") is None


def test_a_star_allows_every_page():
    assert Origins([ANY]).fault("https://anything.example", "quotes.example.org") is None
    assert Origins([ANY]).fault("null", "quotes.example.org") is None


def test_where_an_origin_is_required_a_request_without_one_is_refused():
    origins = Origins(required=True)
    assert origins.fault(None, "a") == "an Origin is required here"
    assert origins.fault("https://a", "a") is None
