"""Frames that one flush makes once and several clients send."""

from __future__ import annotations

from pushservice.fanout.shared_frames import SharedFrames
from pushservice.protocol.codecs import JSON, RAW


def test_clients_with_equal_pieces_get_the_same_bytes():
    shared = SharedFrames()
    first = shared.wire_bytes(JSON, [b"1", b"2"])
    assert first == JSON.frames([b"1", b"2"])
    assert shared.wire_bytes(JSON, [b"1", b"2"]) is first
    assert shared.wire_bytes(JSON, [b"1"]) == JSON.frames([b"1"])


def test_equal_pieces_of_another_codec_are_framed_anew():
    shared = SharedFrames()
    pieces = [b"\x81\x011", b"\x81\x012"]
    assert shared.wire_bytes(JSON, pieces) == JSON.frames(pieces)
    assert shared.wire_bytes(RAW, pieces) == RAW.frames(pieces)


def test_the_pieces_may_be_reused_by_their_owner():
    shared = SharedFrames()
    pieces = [b"1"]
    shared.wire_bytes(JSON, pieces)
    pieces[0] = b"2"
    assert shared.wire_bytes(JSON, pieces) == JSON.frames([b"2"])


def test_all_that_is_sent_is_counted():
    shared = SharedFrames()
    sent = [shared.wire_bytes(JSON, [b"1", b"2"]), shared.wire_bytes(JSON, [b"1", b"2"])]
    sent.append(shared.wire_bytes(RAW, [b"\x81\x011", b"\x81\x012"]))
    assert (shared.frames, shared.pieces) == (4, 6)
    assert shared.bytes == sum(map(len, sent))
