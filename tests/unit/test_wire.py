"""The words of the wire: symbols, commands, events, payloads, frames and codecs."""

from __future__ import annotations

import json

import pytest

from pushservice import wire
from pushservice.closing import ErrorCode
from pushservice.wire import BadCommand, ListSymbols, Ping, Subscribe, Unsubscribe, parse_command


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


def test_subscribe_is_read_with_its_defaults():
    assert parse_command(b'{"op":"subscribe","symbols":["A","B"]}') == Subscribe(
        None, ["A", "B"], snapshot=True
    )


def test_subscribe_takes_what_is_available_and_ignores_unknown_keys():
    text = b'{"op":"subscribe","id":"x","symbols":[],"mode":"auto","interval":0,"snapshot":false,"z":1}'
    assert parse_command(text) == Subscribe(b'"x"', [], snapshot=False)


def test_unsubscribe_without_symbols_means_all_and_with_an_empty_list_none():
    assert parse_command(b'{"op":"unsubscribe","id":3}') == Unsubscribe(b"3", None)
    assert parse_command(b'{"op":"unsubscribe","symbols":[]}') == Unsubscribe(None, [])


@pytest.mark.parametrize(
    "id",
    ["1", "-1", "0", "1.10", "1e3", "123456789012345678901234567890", '"a b"', '"\\u00e9"', '""'],
)
def test_an_id_goes_back_byte_for_byte(id):
    command = parse_command(b'{"op":"ping","id":%b}' % id.encode())
    assert command == Ping(id.encode())
    assert wire.pong(command.id) == b'{"ev":"pong","id":%b}' % id.encode()


@pytest.mark.parametrize(
    ("text", "words", "id"),
    [
        (b"", "not JSON", None),
        (b"hello", "not JSON", None),
        (b'{"op":"ping"', "not JSON", None),
        (b'{"op":NaN}', "not JSON", None),
        (b'{"op":' + b"[" * 5000, "not JSON", None),
        (b"\xff\xfe", "not UTF-8", None),
        (b"[]", "one JSON object", None),
        (b'"ping"', "one JSON object", None),
        (b"null", "one JSON object", None),
        (b"{}", "op is missing", None),
        (b'{"id":1}', "op is missing", b"1"),
        (b'{"op":"buy","id":1}', 'unknown op "buy"; known are subscribe', b"1"),
        (b'{"op":7}', "unknown op 7", None),
        (b'{"op":"%b"}' % (b"x" * 500), "…", None),
        (b'{"op":"ping","id":null}', "id is a number or a string", None),
        (b'{"op":"ping","id":true}', "id is a number or a string", None),
        (b'{"op":"ping","id":{}}', "id is a number or a string", None),
        (b'{"op":"subscribe","id":9}', "subscribe needs symbols", b"9"),
        (b'{"op":"subscribe","symbols":"AAPL"}', "symbols is a list", None),
        (b'{"op":"subscribe","symbols":{"a":1}}', "symbols is a list", None),
        (b'{"op":"unsubscribe","symbols":null}', "symbols is a list", None),
        (b'{"op":"subscribe","symbols":[],"snapshot":1}', "snapshot is true or false", None),
        (b'{"op":"subscribe","symbols":[],"mode":"raw","id":4}', "mode raw is not available", b"4"),
        (b'{"op":"subscribe","symbols":[],"mode":"fast"}', 'mode is "auto" or "raw"', None),
        (b'{"op":"subscribe","symbols":[],"mode":null}', 'mode is "auto" or "raw"', None),
        (b'{"op":"subscribe","symbols":[],"interval":250}', "interval is not available yet", None),
        (b'{"op":"subscribe","symbols":[],"interval":-1}', "0 to 60000, not -1", None),
        (b'{"op":"subscribe","symbols":[],"interval":60001}', "0 to 60000", None),
        (b'{"op":"subscribe","symbols":[],"interval":0.0}', "whole number", None),
        (b'{"op":"subscribe","symbols":[],"interval":false}', "whole number", None),
        (b'{"op":"auth","token":"secret","id":6}', "auth is not available yet", b"6"),
    ],
)
def test_a_bad_message_is_told_what_is_wrong_and_keeps_its_id(text, words, id):
    with pytest.raises(BadCommand) as caught:
        parse_command(text)
    assert words in str(caught.value)
    assert caught.value.id == id
    assert caught.value.code == ErrorCode.MALFORMED
    assert len(str(caught.value)) < 200


def test_a_refused_token_is_not_repeated():
    with pytest.raises(BadCommand) as caught:
        parse_command(b'{"op":"auth","token":"secret"}')
    assert "secret" not in str(caught.value)


def test_the_other_commands_are_read():
    assert parse_command(b'{"op":"list","id":4}') == ListSymbols(b"4")
    assert parse_command(b'{"op":"ping"}') == Ping(None)


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        (b"AAPL", ["AAPL"]),
        (b" AAPL , 600519.SH,", ["AAPL", "600519.SH"]),
        (b"a b,c", ["a b", "c"]),
        (b"", []),
        ("茅台".encode(), ["茅台"]),
    ],
)
def test_bare_symbols_are_separated_by_commas(text, symbols):
    assert wire.parse_bare_symbols(text) == Subscribe(None, symbols)
    assert wire.RAW.parse(text) == Subscribe(None, symbols)


def test_the_raw_codec_reads_commands_too_and_refuses_what_is_not_utf8():
    assert wire.RAW.parse(b' {"op":"ping"}') == Ping(None)
    with pytest.raises(BadCommand, match="not UTF-8"):
        wire.RAW.parse(b"\xff")


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


def test_a_value_is_shortened_for_quoting():
    assert wire.shortened("x" * 100) == '"' + "x" * 38 + "…"
    assert wire.shortened(["a", 1.5, None]) == '["a",1.5,null]'
