"""The table of codes: what clients were promised, and what a WebSocket close frame can carry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pushservice.web
from pushservice.protocol.close_codes import CLOSE_REASONS, RECONNECT_AFTER, CloseCode, ErrorCode

#: RFC 6455, 7.4.1: codes that an endpoint must not put into a close frame.
NEVER_SENT = {1004, 1005, 1006, 1015}


def test_the_error_codes_are_those_of_the_protocol():
    assert {code.name: code.value for code in ErrorCode} == {
        "MALFORMED": 400,
        "NOT_AUTHENTICATED": 401,
        "AUTHENTICATION_FAILED": 402,
        "ALREADY_AUTHENTICATED": 403,
        "AUTHENTICATION_TOO_LATE": 404,
        "TOO_MANY_SYMBOLS": 405,
        "NOT_ENTITLED": 409,
        "BAD_SYMBOL": 411,
        "TOO_MANY_MESSAGES": 429,
        "INTERNAL": 500,
    }


def test_the_close_codes_are_those_of_the_protocol():
    assert {code.name: code.value for code in CloseCode} == {
        "NORMAL": 1000,
        "GOING_AWAY": 1001,
        "PROTOCOL_ERROR": 1002,
        "UNSUPPORTED_DATA": 1003,
        "INVALID_PAYLOAD": 1007,
        "MESSAGE_TOO_BIG": 1009,
        "INTERNAL_ERROR": 1011,
        "RESTARTING": 1012,
        "AUTHENTICATION_FAILED": 4001,
        "AUTHENTICATION_TOO_LATE": 4004,
        "TOO_SLOW": 4008,
        "FLOODING": 4029,
    }


@pytest.mark.parametrize("code", CloseCode, ids=lambda code: code.name)
def test_a_close_code_can_be_sent_and_has_a_reason_that_fits_its_frame(code):
    assert 1000 <= code <= 1014 or 4000 <= code <= 4999
    assert code not in NEVER_SENT
    assert 1 <= len(CLOSE_REASONS[code].encode()) <= 123


def test_no_reason_is_given_for_two_codes():
    assert len(set(CLOSE_REASONS.values())) == len(CLOSE_REASONS) == len(CloseCode)


def test_a_client_reconnects_after_the_codes_that_the_protocol_names():
    assert sorted(RECONNECT_AFTER) == [1001, 1006, 1012, 4008, 4029]


def test_our_javascript_client_reconnects_after_the_same_codes():
    client = Path(pushservice.web.__file__).parent / "client"
    script = (client / "quotepush.js").read_text("utf-8")
    found = re.search(r"const RETRYABLE = new Set\(\[([\d, ]+)\]\)", script)
    assert found is not None
    assert {int(code) for code in found[1].split(",")} == RECONNECT_AFTER
