"""The codecs: pieces and frames of each subprotocol."""

from __future__ import annotations

import json

from pushservice.protocol import events
from pushservice.protocol.close_codes import ErrorCode
from pushservice.protocol.codecs import JSON, RAW
from pushservice.protocol.frames import frame_head
from pushservice.protocol.symbols import symbol_text


def test_the_raw_codec_replaces_only_what_is_not_utf8():
    for payload in (b"", b"10.50", b"hello\n", "茅".encode()):
        assert RAW.body(payload) is payload
    assert RAW.body(b"a\xffb") == "a\ufffdb".encode()


def test_the_json_codec_puts_a_turn_into_one_frame():
    symbol = symbol_text("AAPL")
    pieces = [
        JSON.snapshot(symbol, 1, 1000, b"10.50"),
        JSON.quote(symbol, 2, 1001, b'{"a": 1}'),
    ]
    text = (
        b'[{"ev":"snapshot","s":"AAPL","n":1,"t":1000,"d":10.50},'
        b'{"ev":"quote","s":"AAPL","n":2,"t":1001,"d":{"a": 1}}]'
    )
    assert JSON.frames(pieces) == frame_head(len(text)) + text


def test_the_raw_codec_puts_each_publish_into_a_frame_of_its_own():
    symbol = symbol_text("AAPL")
    pieces = [RAW.quote(symbol, 1, 1, b"10.50"), RAW.snapshot(symbol, 1, 1, b"")]
    assert RAW.frames(pieces) == b"\x81\x0510.50\x81\x00"


def test_raw_errors_are_json_objects_without_an_envelope():
    piece = RAW.failure(events.error(b"7", ErrorCode.BAD_SYMBOL, "why"))
    assert json.loads(piece[2:]) == {"error": {"id": 7, "code": 411, "msg": "why"}}
