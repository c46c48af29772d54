"""The format of a recording: what is written comes back, and what is none is refused."""

from __future__ import annotations

import json

import pytest

from pushservice.market.recording_format import (
    BadLine,
    Header,
    Mark,
    Message,
    header_line,
    mark_line,
    message_line,
    read_header,
    read_line,
)

AT = 1_763_799_999_123_456


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        (b'{"last":10.50}', "d"),
        (b"10.50", "d"),
        (b'"text"', "d"),
        ('{"name":"贵州茅台"}'.encode(), "d"),
        (b"null", "d"),
        (b"plain text", "x"),
        (b"", "x"),
        (b' {"last":1}', "x"),
        (b'{"last":1}\n', "x"),
        (b'{"last":\n1}', "x"),
        (b'{"last":\r1}', "x"),
        (b"NaN", "x"),
        (b"[" * 5000 + b"]" * 5000, "x"),
        (b'"\xff"', "b"),
        (b"\xff\x00\n", "b"),
    ],
)
def test_a_payload_comes_back_byte_for_byte(payload, key):
    line = message_line(Message(AT, "quote.AAPL", payload))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert set(json.loads(line)) == {"t", "c", key}
    assert read_line(line) == Message(AT, "quote.AAPL", payload)


def test_a_line_is_written_as_the_documents_say():
    line = message_line(Message(AT, "quote.AAPL", b'{"last":10.50}'))
    assert line == b'{"t":1763799999123.456,"c":"quote.AAPL","d":{"last":10.50}}\n'


@pytest.mark.parametrize("payload", [b"[" * 500 + b"]" * 500, b"[" * 501 + b"]" * 501])
def test_a_payload_of_any_depth_can_be_read_again(payload):
    assert read_line(message_line(Message(AT, "c", payload))).payload == payload


def test_the_header_comes_back():
    header = Header(AT, ("quote.*", "fx.*"))
    line = header_line(header)
    assert line == (
        b'{"quotepush":"recording","version":1,"began":1763799999123.456,'
        b'"channels":["quote.*","fx.*"]}\n'
    )
    assert read_header(line) == header


@pytest.mark.parametrize("up", [True, False])
def test_a_mark_comes_back(up):
    assert read_line(mark_line(Mark(AT, up))) == Mark(AT, up)


def test_times_are_kept_to_the_microsecond():
    for at in (0, 1, 999, 1000, AT, 4_102_444_800_000_001):
        assert read_line(mark_line(Mark(at, True))).at == at


def test_what_a_later_version_may_add_is_passed_over():
    assert read_line(b'{"t":1.0,"note":"lunch"}') is None
    assert read_line(b'{"t":1.0,"c":"a","d":1,"more":[]}') == Message(1000, "a", b"1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "not a line"),
        (b"{", "not a line"),
        (b'{"c":"a","d":1}', "missing required field `t`"),
        (b'{"t":"now","c":"a","d":1}', "Expected `float`"),
        (b'{"t":-1,"c":"a","d":1}', "is not a time"),
        (b'{"t":1,"c":"a"}', "as d, x or b"),
        (b'{"t":1,"c":"a","b":"=="}', "not base64"),
        (b'{"t":1,"c":"a","b":"\xc3\xa4"}', "not base64"),
        (b'{"t":1,"c":"\xff","d":1}', "not a line"),
    ],
)
def test_an_invalid_line_is_refused_with_the_reason(line, words):
    with pytest.raises(BadLine, match=words):
        read_line(line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "not the header"),
        (b'{"last":1}', "not the header"),
        (b"\xff", "not the header"),
        (b'{"quotepush":"diary","version":1,"began":1}', "'diary'"),
        (b'{"quotepush":"recording","version":2,"began":1}', "version 2"),
        (b'{"quotepush":"recording","version":1,"began":-1}', "not a time"),
    ],
)
def test_an_invalid_header_is_refused_with_the_reason(line, words):
    with pytest.raises(BadLine, match=words):
        read_header(line)
