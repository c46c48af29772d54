"""When a quote was published, by its payload."""

from __future__ import annotations

import pytest

from pushservice.feed.publish_time import published_at


@pytest.mark.parametrize(
    ("payload", "seconds"),
    [
        (b'{"last":1,"ts":1763799999123}', 1763799999.123),
        (b'{"ts": 1763799999123,"last":1}', 1763799999.123),
        (b'{"ts":1763799999123456}', 1763799999.123456),
        (b'{"ts":1763799999123456789}', 1763799999.123456789),
        (b'{"old":{"ts":1763799990000},"ts":1763799999123}', 1763799999.123),
    ],
)
def test_a_timestamp_is_read_in_milli_micro_or_nanoseconds(payload, seconds):
    assert published_at(payload) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"12.50",
        b'{"last":1}',
        b'{"ts":null}',
        b'{"ts":"1763799999123"}',
        b'{"ts":1763799999}',
        b'{"ts":17637999991234}',
        b'{"ts":1763799999123.5}',
        b'{"ts":1763799999123e3}',
        b'{"ts":-1763799999123}',
        b'{"ts":17637999991234567890}',
        b'{"ts":',
        b'{"fits":1763799999123}',
        b"\xff\x00",
    ],
)
def test_other_values_are_no_timestamp(payload):
    assert published_at(payload) is None
