"""Which payloads are JSON, and what goes out in place of others."""

from __future__ import annotations

import json

import pytest

from pushservice.protocol.codecs import JSON
from pushservice.protocol.payload import is_json


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
    assert is_json(payload)
    assert JSON.body(payload) is payload


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
    assert not is_json(payload)
    body = JSON.body(payload)
    assert json.loads(body) == payload.decode("utf-8", "replace")
