"""Addresses of Redis, and the URLs of --redis that name them.

Must not know: how connections are made. Every error is a ValueError whose text says what is wrong
and what would be right, and never shows a password.

Own code: urllib splits URLs with one host; sentinels need several. redis-py's URLs
have none either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis listens: a TCP address, a Unix socket, or the master that sentinels name.

    TCP has `host` and `port`, a Unix socket has `path`, and with `sentinels`, pairs of a host and a
    port, it is the master that they know by the name `service`. `user` and `password` are the login
    at Redis; a sentinel gets it too, but only if it demands a login. `tls` applies to Redis and the
    sentinels alike.
    """

    host: str | None = None
    port: int = REDIS_PORT
    path: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str | None = None

    def __str__(self) -> str:
        """The address as a URL without its password, for logs."""
        login = "" if self.password is None else f"{quote(self.user or '')}:***@"
        if self.path is not None:
            return f"unix://{login}{self.path}"
        secure = "s" if self.tls else ""
        if self.service is not None:
            places = ",".join(host_port(host, port) for host, port in self.sentinels)
            return f"redis{secure}+sentinel://{login}{places}/{quote(self.service)}"
        return f"redis{secure}://{login}{host_port(self.host or '', self.port)}"


@dataclass(frozen=True, slots=True)
class RedisTLS:
    """Files for TLS to Redis.

    `ca` holds the certificates of the authorities to trust, None stands for those of the system;
    `cert` and `key` are the client certificate, for a Redis that demands one. The files are not
    read here. Raises ValueError when only one of `cert` and `key` is given.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, other = ("key", "certificate") if self.cert is None else ("certificate", "key")
            raise ValueError(f"a {given} for Redis needs its {other} too")


def host_port(host: str, port: int) -> str:
    """A host and a port as they are written in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


#: the value of --redis that asks for a private redis-server
EMBEDDED: Final = "embedded"

_REDIS_FORMS: Final = (
    "redis://[[user]:password@]host[:port], the same with rediss:// for TLS,"
    " unix://[[user]:password@]/path,"
    " redis+sentinel://[[user]:password@]host[:port],host[:port]/service"
    " or the same with rediss+sentinel://, or embedded"
)
_SECURE: Final = {
    "redis": False,
    "rediss": True,
    "redis+sentinel": False,
    "rediss+sentinel": True,
}


def redis_address(text: str) -> RedisAddress | None:
    """The coercer of --redis: an address, or None for `embedded`."""
    if text == EMBEDDED:
        return None
    scheme, _, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme not in _SECURE and scheme != "unix":
        raise ValueError(f"{_masked(text)!r} is not understood; use {_REDIS_FORMS}")
    # Not urlsplit: it knows only one host.
    parts = re.fullmatch(r"(?://([^/?#]*))?([^?#]*)(.*)", rest, re.DOTALL)
    assert parts is not None, "every part may be empty"
    netloc, path, extras = parts[1] or "", parts[2], parts[3]
    login, _, places = netloc.rpartition("@")
    if scheme == "unix":
        if places or not path.startswith("/"):
            raise ValueError(
                f"{_masked(text)!r} needs an absolute path after three slashes,"
                " such as unix:///run/redis/redis.sock,"
                " or after a login, such as unix://:password@/run/redis/redis.sock"
            )
        _refuse_extras(text, extras)
        user, password = _login(text, login)
        return RedisAddress(path=unquote(path), user=user, password=password)
    if scheme.endswith("+sentinel"):
        sentinels = tuple(_host(text, each, SENTINEL_PORT) for each in places.split(","))
        service = _service(text, path)
        _refuse_extras(text, extras)
        user, password = _login(text, login)
        return RedisAddress(
            user=user,
            password=password,
            tls=_SECURE[scheme],
            sentinels=tuple(dict.fromkeys(sentinels)),
            service=service,
        )
    if "," in places:
        raise ValueError(
            f"{_masked(text)!r} names several hosts, which only sentinels may be:"
            f" use redis+sentinel://host,host/service"
        )
    host, port = _host(text, places, REDIS_PORT)
    if path.strip("/"):
        raise _database(text, "the host")
    _refuse_extras(text, extras)
    user, password = _login(text, login)
    return RedisAddress(host, port, user=user, password=password, tls=_SECURE[scheme])


def _host(text: str, one: str, default: int) -> tuple[str, int]:
    """The host and the port of one server."""
    try:
        url = urlsplit(f"//{one}")
        host, port = url.hostname, url.port
    except ValueError:
        # urllib's message may contain the password.
        raise ValueError(
            f"{_masked(text)!r} has a host or a port that can't be one; use {_REDIS_FORMS}"
        ) from None
    if not host:
        raise ValueError(f"{_masked(text)!r} names no host; use {_REDIS_FORMS}")
    if port == 0:
        raise ValueError(f"{_masked(text)!r} has port 0; use 1 to 65535")
    return host, port or default


def _service(text: str, path: str) -> str:
    """The name of the master that sentinels watch."""
    name, _, more = path.removeprefix("/").partition("/")
    if not name:
        raise ValueError(
            f"{_masked(text)!r} does not say which master: put the name by which the sentinels know"
            " it after the hosts, such as redis+sentinel://host,host/mymaster"
        )
    if more:
        raise _database(text, "the master's name")
    return unquote(name)


def _login(text: str, login: str) -> tuple[str | None, str | None]:
    """User and password, either of which may be None."""
    user, _, password = login.partition(":")
    if user and not password:
        raise ValueError(f"{_masked(text)!r} has a user and no password; use user:password@")
    return unquote(user) or None, unquote(password) or None


def _database(text: str, last: str) -> ValueError:
    return ValueError(
        f"{_masked(text)!r} names a database, and pub/sub is the same in all of them:"
        f" leave out what follows {last}"
    )


def _refuse_extras(text: str, extras: str) -> None:
    if extras.strip("?#"):
        raise ValueError(f"{_masked(text)!r} has a ? or # part, which means nothing here")


def _masked(text: str) -> str:
    """`text` without what may be a login, however malformed.

    A login is all before the last `@`. Without one it is what follows a `?`, a `#`, or a colon that
    is not before a port.
    """
    scheme, slashes, rest = text.partition("://")
    known = slashes and scheme.replace("+", "").isalpha()
    begin = f"{scheme}{slashes}" if known else ""
    _, at, place = text.rpartition("@")
    if at:
        return f"{begin}***@{place}"
    rest = text.removeprefix(begin)
    found = _MAYBE_LOGIN.search(rest)
    return text if found is None else f"{begin}{rest[: found.end()]}***"


#: a colon that stands neither within an IPv6 address, nor before a port, nor after `unix`; ? and #
_MAYBE_LOGIN: Final = re.compile(
    r"(?<!^unix):(?![0-9]{1,5}(?:[,/?#]|$))(?![0-9a-fA-F:.]*\])|[?#]", re.ASCII
)
