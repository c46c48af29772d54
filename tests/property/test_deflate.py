"""Compressed turns against their plain ones: any events, any payloads, any mix of pieces."""

from __future__ import annotations

import zlib

from core_doubles import Client, inflated, make_hub, publish, unframe
from hypothesis import given
from hypothesis import strategies as st

from pushservice.metrics import Counters
from pushservice.protocol import deflate
from pushservice.protocol.codecs import CODECS, JSON, JSON_SUBPROTOCOL
from pushservice.protocol.deflate import Corrupt, Inflation, TooLong

PAYLOADS = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(str.encode),
    st.integers().map(b"%d".__mod__),
    st.builds(lambda part, times: b'"%b"' % (part * times), st.just(b"ab"), st.integers(0, 50_000)),
)
CODEC = deflate.codecs(Counters(), 1)[JSON_SUBPROTOCOL]


def text_of(data: bytes) -> bytes:
    """The text of the one frame in `data`."""
    [(first, payload)] = unframe(data)
    return inflated(payload) if first == 0xC1 else payload


@given(st.lists(st.tuples(PAYLOADS, st.sampled_from(["shared", "alone", "snapshot", "event"]))))
def test_any_mix_of_pieces_is_the_plain_codec_s_message(turn):
    pieces, plain = [], []
    for n, (payload, kind) in enumerate(turn):
        quote = (b'"A"', n, 1000, JSON.body(payload))
        if kind == "snapshot":
            pieces.append(CODEC.snapshot(*quote))
            plain.append(JSON.snapshot(*quote))
        else:
            event = JSON.quote(*quote)
            make = CODEC.quoting(1) if kind == "shared" else CODEC.quote
            pieces.append(CODEC.event(event) if kind == "event" else make(*quote))
            plain.append(event)
    assert text_of(CODEC.frames(pieces)) == text_of(JSON.frames(plain))


@given(st.lists(PAYLOADS, min_size=1, max_size=5), st.sampled_from(list(CODECS.values())))
def test_any_payload_reaches_a_client_with_compression_as_it_does_without(payloads, codec):
    hub = make_hub()
    compressing = deflate.codecs(Counters(), 1)[codec.name]
    clients = [Client(hub, "t-1", codec), Client(hub, "t-2", compressing)]
    for client in clients:
        client.say({"op": "subscribe", "symbols": ["A"]})
        client.frames()
    publish(hub, *[("A", payload) for payload in payloads])
    plain, compressed = (client.texts() for client in clients)
    assert compressed == plain
    assert compressed


@given(st.binary(max_size=500), st.lists(st.integers(1, 60)), st.integers(0, 600))
def test_whatever_a_client_sends_is_inflated_within_the_limit_or_refused(data, sizes, most):
    message, text = Inflation(), b""
    try:
        for size in [*sizes, len(data)]:
            part, data = data[:size], data[size:]
            text += message.feed(part, most - len(text))
        message.end()
    except (Corrupt, TooLong):
        pass
    assert len(text) <= most


@given(st.binary(max_size=500), st.integers(1, 9), st.sampled_from([9, 12, 15]), st.integers(1, 99))
def test_what_any_sender_compresses_is_inflated(text, level, bits, size):
    stream = zlib.compressobj(level, wbits=-bits)
    data = (stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    message = Inflation()
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    assert b"".join(message.feed(part, 500) for part in parts) == text
    message.end()
