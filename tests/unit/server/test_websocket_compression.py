"""Compression: agreed on, declined, and its violations."""

from __future__ import annotations

import json
import re
import zlib
from itertools import cycle
from typing import Any

import pytest
from connection_doubles import (
    REQUEST,
    Server,
    masked,
)
from core_doubles import inflated, publish, unframe

from pushservice.protocol import deflate
from pushservice.protocol.codecs import CODECS

OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
AGREED = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
#: Ways in which the header's name is written.
NAMES = (b"Sec-WebSocket-Extensions", b"sec-websocket-extensions")


def compressing(**limits: float) -> Server:
    """An server that compresses whatever it may."""
    server = Server(**limits)
    server.connections.deflated = deflate.codecs(server.counters, 1)
    return server


def deflated(text: bytes) -> bytes:
    """A client's compressed message."""
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def squeezed(command: object) -> bytes:
    """A command in a compressed message, as a frame."""
    return masked(1, deflated(json.dumps(command).encode()), rsv1=True)


@pytest.mark.parametrize(
    ("offer", "agreed"),
    [
        (b"permessage-deflate", AGREED),
        (
            b"permessage-deflate; client_max_window_bits",
            AGREED + b"; client_max_window_bits=12",
        ),
        (
            b'permessage-deflate; server_max_window_bits="13"',
            AGREED + b"; server_max_window_bits=12",
        ),
        (b"permessage-deflate; server_max_window_bits=8, permessage-deflate", AGREED),
        (b"permessage-deflate; server_max_window_bits=8", None),
        (b"permessage-deflate; server_max_window_bits=99", None),
        (b"permessage-deflate; unheard_of", None),
        (b"permessage-bzip2, x-webkit-deflate-frame", None),
    ],
)
def test_compression_is_agreed_on_or_declined_and_the_client_is_served(offer, agreed):
    connection = compressing().connect()
    connection.send(REQUEST % (b"Sec-WebSocket-Extensions: " + offer + b"\r\n"))
    head, _, rest = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    found = re.findall(rb"(?i)\r\nsec-websocket-extensions: ([^\r]*)", head)
    assert found == ([] if agreed is None else [agreed])
    assert unframe(rest)[0][0] == 0x81, "the welcome"


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        ([b"permessage-deflate", b"x-webkit-deflate-frame"], AGREED),
        (
            [b"unheard-of", b"permessage-deflate; client_max_window_bits"],
            AGREED + b"; client_max_window_bits=12",
        ),
        (
            [b"permessage-deflate; server_max_window_bits=8", b"", b"permessage-deflate"],
            AGREED,
        ),
        ([b"one", b"another"], None),
    ],
)
def test_offers_may_come_in_several_headers(offers, agreed):
    connection = compressing().connect()
    headers = [b"%b: %b\r\n" % pair for pair in zip(cycle(NAMES), offers, strict=False)]
    between = b"X-Other: 1\r\n"
    ping = masked(1, b'{"op":"ping","id":1}')
    connection.send(REQUEST % between.join(headers) + ping)
    head, _, rest = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    found = re.findall(rb"(?i)\r\nsec-websocket-extensions: ([^\r]*)", head)
    assert found == ([] if agreed is None else [agreed])
    [_welcome, pong] = unframe(rest)
    assert pong == (0x81, b'[{"ev":"pong","id":1}]'), "what came along with the request is kept"


def test_nothing_is_agreed_on_where_compression_is_off():
    connection = Server().connect()
    connection.send(REQUEST % OFFER)
    assert connection.transport.value().startswith(b"HTTP/1.1 101 ")
    assert b"deflate" not in connection.transport.value()


@pytest.mark.parametrize("name", list(CODECS))
def test_a_client_with_compression_gets_its_subprotocol_compressed(name):
    server = compressing()
    plain = server.open(b"Sec-WebSocket-Protocol: %b\r\n" % name.encode())
    connection = server.open(OFFER + b"Sec-WebSocket-Protocol: %b\r\n" % name.encode())
    for each in (plain, connection):
        each.send(masked(1, b'{"op":"subscribe","symbols":["A"]}'))
        each.transport.clear()
    publish(server.hub, ("A", b'{"last":1.50,"bid":1.50,"ask":1.50,"open":1.50}'))
    [(one, payload)], [(other, text)] = connection.frames(), plain.frames()
    assert (one, other) == (0xC1, 0x81)
    assert inflated(payload) == text


