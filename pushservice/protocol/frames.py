"""WebSocket frames that the server sends (RFC 6455): the head of a text frame, pings and pongs.

Must not know: events, codecs, or connections.
"""

from __future__ import annotations

from typing import Final

_TEXT: Final = 0x81
_PING: Final = 0x89
_PONG: Final = 0x8A


def frame_head(length: int, first: int = _TEXT) -> bytes:
    """The head of an unmasked final frame of `length` bytes (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return bytes((first, 126)) + length.to_bytes(2)
    return bytes((first, 127)) + length.to_bytes(8)


def ping_frame(payload: bytes) -> bytes:
    """A whole ping control frame; `payload` has at most 125 bytes."""
    return frame_head(len(payload), _PING) + payload


def pong_frame(payload: bytes) -> bytes:
    """A whole pong control frame; `payload` is the ping's own, at most 125 bytes."""
    return frame_head(len(payload), _PONG) + payload
