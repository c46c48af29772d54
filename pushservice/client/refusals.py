"""Why there is no connection, in words, and what a refused handshake says.

Must not know: who connects, or with what library.
"""

from __future__ import annotations

import os
from typing import Final

#: The close code for a failure of TLS, which is never sent (RFC 6455, section 7.4.1).
TLS_FAILED: Final = 1015
#: Bytes of a message that are taken from the server; it sends less, but for very large payloads.
MAX_MESSAGE: Final = 64 * 1024 * 1024

#: OpenSSL's reasons against a chain that an authority of one's own mends (verify errors).
_UNKNOWN_AUTHORITY: Final = frozenset({18, 19, 20, 21})
_LONGEST: Final = 200


def untrusted(host: str, why: str, error: int) -> str:
    """What is wrong with a host's certificate, and what may be done; `error` is OpenSSL's."""
    hint = "; name the authority with ca=" if error in _UNKNOWN_AUTHORITY else ""
    return f"the certificate of {host} is refused: {why}{hint}"


def told_by(body: bytes | bytearray | None) -> str:
    """The first line of a refusal's body, shortened, if it is text for people."""
    if not body:
        return ""
    text = body[: 4 * _LONGEST].decode("utf-8", "replace").strip()
    line = text.splitlines()[0] if text else ""
    if line.startswith("<"):
        return ""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
    )[:_LONGEST]


def retry_after(value: str | None) -> float | None:
    """The seconds of a header Retry-After (RFC 9110, 10.2.3); None for a date, or anything else."""
    if value is None or not value.strip().isdecimal() or len(value) > 9:
        return None
    return float(value)


def in_words(error: BaseException) -> str:
    """What an exception says, without the brackets and numbers of the system's errors."""
    if isinstance(error, OSError) and error.errno is not None:
        # A resolver's numbers are its own, and below zero; an event loop's words are long.
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error) or type(error).__name__
