"""The events that the server sends."""

from __future__ import annotations

import json

from pushservice.protocol import events
from pushservice.protocol.close_codes import ErrorCode
from pushservice.protocol.codecs import JSON, RAW


def test_events_have_the_shape_of_the_protocol():
    errors = {"6005 19": (ErrorCode.BAD_SYMBOL, "why")}
    assert json.loads(events.welcome("a1-17", "k7f3", 5000, 500, 16384)) == {
        "ev": "welcome",
        "v": 1,
        "conn": "a1-17",
        "epoch": "k7f3",
        "hb": 5000,
        "limits": {"symbols": 500, "message": 16384},
    }
    assert json.loads(events.subscribed(b"1", ["AAPL"], errors, 12)) == {
        "ev": "subscribed",
        "id": 1,
        "symbols": ["AAPL"],
        "errors": {"6005 19": {"code": 411, "msg": "why"}},
        "total": 12,
    }
    assert json.loads(events.unsubscribed(b"2", ["AAPL"], {}, 11)) == {
        "ev": "unsubscribed",
        "id": 2,
        "symbols": ["AAPL"],
        "total": 11,
    }
    assert json.loads(events.listing(None, ["AAPL"])) == {"ev": "list", "symbols": ["AAPL"]}
    assert json.loads(events.error(b"7", ErrorCode.MALFORMED, "why")) == {
        "ev": "error",
        "id": 7,
        "code": 400,
        "msg": "why",
    }
    assert json.loads(events.heartbeat(5, True, 12, 37)) == {
        "ev": "heartbeat",
        "t": 5,
        "feed": "up",
        "age": 12,
        "merged": 37,
    }
    assert json.loads(events.heartbeat(5, False, None, 0))["feed"] == "down"
    assert json.loads(events.bye(1012, 3500)) == {"ev": "bye", "code": 1012, "retry": 3500}
    assert json.loads(events.bye(1001, None)) == {"ev": "bye", "code": 1001}


def test_a_welcome_says_whether_to_authenticate_only_where_anybody_has_to():
    assert b"auth" not in events.welcome("c", "e", 1, 2, 3)
    assert events.welcome("c", "e", 1, 2, 3, "required").endswith(b',"auth":"required"}')


def test_authenticated_says_what_there_is_to_say():
    assert events.authenticated(None, None, None, 0.0) == b'{"ev":"authenticated"}'
    assert events.authenticated(b"1.50", "ann", 1_763_803_600_000, 900.0) == (
        b'{"ev":"authenticated","id":1.50,"user":"ann","expires":1763803600000,"delay":900}'
    )
    assert events.authenticated(None, None, None, 0.5).endswith(b',"delay":0.5}')


def test_expiring_says_in_how_many_milliseconds():
    assert events.expiring(60_000) == b'{"ev":"expiring","in":60000}'


def test_an_incident_is_an_error_of_either_codec():
    text = b'"code":500,"msg":"internal error: incident k7f3.1"}'
    assert events.incident(JSON, "k7f3.1") == b'{"ev":"error",' + text
    assert events.incident(RAW, "k7f3.1").endswith(b'{"error":{' + text + b"}")
