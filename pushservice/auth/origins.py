"""From which web pages browsers may connect: the Origin of a handshake against those allowed.

Must not know: connections, or who the user is. A browser connects for pages of any site, but always
tells the true site (RFC 6454; RFC 6455, section 10.2). Other programs can send any Origin: this
check does not restrict them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

#: Allows every page.
ANY: Final = "*"
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LONGEST: Final = 1024
_BRACKETED: Final = re.compile(r"\[[^\[\]]*\](:[0-9]*)?")


class Origin(NamedTuple):
    """A scheme, a host in lower case, and a port, which is the scheme's own where none is named."""

    scheme: str
    host: str
    port: int | None


def parsed(text: str) -> Origin:
    """The origin that `text` is: `scheme://host[:port]` and nothing more. Raises ValueError."""
    if len(text) > _LONGEST or not text.isascii() or any(char <= " " for char in text):
        raise ValueError(_REFUSAL.format(text[:80]))
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(_REFUSAL.format(text[:80])) from None
    if parts.path or parts.query or parts.fragment or "?" in text or "#" in text:
        raise ValueError(_REFUSAL.format(text[:80]))
    if not host or not parts.scheme or "@" in parts.netloc or parts.netloc.endswith(":"):
        raise ValueError(_REFUSAL.format(text[:80]))
    # The library ignores text around an address in brackets: x[::1]y is not [::1].
    if "[" in parts.netloc and _BRACKETED.fullmatch(parts.netloc) is None:
        raise ValueError(_REFUSAL.format(text[:80]))
    return Origin(parts.scheme, host, _PORTS.get(parts.scheme) if port is None else port)


_REFUSAL: Final = "{!r} is no origin, such as https://example.org or https://example.org:8443"


def allowed_origin(text: str) -> Origin | str:
    """A coercer: an origin, or * for any. Raises ValueError."""
    return ANY if text == ANY else parsed(text)


class Origins:
    """Which pages may connect.

    None named stands for the daemon's own: a page whose host and port are those that the request
    itself asks for, whatever its scheme, since TLS may end at a proxy.
    """

    def __init__(self, allowed: Sequence[Origin | str] = (), required: bool = False) -> None:
        """With `required` a request without an Origin, which is no browser's, is refused too."""
        self._any = ANY in allowed
        self._allowed = frozenset(origin for origin in allowed if isinstance(origin, Origin))
        self._own = not allowed
        self._required = required

    def fault(self, origin: str | None, host: str | None) -> str | None:
        """Why a request with these headers is refused; None where it may pass."""
        if origin is None:
            return "an Origin is required here" if self._required else None
        if self._any:
            return None
        if origin == "null":
            # A sandboxed frame or a file, of whatever site.
            return "pages without an origin may not connect"
        try:
            asking = parsed(origin)
        except ValueError:
            return "the Origin can't be understood"
        if asking in self._allowed or (self._own and _same_place(asking, host)):
            return None
        return "pages of this origin may not connect"


def _same_place(asking: Origin, host: str | None) -> bool:
    if host is None or asking.scheme not in ("http", "https"):
        return False
    try:
        # A Host header has no scheme; without a port it means the scheme's own.
        own = parsed(f"{asking.scheme}://{host}")
    except ValueError:
        return False
    return own == asking
