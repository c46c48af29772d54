"""The format of a recording: lines of JSON with what was published, and when.

The first line is the header, every other line a message, or a mark where the recorder lost Redis or
had it back. Payloads are kept byte for byte.

Must not know: files, compression, Redis, or at which pace a recording is played. Own code:
msgspec writes and reads the JSON; only payloads are copied as they are, which no encoder does.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from pushservice.protocol.payload import is_json

#: the format's name in the header, and the version that is written
FORMAT: Final = "recording"
VERSION: Final = 1

# The number of brackets bounds a payload's depth. A deeper payload might be too deep for a reader
# once it is inside a line.
_MAX_BRACKETS: Final = 500
_SPACE: Final = b" \t\r\n"

_encode = msgspec.json.Encoder().encode


class BadLine(ValueError):
    """A line is not valid in a recording; the text says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line: when the recording began, and the patterns of the channels it listened to.

    Histogram are microseconds since the epoch here, and milliseconds with a fraction in the file.
    """

    began: int
    channels: tuple[str, ...]


class Message(NamedTuple):
    """A payload that was published on a channel, and when it arrived."""

    at: int
    channel: str
    payload: bytes


class Mark(NamedTuple):
    """The recorder lost Redis or had it back; messages in between are missing."""

    at: int
    up: bool


class _HeaderLine(msgspec.Struct):
    quotepush: str
    version: int
    began: float
    channels: list[str] = []


class _Line(msgspec.Struct):
    t: float
    c: str | None = None
    d: msgspec.Raw = msgspec.Raw()
    x: str | None = None
    b: str | None = None
    feed: str | None = None


_decode_header = msgspec.json.Decoder(_HeaderLine).decode
_decode_line = msgspec.json.Decoder(_Line).decode


def header_line(header: Header) -> bytes:
    """The header as a line, with its end."""
    return b'{"quotepush":%b,"version":%d,"began":%b,"channels":%b}\n' % (
        _encode(FORMAT),
        VERSION,
        _time(header.began),
        _encode(header.channels),
    )


def message_line(message: Message) -> bytes:
    """A message as a line, with its end.

    The payload is `d` where it is JSON that can stand in a line as it is, else `x`, its text, or
    `b`, base64 of what is no UTF-8.
    """
    at, channel, payload = message
    if _fits_in_line(payload):
        name, value = b"d", payload
    else:
        try:
            name, value = b"x", _encode(payload.decode())
        except UnicodeDecodeError:
            name, value = b"b", b'"%b"' % base64.b64encode(payload)
    return b'{"t":%b,"c":%b,"%b":%b}\n' % (_time(at), _encode(channel), name, value)


def mark_line(mark: Mark) -> bytes:
    """A mark as a line, with its end."""
    return b'{"t":%b,"feed":"%b"}\n' % (_time(mark.at), b"up" if mark.up else b"down")


def read_header(line: bytes) -> Header:
    """The header that the first line is. Raises BadLine."""
    try:
        found = _decode_header(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadLine("the first line is not the header of a quotepush recording") from None
    if found.quotepush != FORMAT:
        raise BadLine(f"this is a quotepush {found.quotepush[:40]!r}, not a {FORMAT!r}")
    if found.version != VERSION:
        raise BadLine(
            f"version {found.version} of the format is not known here, only version {VERSION}"
        )
    return Header(_microseconds(found.began), tuple(found.channels))


def read_line(line: bytes) -> Message | Mark | None:
    """The message or mark of a line after the first; None for a kind of a later version.

    Raises BadLine.
    """
    try:
        found = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(f"not a line of a recording: {error}") from None
    at = _microseconds(found.t)
    if found.c is None:
        return None if found.feed is None else Mark(at, found.feed == "up")
    # An empty text is not JSON.
    payload = bytes(found.d)
    if payload:
        return Message(at, found.c, payload)
    if found.x is not None:
        return Message(at, found.c, found.x.encode())
    if found.b is None:
        raise BadLine("not a line of a recording: a message has a payload, as d, x or b")
    try:
        return Message(at, found.c, base64.b64decode(found.b, validate=True))
    except (binascii.Error, ValueError):
        raise BadLine("not a line of a recording: b is not base64") from None


def _fits_in_line(payload: bytes) -> bool:
    return (
        payload[:1] not in _SPACE
        and payload[-1:] not in _SPACE
        and b"\n" not in payload
        and b"\r" not in payload
        and payload.count(b"[") + payload.count(b"{") <= _MAX_BRACKETS
        and is_json(payload)
    )


def _time(at: int) -> bytes:
    return b"%d.%03d" % divmod(at, 1000)


def _microseconds(milliseconds: float) -> int:
    # A double holds microseconds exactly for some centuries to come.
    if not 0 <= milliseconds < math.inf:
        raise BadLine(f"not a line of a recording: {milliseconds} is not a time")
    return round(milliseconds * 1000)
