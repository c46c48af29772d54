"""Frames that one flush makes once and several clients send, and what the flush sent in all.

Must not know: clients, symbols, or how frames are laid out (a codec does).
"""

from __future__ import annotations

from pushservice.protocol.codecs import Codec, count_frames


class SharedFrames:
    """What one flush of the hub sends: frames that clients share, and the counts of all.

    Clients with equal pieces, such as when everybody watches one index, get the same frame. To
    compare two lists of the same objects costs far less than to join them again.
    """

    __slots__ = ("bytes", "codec", "data", "frames", "pieces", "taken")

    def __init__(self) -> None:
        self.codec: Codec | None = None
        self.taken: list[bytes] = []
        self.data = b""
        self.frames = 0
        self.pieces = 0
        self.bytes = 0

    def wire_bytes(self, codec: Codec, pieces: list[bytes]) -> bytes:
        """The frames that carry `pieces`, counted; the last client's own where they are equal."""
        if codec is not self.codec or pieces != self.taken:
            self.codec = codec
            self.taken = pieces.copy()
            self.data = codec.frames(pieces)
        self.frames += count_frames(codec, len(pieces))
        self.pieces += len(pieces)
        self.bytes += len(self.data)
        return self.data
