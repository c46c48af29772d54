"""The WebSocket frames that the server sends."""

from __future__ import annotations

import pytest

from pushservice.protocol.frames import frame_head, pong_frame


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
    assert frame_head(length) == head


def test_a_pong_frame_carries_the_pings_payload():
    assert pong_frame(b"hi") == b"\x8a\x02hi"
