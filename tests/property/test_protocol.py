"""Commands, codecs and symbols against random bytes and random JSON."""

from __future__ import annotations

import json

from core_doubles import Client, make_hub, publish, unframe
from hypothesis import given
from hypothesis import strategies as st

from pushservice.protocol import commands
from pushservice.protocol.codecs import JSON, RAW
from pushservice.protocol.payload import is_json
from pushservice.protocol.symbols import symbol_fault, symbol_text

NEAR_COMMANDS = st.builds(
    lambda fields: json.dumps(fields).encode(),
    st.dictionaries(
        st.sampled_from(["op", "id", "symbols", "mode", "interval", "snapshot", "token", "x"]),
        st.one_of(
            st.sampled_from(["subscribe", "unsubscribe", "list", "ping", "auth", "auto", "raw"]),
            st.lists(st.one_of(st.text(max_size=5), st.integers(), st.none()), max_size=4),
            st.integers(-1, 70_000),
            st.floats(allow_nan=False, allow_infinity=False),
            st.booleans(),
            st.none(),
            st.text(max_size=8),
        ),
    ),
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.one_of(st.binary(max_size=200), NEAR_COMMANDS))
def test_any_message_is_answered_with_whole_events_and_breaks_nothing(text):
    hub = make_hub()
    for codec in (JSON, RAW):
        client = Client(hub, codec=codec)
        client.frames()
        client.say(text)
        for answer in client.texts():
            parsed = json.loads(answer)
            if codec is JSON:
                assert all(event["ev"] for event in parsed)
        client.say(b'{"op":"subscribe","symbols":["A"],"snapshot":false}')
        client.frames()
        publish(hub, ("A", b"1"))
        assert len(client.texts()) == 1
        client.session.close()
    assert hub.count_outboxes() == 0


@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_any_payload_gives_a_frame_that_parses_and_keeps_its_text(payload):
    piece = JSON.quote(b'"A"', 1, 1, JSON.body(payload))
    [(_, text)] = unframe(JSON.frames([piece]))
    [event] = json.loads(text)
    if is_json(payload):
        assert payload in text
    else:
        assert event["d"] == payload.decode("utf-8", "replace")
    [(_, raw)] = unframe(RAW.frames([RAW.quote(b'"A"', 1, 1, RAW.body(payload))]))
    assert raw.decode() == payload.decode("utf-8", "replace")


@given(JSON_VALUES)
def test_every_json_value_goes_out_byte_for_byte(value):
    payload = json.dumps(value).encode()
    assert JSON.body(payload) is payload


@given(st.text())
def test_a_symbol_without_fault_comes_back_from_its_json_text(symbol):
    if symbol_fault(symbol) is None:
        assert json.loads(symbol_text(symbol)) == symbol
        assert 1 <= len(symbol.encode()) <= 64
        assert symbol.split() == [symbol]


@given(st.lists(st.binary(max_size=70_000), max_size=3))
def test_frames_carry_any_length(payloads):
    pieces = [RAW.quote(b"", 1, 1, payload) for payload in payloads]
    assert [payload for _, payload in unframe(RAW.frames(pieces))] == payloads


@given(st.lists(st.text(max_size=12), max_size=6))
def test_bare_symbols_come_back_from_their_list(symbols):
    command = commands.parse_bare_symbols(",".join(symbols).encode("utf-8", "replace"))
    for symbol in symbols:
        if symbol_fault(symbol) is None and "," not in symbol:
            assert symbol in command.symbols
