"""Where a Redis is, and how that is written: the URLs of --redis.

Must not know: how connections are made. Every refusal is a ValueError whose text names what was
wrong and what would be right, and never a password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis listens: TCP `host` and `port`, or the Unix socket `path`; never both."""

    host: str | None = None
    port: int = 6379
    path: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """The address as a URL without its password, for logs."""
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host
        login = "" if self.password is None else f"{self.user or ''}:***@"
        return f"redis://{login}{host}:{self.port}"


#: the value of --redis that asks for a private redis-server
EMBEDDED: Final = "embedded"

_REDIS_FORMS: Final = "redis://[[user]:password@]host[:port], unix:///path, or embedded"


def redis_address(text: str) -> RedisAddress | None:
    """The coercer of --redis: an address, or None for `embedded`."""
    if text == EMBEDDED:
        return None
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        # The library's own words may repeat the password.
        raise ValueError(
            f"{_masked(text)!r} has a host or a port that can't be one; use {_REDIS_FORMS}"
        ) from None
    if url.scheme == "unix":
        if url.netloc or not url.path.startswith("/"):
            raise ValueError(
                f"{_masked(text)!r} needs an absolute path after three slashes,"
                " such as unix:///run/redis/redis.sock"
            )
        _refuse_extras(text, url.query, url.fragment)
        return RedisAddress(path=unquote(url.path))
    if url.scheme != "redis":
        raise ValueError(f"{_masked(text)!r} is not understood; use {_REDIS_FORMS}")
    if not url.hostname:
        raise ValueError(f"{_masked(text)!r} names no host; use {_REDIS_FORMS}")
    if port == 0:
        raise ValueError(f"{_masked(text)!r} has port 0; use 1 to 65535")
    if url.path.strip("/"):
        raise ValueError(
            f"{_masked(text)!r} names a database, and pub/sub is the same in all of them:"
            " leave out what follows the host"
        )
    _refuse_extras(text, url.query, url.fragment)
    if url.username and not url.password:
        raise ValueError(f"{_masked(text)!r} has a user and no password; use user:password@")
    return RedisAddress(
        host=url.hostname,
        port=port or 6379,
        user=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
    )


def _refuse_extras(text: str, query: str, fragment: str) -> None:
    if query or fragment:
        raise ValueError(f"{_masked(text)!r} has a ? or # part, which means nothing here")


def _masked(text: str) -> str:
    """`text` without what may be a login: all before its last `@`, however broken."""
    _, at, place = text.rpartition("@")
    if not at:
        return text
    scheme, slashes, _ = text.partition("://")
    return f"{scheme}{slashes}***@{place}" if slashes and scheme.isalpha() else f"***@{place}"
