"""Where a handshake carries a token: in its headers, or for browsers in a subprotocol's name.

Must not know: what a token is, or who looks at it.

Own code: the subprotocol with a token is this protocol's; the rest is a few lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

#: A browser can set no header: it offers a subprotocol of this name with the token behind it.
SUBPROTOCOL_PREFIX: Final = "quotepush.auth."
#: The URL's parameter, where that is allowed.
PARAMETER: Final = "token"
_SCHEME: Final = "bearer"
_IN_TEXT: Final = re.compile(re.escape(SUBPROTOCOL_PREFIX) + r"[^\s,\"']+")


class BadCredentials(Exception):
    """The handshake carries none that can be read, or several; the text says what would be right.

    It holds nothing of what was sent.
    """


class Offer(NamedTuple):
    """What a client offers: the subprotocols without tokens among them, and the token, if any."""

    subprotocols: tuple[str, ...]
    token: str | None


def without_tokens(subprotocols: Sequence[str]) -> tuple[str, ...]:
    """The subprotocols among those that a handshake offers that carry no token."""
    return tuple(name for name in subprotocols if not name.startswith(SUBPROTOCOL_PREFIX))


def without_token(text: str) -> str:
    """A text that quotes what was offered, without the tokens in it."""
    return _IN_TEXT.sub(SUBPROTOCOL_PREFIX + "…", text)


def offer(
    headers: Mapping[str, str],
    subprotocols: Sequence[str],
    parameters: Mapping[str, Sequence[str]],
    in_url: bool,
) -> Offer:
    """What a handshake offers. Names of `headers` are in lower case. Raises BadCredentials.

    A token in the URL is taken where `in_url` says so, and refused in words elsewhere: URLs are
    written to logs all along the way.
    """
    tokens = [
        name.removeprefix(SUBPROTOCOL_PREFIX)
        for name in subprotocols
        if name.startswith(SUBPROTOCOL_PREFIX)
    ]
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, token = authorization.strip().partition(" ")
        if scheme.lower() != _SCHEME or not token.strip():
            raise BadCredentials("Authorization is understood as: Bearer TOKEN")
        tokens.append(token.strip())
    in_parameters = parameters.get(PARAMETER, ())
    if in_parameters and not in_url:
        raise BadCredentials(
            "a token does not belong into the URL: send it as Authorization: Bearer, as the"
            f" subprotocol {SUBPROTOCOL_PREFIX}TOKEN, or with the op auth"
        )
    tokens.extend(in_parameters)
    if len(tokens) > 1:
        raise BadCredentials("one token is enough, and several were sent")
    if tokens and not tokens[0]:
        raise BadCredentials("the token is empty")
    return Offer(without_tokens(subprotocols), tokens[0] if tokens else None)
