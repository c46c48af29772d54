"""Patterns mean what they mean to a real Redis, for any pattern and any channel."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import hiredis
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from redis_process import RedisServer

from pushservice.feed.symbol_reader import IGNORED, SymbolReader
from pushservice.protocol.symbols import symbol_fault


class Connection:
    """A blocking connection to Redis that reads one reply at a time."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def send(self, *words: bytes) -> None:
        parts = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        self._socket.sendall(b"*%d\r\n%b" % (len(words), parts))

    def reply(self) -> object:
        reply = self._reader.gets()
        while reply is False:
            self._reader.feed(self._socket.recv(65536))
            reply = self._reader.gets()
        return reply

    def ask(self, *words: bytes) -> object:
        self.send(*words)
        return self.reply()

    def close(self) -> None:
        self._socket.close()


class Redis:
    """A real Redis asked what it would deliver."""

    def __init__(self, path: str) -> None:
        self.subscriber, self.publisher = Connection(path), Connection(path)

    def matches(self, pattern: bytes, channel: bytes) -> bool:
        """Whether a subscriber of `pattern` gets what is published to `channel`."""
        self.subscriber.ask(b"PSUBSCRIBE", pattern)
        receivers = self.publisher.ask(b"PUBLISH", channel, b"")
        self.subscriber.send(b"PUNSUBSCRIBE", pattern)
        while self.subscriber.reply()[0] != b"punsubscribe":
            pass
        return bool(receivers)

    def deliveries(self, patterns: list[bytes], channel: bytes) -> list[bytes]:
        """The patterns of the messages that a subscriber of all `patterns` gets, in order."""
        for pattern in patterns:
            self.subscriber.ask(b"PSUBSCRIBE", pattern)
        self.publisher.ask(b"PUBLISH", channel, b"")
        self.subscriber.send(b"PUNSUBSCRIBE")
        brought = []
        while (reply := self.subscriber.reply())[0] == b"pmessage":
            brought.append(reply[1])
        while reply[2] > 0:
            reply = self.subscriber.reply()
        return brought


@pytest.fixture(scope="module")
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    asked = Redis(redis_server.path)
    yield asked
    asked.subscriber.close()
    asked.publisher.close()


LITERALS = st.sampled_from("abc.$+|^-").map(lambda char: (char, char))
ESCAPES = st.sampled_from("*?[]\\ab^").map(lambda char: (f"\\{char}", char))
STARS = st.text("abc.", max_size=3).map(lambda text: ("*", text))
MARKS = st.sampled_from("abc.*?[]^-\\").map(lambda char: ("?", char))
MEMBERS = st.one_of(st.sampled_from("abc.|&~*?["), st.sampled_from(["a-b", "b-c", "a-c"]))
CLASSES = st.tuples(
    st.builds(
        "[{}{}]".format,
        st.sampled_from(["", "^"]),
        st.lists(MEMBERS, min_size=1).map("".join),
    ),
    st.sampled_from("abcd.|&~*?[^-"),
)
#: What people write (stars, question marks, usual classes, escapes outside of classes), all ASCII,
#: as a pattern and a channel that it is likely to match.
ORDINARY = st.lists(
    st.one_of(LITERALS, ESCAPES, STARS, MARKS, CLASSES), min_size=1, max_size=6
).map(lambda tokens: tuple(map("".join, zip(*tokens, strict=True))))
# Redis never matches an empty channel, not even by `*`.
CHANNELS = st.text("abcé*?[]^-\\.", min_size=1, max_size=6)
ANYTHING = st.text("abcé*?[]^-\\.|&~", max_size=8)


def matches(pattern: str, channel: str) -> bool:
    """Whether `pattern` brings `channel` in our eyes: then the next pattern's copy is ignored."""
    later = pattern + "*"
    reader = SymbolReader([pattern, later], field="s")
    return reader.read(later.encode(), channel.encode(), b'{"s":"A"}') is IGNORED


@settings(max_examples=1500, deadline=None)
@given(pair=ORDINARY.filter(lambda pair: pair[1]))
def test_an_ordinary_pattern_matches_what_it_matches_in_redis(redis, pair):
    pattern, channel = pair
    expected = redis.matches(pattern.encode(), channel.encode())
    event(f"matched: {expected}")
    assert matches(pattern, channel) is expected


@settings(max_examples=1500, deadline=None)
@example(pattern="[a\\]b]", channel="]")
@example(pattern="[\\a-c]", channel="b")
@example(pattern="[]a]", channel="a")
@example(pattern="[a-]]", channel="^")
@example(pattern="?", channel="é")
@example(pattern="??", channel="é")
@example(pattern="[é]b", channel="éb")
@given(pattern=ANYTHING, channel=CHANNELS)
def test_any_pattern_is_refused_or_matches_what_it_matches_in_redis(redis, pattern, channel):
    expected = redis.matches(pattern.encode(), channel.encode())
    with contextlib.suppress(ValueError):
        assert matches(pattern, channel) is expected


@settings(max_examples=300, deadline=None)
@given(
    before=st.sampled_from("abc.-"),
    symbol=st.text(max_size=6),
    after=st.sampled_from(["", ".x", "s"]),
)
def test_the_star_of_a_delivered_message_gives_the_published_symbol(redis, before, symbol, after):
    try:
        channel = (before + symbol + after).encode()
    except UnicodeEncodeError:
        return
    pattern = f"{before}*{after}"
    brought = redis.deliveries([pattern.encode()], channel)
    assert brought == [pattern.encode()]
    read = SymbolReader([pattern]).read(pattern.encode(), channel, b"")
    assert read == (symbol if symbol_fault(symbol) is None else None)


@settings(max_examples=500, deadline=None)
@given(
    patterns=st.lists(
        st.sampled_from(["*", "a*", "*b", "?*", "[ab]*", "[^a]*", "a.*", "*.b", "*a"]),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    channel=st.text("ab.", min_size=1, max_size=4),
)
def test_a_published_message_counts_exactly_once_however_many_patterns_bring_it(
    redis, patterns, channel
):
    reader = SymbolReader(patterns, regex="(?P<symbol>.+)")
    brought = redis.deliveries([pattern.encode() for pattern in patterns], channel.encode())
    event(f"brought {len(brought)} times")
    read = [reader.read(pattern, channel.encode(), b"") for pattern in brought]
    assert sum(symbol is not IGNORED for symbol in read) == min(1, len(brought))


@settings(max_examples=300, deadline=None)
@example(pattern="[a--b]", channel=b"a", payload=b"")
@given(pattern=ANYTHING, channel=st.binary(max_size=8), payload=st.binary(max_size=20))
def test_no_pattern_channel_or_payload_raises_anything_but_a_refusal(pattern, channel, payload):
    for ways in ({"regex": "(?P<symbol>.+)"}, {"field": "s"}):
        try:
            reader = SymbolReader([pattern, "*"], **ways)
        except ValueError:
            continue
        reader.read(pattern.encode(), channel, payload)
        reader.read(b"*", channel, payload)
