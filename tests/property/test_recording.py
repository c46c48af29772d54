"""Any payload at any time on any channel survives a recording byte for byte."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pushservice.market.recording_format import Message, message_line, read_line

TIMES = st.integers(0, 4_102_444_800_000_000)
CHANNELS = st.text(st.characters(codec="utf-8"), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.builds(
        lambda value, indent, escaped: json.dumps(
            value, indent=indent, ensure_ascii=escaped
        ).encode("utf-8", "surrogatepass"),
        JSON,
        st.sampled_from([None, 0, 2]),
        st.booleans(),
    ),
)


@given(TIMES, CHANNELS, PAYLOADS)
def test_any_message_is_read_back_unchanged_from_one_line(at, channel, payload):
    line = message_line(Message(at, channel, payload))
    assert line.index(b"\n") == len(line) - 1
    json.loads(line)
    assert read_line(line) == Message(at, channel, payload)
