"""Redis addresses: what is understood, how each refusal reads, and that passwords stay secret."""

from __future__ import annotations

import dataclasses

import pytest

from pushservice.redisurl import RedisAddress, redis_address


def refusal(text: str) -> str:
    """The words in which an address must be refused."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the text
        redis_address(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("embedded", None),
        ("redis://host", RedisAddress("host")),
        ("redis://host/", RedisAddress("host")),
        ("redis://host:7000", RedisAddress("host", 7000)),
        ("redis://[::1]:7000", RedisAddress("::1", 7000)),
        ("redis://:secret@host", RedisAddress("host", password="secret")),
        ("redis://bot:secret@host", RedisAddress("host", user="bot", password="secret")),
        (
            "redis://b%40t:s%2F%3a%E2%82%ac@host:1",
            RedisAddress("host", 1, user="b@t", password="s/:€"),
        ),
        ("unix:///run/redis.sock", RedisAddress(path="/run/redis.sock")),
        ("unix:///run/my%20redis", RedisAddress(path="/run/my redis")),
    ],
)
def test_an_address_is_understood(text, address):
    assert redis_address(text) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost", "'localhost' is not understood; use redis://"),
        ("rediss://host", "'rediss://host' is not understood; use redis://"),
        ("", "'' is not understood; use redis://"),
        ("redis://", "'redis://' names no host; use redis://"),
        ("redis://:6379", "names no host"),
        ("redis://host:0", "has port 0; use 1 to 65535"),
        ("redis://host:70000", "has a host or a port that can't be one; use redis://"),
        ("redis://host:x", "has a host or a port that can't be one"),
        ("redis://[::1", "has a host or a port that can't be one; use redis://"),
        ("redis://host/3", "names a database, and pub/sub is the same in all of them: leave out"),
        ("redis://host?db=3", "has a ? or # part, which means nothing here"),
        ("redis://host#3", "has a ? or # part, which means nothing here"),
        ("redis://bot@host", "has a user and no password; use user:password@"),
        ("redis://bot:@host", "has a user and no password; use user:password@"),
        ("unix://run/redis.sock", "needs an absolute path after three slashes, such as unix:///"),
        ("unix:redis.sock", "needs an absolute path after three slashes"),
        ("unix:///a?b", "has a ? or # part, which means nothing here"),
        ("unix:///a#b", "has a ? or # part, which means nothing here"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused_in_words(text, words):
    assert words in refusal(text)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (RedisAddress("host", 7000), "redis://host:7000"),
        (RedisAddress("::1"), "redis://[::1]:6379"),
        (RedisAddress(path="/run/redis.sock"), "unix:///run/redis.sock"),
        (RedisAddress("host", password="secret"), "redis://:***@host:6379"),
        (RedisAddress("host", user="bot", password="secret"), "redis://bot:***@host:6379"),
    ],
)
def test_an_address_is_shown_as_a_url_without_its_password(address, text):
    assert str(address) == text
    assert "secret" not in repr(address)
    assert address.password is None or redis_address(text.replace("***", "secret")) == address


@pytest.mark.parametrize(
    "text",
    [
        "http://bot:secret@host",
        "redis://bot:secret@",
        "redis://bot:secret@host:0",
        "redis://bot:secret@host:x",
        "redis://bot:secret@host/3",
        "redis://bot:secret@host?x",
        "redis://bot:s@secret@host?x",
        "redis://bot:secret@[::1",
        "redis://bot:x/secret@host",
        "redis://bot:?secret@host",
        "redis://bot:x#secret@host",
        "unix://bot:secret@host/path",
        "redis:bot:secret@host",
        "bot:secret@host",
        "redis:/bot:secret@host",
        "redis://bot:12/secret@host",
        "redis://bot:secret/x@host",
        "redis://bot:secret@h℀st",
    ],
)
def test_no_refusal_shows_a_password(text):
    assert "secret" not in refusal(text)


def test_an_address_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RedisAddress("host").password = "other"
