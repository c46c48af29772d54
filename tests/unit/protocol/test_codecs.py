"""The words of the wire: symbols, events, payloads, frames and codecs."""

from __future__ import annotations

import json

import pytest

from pushservice.protocol import codecs as wire
from pushservice.protocol.close_codes import ErrorCode


@pytest.mark.parametrize(
    "symbol",
    [
        "A",
        "AAPL",
        "600519.SH",
        "0700.HK",
        "BTC/USDT",
        "EUR-USD",
        "茅台",
        "x" * 64,
        "a,b",
        "{x}",
        "é" * 32,
    ],
)
def test_a_well_formed_symbol_has_no_fault(symbol):
    assert wire.symbol_fault(symbol) is None


@pytest.mark.parametrize(
    ("symbol", "words"),
    [
        ("", "1 to 64 bytes, this one 0"),
        ("x" * 65, "this one 65"),
        ("é" * 33, "this one 66"),
        ("6005 19", "U+0020 at position 4"),
        ("a\tb", "U+0009"),
        ("a\u00a0b", "U+00A0"),
        ("a\u2003b", "U+2003"),
        ("a\x00", "U+0000"),
        ("a\x7f", "U+007F"),
        ("a\x85", "U+0085"),
        *[(f"a{char}", f"U+{ord(char):04X} at position 1") for char in '*?[]\\"'],
        ("\ud800", "valid UTF-8"),
        (5, "a symbol is a string"),
        (None, "a symbol is a string"),
        (["AAPL"], "a symbol is a string"),
    ],
)
def test_a_bad_symbol_is_told_what_is_wrong(symbol, words):
    fault = wire.symbol_fault(symbol)
    assert fault is not None
    assert words in fault


def test_events_have_the_shape_of_the_protocol():
    errors = {"6005 19": (ErrorCode.BAD_SYMBOL, "why")}
    assert json.loads(wire.welcome("a1-17", "k7f3", 5000, 500, 16384)) == {
        "ev": "welcome",
        "v": 1,
        "conn": "a1-17",
        "epoch": "k7f3",
        "hb": 5000,
        "limits": {"symbols": 500, "message": 16384},
    }
    assert json.loads(wire.subscribed(b"1", ["AAPL"], errors, 12)) == {
        "ev": "subscribed",
        "id": 1,
        "symbols": ["AAPL"],
        "errors": {"6005 19": {"code": 411, "msg": "why"}},
        "total": 12,
    }
    assert json.loads(wire.unsubscribed(b"2", ["AAPL"], {}, 11)) == {
        "ev": "unsubscribed",
        "id": 2,
        "symbols": ["AAPL"],
        "total": 11,
    }
    assert json.loads(wire.listing(None, ["AAPL"])) == {"ev": "list", "symbols": ["AAPL"]}
    assert json.loads(wire.error(b"7", ErrorCode.MALFORMED, "why")) == {
        "ev": "error",
        "id": 7,
        "code": 400,
        "msg": "why",
    }
    assert json.loads(wire.heartbeat(5, True, 12, 37)) == {
        "ev": "heartbeat",
        "t": 5,
        "feed": "up",
        "age": 12,
        "merged": 37,
    }
    assert json.loads(wire.heartbeat(5, False, None, 0))["feed"] == "down"
    assert json.loads(wire.bye(1012, 3500)) == {"ev": "bye", "code": 1012, "retry": 3500}
    assert json.loads(wire.bye(1001, None)) == {"ev": "bye", "code": 1001}


@pytest.mark.parametrize(
    "payload",
    [
        b"1",
        b'"x"',
        b"10.50",
        b' {"a":[1,null]} \n',
        b"true",
        '"茅"'.encode(),
        b"1" * 400,
        b'"\\u00e9"',
    ],
)
def test_json_payloads_go_out_byte_for_byte(payload):
    assert wire.is_json(payload)
    assert wire.JSON.body(payload) is payload


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"NaN",
        b"Infinity",
        b"01",
        b"1.",
        b"{",
        b"[1,]",
        b"'a'",
        b'"\xff"',
        b"\xff",
        b'"\\ud800"',
        b'{"a":1}{"b":2}',
        b'"\n"',
        b"\xef\xbb\xbf1",
        b"[" * 3000 + b"]" * 3000,
        b"\x00",
    ],
)
def test_other_payloads_go_out_as_json_strings(payload):
    assert not wire.is_json(payload)
    body = wire.JSON.body(payload)
    assert json.loads(body) == payload.decode("utf-8", "replace")


def test_the_raw_codec_replaces_only_what_is_not_utf8():
    for payload in (b"", b"10.50", b"hello\n", "茅".encode()):
        assert wire.RAW.body(payload) is payload
    assert wire.RAW.body(b"a\xffb") == "a\ufffdb".encode()


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_frame_heads_use_the_shortest_length_of_rfc_6455(length, head):
    assert wire.frame_head(length) == head


def test_a_pong_frame_carries_the_pings_payload():
    assert wire.pong_frame(b"hi") == b"\x8a\x02hi"


def test_the_json_codec_puts_a_turn_into_one_frame():
    symbol = wire.symbol_text("AAPL")
    pieces = [
        wire.JSON.snapshot(symbol, 1, 1000, b"10.50"),
        wire.JSON.quote(symbol, 2, 1001, b'{"a": 1}'),
    ]
    text = (
        b'[{"ev":"snapshot","s":"AAPL","n":1,"t":1000,"d":10.50},'
        b'{"ev":"quote","s":"AAPL","n":2,"t":1001,"d":{"a": 1}}]'
    )
    assert wire.JSON.frames(pieces) == wire.frame_head(len(text)) + text


def test_the_raw_codec_puts_each_publish_into_a_frame_of_its_own():
    symbol = wire.symbol_text("AAPL")
    pieces = [wire.RAW.quote(symbol, 1, 1, b"10.50"), wire.RAW.snapshot(symbol, 1, 1, b"")]
    assert wire.RAW.frames(pieces) == b"\x81\x0510.50\x81\x00"


def test_raw_errors_are_json_objects_without_an_envelope():
    piece = wire.RAW.failure(wire.error(b"7", ErrorCode.BAD_SYMBOL, "why"))
    assert json.loads(piece[2:]) == {"error": {"id": 7, "code": 411, "msg": "why"}}


# -- who it is -------------------------------------------------------------------------------------


def test_a_welcome_says_whether_to_authenticate_only_where_anybody_has_to():
    assert b"auth" not in wire.welcome("c", "e", 1, 2, 3)
    assert wire.welcome("c", "e", 1, 2, 3, "required").endswith(b',"auth":"required"}')


def test_authenticated_says_what_there_is_to_say():
    assert wire.authenticated(None, None, None, 0.0) == b'{"ev":"authenticated"}'
    assert wire.authenticated(b"1.50", "ann", 1_763_803_600_000, 900.0) == (
        b'{"ev":"authenticated","id":1.50,"user":"ann","expires":1763803600000,"delay":900}'
    )
    assert wire.authenticated(None, None, None, 0.5).endswith(b',"delay":0.5}')


def test_expiring_says_in_how_many_milliseconds():
    assert wire.expiring(60_000) == b'{"ev":"expiring","in":60000}'


def test_an_incident_is_an_error_of_either_codec():
    text = b'"code":500,"msg":"internal error: incident k7f3.1"}'
    assert wire.incident(wire.JSON, "k7f3.1") == b'{"ev":"error",' + text
    assert wire.incident(wire.RAW, "k7f3.1").endswith(b'{"error":{' + text + b"}")
