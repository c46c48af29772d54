"""Asks a daemon over HTTP which symbols were quoted last, as its page does.

Must not know: what the symbols are for, or WebSockets. Own code: one blocking GET, for which the
standard library is enough.
"""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

#: bytes of an answer that are read, and seconds until there is one
_MAX_BYTES: Final = 1_000_000
_TIMEOUT_S: Final = 10.0


class SymbolsUnavailable(Exception):
    """The daemon gave no list of symbols; the text says why."""


def recent_symbols(
    url: str, limit: int, ca: str | Path | None = None, *, insecure: bool = False
) -> list[str]:
    """At most `limit` symbols of the daemon at `url`, the most recently quoted first. It blocks.

    `url` is a client's, `ws://` or `wss://`; `ca` and `insecure` say whom to trust. Raises
    SymbolsUnavailable.
    """
    address = urlsplit(url)
    host = address.hostname or ""
    connection: http.client.HTTPConnection
    try:
        if address.scheme == "wss":
            trust = ssl.create_default_context(cafile=ca)
            if insecure:
                trust.check_hostname = False
                trust.verify_mode = ssl.CERT_NONE
            connection = http.client.HTTPSConnection(
                host, address.port or 443, timeout=_TIMEOUT_S, context=trust
            )
        else:
            connection = http.client.HTTPConnection(host, address.port or 80, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", f"/symbols.json?limit={limit}")
            with connection.getresponse() as answer:
                body = answer.read(_MAX_BYTES)
        finally:
            connection.close()
    except ssl.SSLCertVerificationError as error:
        raise SymbolsUnavailable(
            f"the certificate of {host} is refused: {error.verify_message}"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise SymbolsUnavailable(f"no answer from {host}:{address.port or ''}: {why}") from None
    if answer.status != http.client.OK:
        raise SymbolsUnavailable(f"it answers {answer.status} {answer.reason}: it serves no page")
    try:
        found = json.loads(body)
    except ValueError:
        raise SymbolsUnavailable("its answer is not JSON") from None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise SymbolsUnavailable("its answer is not a list of symbols")
    return found