def test_a_compressed_command_is_understood_in_whatever_fragments_it_comes():
    connection = compressing().open(OFFER)
    assert connection.say({"op": "ping"}) == [{"ev": "pong"}]
    connection.send(squeezed({"op": "ping", "id": 1}))
    data = deflated(b'{"op":"ping","id":2}')
    parts = [data[:5], data[5:9], data[9:]]
    for at, part in enumerate(parts):
        connection.send(masked(0 if at else 1, part, final=at == 2, rsv1=at == 0))
        connection.send(masked(9, b"between"))
    for byte in squeezed({"op": "ping", "id": 3}):
        connection.send(bytes([byte]))
    pong = (0x8A, b"between")
    assert connection.frames() == [
        (0x81, b'[{"ev":"pong","id":1}]'),
        *(pong, pong, (0x81, b'[{"ev":"pong","id":2}]'), pong),
        (0x81, b'[{"ev":"pong","id":3}]'),
    ]


@pytest.mark.parametrize("offer", [b"", OFFER])
@pytest.mark.parametrize(
    "frames",
    [
        [masked(9, b"p", rsv1=True)],
        [masked(8, b"\x03\xe8", rsv1=True)],
        [masked(1, b"a", final=False), masked(0, b"b", rsv1=True)],
        [masked(1, deflated(b"a"), final=False, rsv1=True), masked(0, b"", rsv1=True)],
    ],
)
def test_what_may_not_be_compressed_is_a_violation(offer, frames):
    connection = compressing().open(offer)
    for frame in frames:
        connection.send(frame)
    assert connection.close_code() == 1002


@pytest.mark.parametrize("offer", [b"", OFFER])
def test_empty_fragments_of_a_message_are_not_kept(offer):
    connection = compressing(message_rate=10_000).open(offer)
    text = b'{"op":"ping","id":1}'
    data = deflated(text) if offer else text
    connection.send(masked(1, data[:5], final=False, rsv1=bool(offer)))
    kept = len(connection.protocol.message_data)
    for _ in range(200):
        connection.send(masked(0, b"", final=False))
    assert len(connection.protocol.message_data) == kept <= 1
    connection.send(masked(0, data[5:]))
    assert connection.frames() == [(0x81, b'[{"ev":"pong","id":1}]')]


def test_a_compressed_message_without_agreement_is_a_violation():
    connection = compressing().open()
    connection.send(squeezed({"op": "ping"}))
    assert connection.close_code() == 1002


@pytest.mark.parametrize("fragments", [1, 3])
def test_a_message_that_inflates_to_more_than_may_be_is_closed_as_too_big(fragments):
    server = compressing(message=200)
    connection = server.open(OFFER)
    connection.send(masked(1, deflated(b" " * 200), rsv1=True))
    assert [first for first, _ in connection.frames()] == [0x81], "as long as may be"
    bomb = deflated(b" " * 100_000)
    size = -(-len(bomb) // fragments)
    parts = [bomb[at : at + size] for at in range(0, len(bomb), size)]
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        connection.send(masked(0 if at else 1, part, final=last, rsv1=at == 0))
    assert connection.close_code() == 1009
    connection.send(masked(8, b"\x03\xf1"))
    assert connection.transport.disconnecting, "the answer to the close is understood"
    assert connection.protocol.wasClean


@pytest.mark.parametrize("message", [b"\x07", deflated(b"x" * 100)[:-2]])
def test_a_message_that_cannot_be_inflated_is_closed_as_invalid(message):
    connection = compressing().open(OFFER)
    connection.send(masked(1, message, rsv1=True))
    assert connection.close_code() == 1007
    connection.send(masked(8, b"\x03\xef"))
    assert connection.protocol.wasClean, "the answer to the close is understood"


def test_a_message_that_is_no_text_once_inflated_is_closed_as_invalid():
    connection = compressing().open(OFFER)
    connection.send(masked(1, deflated(b"\xff"), rsv1=True))
    assert connection.close_code() == 1007


def test_what_a_client_sends_compressed_counts_as_what_it_becomes():
    connection = compressing(byte_rate=2000, message=16_384).open(OFFER)
    told: list[dict[str, Any]] = []
    for _ in range(5):
        connection.send(squeezed({"op": "ping", "x": " " * 10_000}))
        told += [event for _, text in connection.frames() for event in json.loads(text)]
    assert [event.get("code") for event in told] == [None, None, None, 429, 429]


def test_nothing_is_kept_for_compression_between_messages():
    server = compressing()
    connection, plain = server.open(OFFER), server.open()
    connection.send(squeezed({"op": "ping"}))
    inflater = connection.protocol.__dict__["_perMessageCompress"]
    kept = {name: getattr(inflater, name) for name in type(inflater).__slots__}
    assert kept == {"_message": None, "_window_bits": 12}
    assert "_perMessageCompress" not in plain.protocol.__dict__
