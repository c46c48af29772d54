"""Texts for failed connections and refused handshakes.

Must not know: who connects, or with what library.
"""

from __future__ import annotations

import os
from typing import Final

#: The close code for a failure of TLS, which is never sent (RFC 6455, section 7.4.1).
TLS_FAILED: Final = 1015
#: The close code for a link that broke, or was never made; it is never sent (RFC 6455, 7.4.1).
BROKEN: Final = 1006
#: Stands for a close frame without a code: it says no more than a link that broke.
NO_CODE: Final = 1005
#: Seconds that the server has to answer a close.
CLOSE_TIMEOUT: Final = 2.0
#: Bytes of a message that are taken from the server; it sends less, but for very large payloads.
MAX_MESSAGE: Final = 64 * 1024 * 1024

#: OpenSSL's number for a certificate that is not for the host (X509_V_ERR_HOSTNAME_MISMATCH).
NOT_FOR_HOST: Final = 62
#: Its reasons against a certificate that people meet (X509_verify_cert_error_string(3)).
_UNKNOWN: Final = "it is signed by an authority that is not trusted; name yours with ca="
_REASONS: Final = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is signed by itself; to trust it, name its file with ca=",
    19: _UNKNOWN,
    20: _UNKNOWN,
    21: _UNKNOWN,
    26: "it is not meant for servers",
    NOT_FOR_HOST: "it is not for that name",
    64: "it is not for that address",
}
_LONGEST: Final = 200


def untrusted_text(host: str, error: int, why: str = "") -> str:
    """What is wrong with a host's certificate; `error` is OpenSSL's number, `why` its words."""
    reason = _REASONS.get(error) or why or f"OpenSSL has error {error} against it"
    return f"the certificate of {host} is refused: {reason}"


def no_tls_text(place: str) -> str:
    """That a port answers in something else than TLS."""
    return f"{place} does not speak TLS: is it ws:// in place of wss://?"


def refusal_text(body: bytes | bytearray | None) -> str:
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


def error_text(error: BaseException) -> str:
    """What an exception says, without the brackets and numbers of the system's errors."""
    if isinstance(error, OSError) and error.errno is not None:
        # A resolver's numbers are its own, and below zero; an event loop's words are long.
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error) or type(error).__name__
