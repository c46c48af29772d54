"""Payloads: whether published bytes are JSON, and what goes out in place of those that are not.

Must not know: codecs, symbols, or what a payload means.
"""

from __future__ import annotations

import msgspec

_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


def is_json(payload: bytes) -> bool:
    """True when every strict JSON parser takes `payload`: UTF-8, no NaN, no lone surrogate."""
    try:
        _decode_any(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def text_of(payload: bytes) -> bytes:
    """`payload` itself where it is UTF-8, else with U+FFFD in place of what is not."""
    if payload.isascii():
        return payload
    try:
        payload.decode()
    except UnicodeDecodeError:
        return payload.decode("utf-8", "replace").encode()
    return payload


def json_string(payload: bytes) -> bytes:
    """`payload` as a JSON string, with U+FFFD in place of bytes that are not UTF-8."""
    return _encode(payload.decode("utf-8", "replace"))
