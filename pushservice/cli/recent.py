"""Which symbols a daemon was quoted lately, as its page asks for them, over HTTP.

Must not know: who wants to know, or WebSockets.
"""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

#: bytes of an answer that are read, and seconds until there is one
_MOST: Final = 1_000_000
_PATIENCE: Final = 10.0


class NotTold(Exception):
    """The daemon did not say; the text says why in words."""


def recent_symbols(
    url: str, limit: int, ca: str | Path | None = None, *, insecure: bool = False
) -> list[str]:
    """At most `limit` symbols of the daemon at `url`, the most recently quoted first. It blocks.

    `url` is a client's, `ws://` or `wss://`; `ca` and `insecure` say whom to trust. Raises NotTold.
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
                host, address.port or 443, timeout=_PATIENCE, context=trust
            )
        else:
            connection = http.client.HTTPConnection(host, address.port or 80, timeout=_PATIENCE)
        try:
            connection.request("GET", f"/symbols.json?limit={limit}")
            with connection.getresponse() as answer:
                body = answer.read(_MOST)
        finally:
            connection.close()
    except ssl.SSLCertVerificationError as error:
        raise NotTold(f"the certificate of {host} is refused: {error.verify_message}") from None
    except (OSError, http.client.HTTPException) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise NotTold(f"no answer from {host}:{address.port or ''}: {why}") from None
    if answer.status != http.client.OK:
        raise NotTold(f"it answers {answer.status} {answer.reason}: it serves no page")
    try:
        found = json.loads(body)
    except ValueError:
        raise NotTold("what it answers is no JSON") from None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise NotTold("what it answers are no symbols")
    return found
