"""Where a handshake carries a token."""

from __future__ import annotations

import pytest

from pushservice.protocol.credentials import BadCredentials, Offer, offer

JSON = "quotepush.v1.json"


def test_a_handshake_without_a_token_offers_its_subprotocols():
    assert offer({}, [JSON, "other"], {}, in_url=False) == Offer((JSON, "other"), None)


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER   abc ", " Bearer abc"])
def test_a_token_comes_in_the_authorization_header(header):
    assert offer({"authorization": header}, [JSON], {}, in_url=False) == Offer((JSON,), "abc")


def test_a_token_comes_as_a_subprotocol_which_is_not_among_those_to_choose_from():
    assert offer({}, [JSON, "quotepush.auth.a.b.c"], {}, in_url=False) == Offer((JSON,), "a.b.c")
    assert offer({}, ["quotepush.auth.t"], {}, in_url=False) == Offer((), "t")


def test_a_token_comes_in_the_url_only_where_that_is_allowed():
    assert offer({}, [], {"token": ["abc"]}, in_url=True) == Offer((), "abc")
    with pytest.raises(BadCredentials, match="does not belong into the URL"):
        offer({}, [], {"token": ["abc"]}, in_url=False)


@pytest.mark.parametrize("header", ["", "abc", "Basic dTpw", "Bearer", "Bearer  ", "Bearerabc"])
def test_another_authorization_is_refused_with_what_would_be_right(header):
    with pytest.raises(BadCredentials, match="Bearer TOKEN"):
        offer({"authorization": header}, [], {}, in_url=False)


@pytest.mark.parametrize(
    ("headers", "subprotocols", "parameters"),
    [
        ({"authorization": "Bearer a"}, ["quotepush.auth.b"], {}),
        ({}, ["quotepush.auth.a", "quotepush.auth.a"], {}),
        ({}, ["quotepush.auth.a"], {"token": ["b"]}),
        ({}, [], {"token": ["a", "b"]}),
    ],
)
def test_several_tokens_are_refused(headers, subprotocols, parameters):
    with pytest.raises(BadCredentials, match="several were sent"):
        offer(headers, subprotocols, parameters, in_url=True)


def test_an_empty_token_is_refused():
    with pytest.raises(BadCredentials, match="the token is empty"):
        offer({}, ["quotepush.auth."], {}, in_url=False)
    with pytest.raises(BadCredentials, match="the token is empty"):
        offer({}, [], {"token": [""]}, in_url=True)


def test_a_refusal_holds_nothing_of_the_token():
    for headers, subprotocols, parameters in (
        ({"authorization": "Basic SECRET"}, [], {}),
        ({}, [], {"token": ["SECRET"]}),
        ({"authorization": "Bearer SECRET"}, ["quotepush.auth.SECRET"], {}),
    ):
        with pytest.raises(BadCredentials) as refusal:
            offer(headers, subprotocols, parameters, in_url=False)
        assert "SECRET" not in str(refusal.value)
