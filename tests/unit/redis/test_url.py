"""Redis URLs: which are accepted, how errors read, and that errors show no password."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pushservice.redis.url import RedisAddress, RedisTLS, redis_address

ONE = (("a", 26379),)
TWO = (("a", 26379), ("b", 7))


def refusal(text: str) -> str:
    """The error for an address that must be refused."""
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
        ("unix://:secret@/run/r.sock", RedisAddress(path="/run/r.sock", password="secret")),
        (
            "unix://bot:s%40@/run/r.sock",
            RedisAddress(path="/run/r.sock", user="bot", password="s@"),
        ),
        ("rediss://host", RedisAddress("host", tls=True)),
        ("rediss://[::1]:7000/", RedisAddress("::1", 7000, tls=True)),
        ("REDISS://Host", RedisAddress("host", tls=True)),
        (
            "rediss://bot:secret@host:1",
            RedisAddress("host", 1, user="bot", password="secret", tls=True),
        ),
        ("redis+sentinel://a/rates", RedisAddress(sentinels=ONE, service="rates")),
        ("redis+sentinel://a:26379,b:7/rates", RedisAddress(sentinels=TWO, service="rates")),
        ("redis+sentinel://a,b:7,a:26379/rates/", RedisAddress(sentinels=TWO, service="rates")),
        (
            "redis+sentinel://[::1],[::2]:7/my%20rates",
            RedisAddress(sentinels=(("::1", 26379), ("::2", 7)), service="my rates"),
        ),
        (
            "redis+sentinel://bot:s%2C%40@a,b:7/rates",
            RedisAddress(sentinels=TWO, service="rates", user="bot", password="s,@"),
        ),
        (
            "rediss+sentinel://:secret@a/rates",
            RedisAddress(sentinels=ONE, service="rates", password="secret", tls=True),
        ),
    ],
)
def test_a_url_is_parsed(text, address):
    assert redis_address(text) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost", "'localhost' is not understood; use redis://"),
        ("http://host", "'http://host' is not understood; use redis://"),
        ("redis+tls://host", "is not understood; use redis://"),
        ("rediss://", "names no host; use redis://"),
        ("rediss://host/3", "names a database, and pub/sub is the same in all of them: leave out"),
        ("redis://a,b", "names several hosts, which only sentinels may be: use redis+sentinel://"),
        ("redis+sentinel:///rates", "names no host"),
        ("redis+sentinel://a,/rates", "names no host"),
        ("redis+sentinel://a,:7/rates", "names no host"),
        ("redis+sentinel://a,b:0/rates", "has port 0; use 1 to 65535"),
        ("redis+sentinel://a,b:x/rates", "has a host or a port that can't be one"),
        ("redis+sentinel://a", "does not say which master: put the name by which the sentinels"),
        ("redis+sentinel://a/", "such as redis+sentinel://host,host/mymaster"),
        ("redis+sentinel://a/rates/0", "names a database, and pub/sub is the same in all of them"),
        ("redis+sentinel://a/rates?db=0", "has a ? or # part, which means nothing here"),
        ("redis+sentinel://bot@a/rates", "has a user and no password; use user:password@"),
        ("unix://bot@/run/redis.sock", "has a user and no password; use user:password@"),
        ("unix://:x@host/run/redis.sock", "needs an absolute path after three slashes"),
        ("unix://:x@", "or after a login, such as unix://:password@/run/redis/redis.sock"),
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
def test_a_wrong_url_is_refused_with_the_reason(text, words):
    assert words in refusal(text)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (RedisAddress("host", 7000), "redis://host:7000"),
        (RedisAddress("::1"), "redis://[::1]:6379"),
        (RedisAddress(path="/run/redis.sock"), "unix:///run/redis.sock"),
        (RedisAddress("host", password="secret"), "redis://:***@host:6379"),
        (RedisAddress("host", user="bot", password="secret"), "redis://bot:***@host:6379"),
        (RedisAddress("host", tls=True), "rediss://host:6379"),
        (
            RedisAddress(path="/r.sock", user="b:t", password="secret"),
            "unix://b%3At:***@/r.sock",
        ),
        (
            RedisAddress(sentinels=TWO, service="my rates", password="secret"),
            "redis+sentinel://:***@a:26379,b:7/my%20rates",
        ),
        (
            RedisAddress(sentinels=(("::1", 7),), service="rates", tls=True),
            "rediss+sentinel://[::1]:7/rates",
        ),
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
        "rediss://bot:secret@host/3",
        "unix://bot:secret@run/redis.sock",
        "unix://bot:secret@/run/redis.sock#x",
        "redis+sentinel://bot:secret@a,b",
        "redis+sentinel://bot:secret@a,b:x/rates",
        "redis+sentinel://bot:secret@a/rates/3",
        "redis+sentinel://bot:secret@a,c:secret@b/rates/0",
        "redis+sentinel://bot:x,secret@a:x/rates",
        "redis://bot:secret@a,b",
        "redis+tls://bot:secret@host",
    ],
)
def test_no_error_shows_a_password(text):
    assert "secret" not in refusal(text)


def test_an_address_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RedisAddress("host").password = "other"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"cert": Path("c")}, "a certificate for Redis needs its key too"),
        ({"key": Path("k")}, "a key for Redis needs its certificate too"),
    ],
)
def test_a_certificate_needs_its_key_and_a_key_its_certificate(files, words):
    with pytest.raises(ValueError, match=words):
        RedisTLS(**files)
    assert RedisTLS(Path("ca"), Path("c"), Path("k")).key == Path("k")
