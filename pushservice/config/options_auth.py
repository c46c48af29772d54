"""Options about authentication and authorization: tokens, tickets, delays, origins.

Must not know: where values come from (command line, environment, file), or how tokens are verified.
"""

from __future__ import annotations

from typing import Final

from pushservice.auth.origins import allowed_origin
from pushservice.config.coercers import one_of, seconds, whole_number
from pushservice.config.option import Option

AUTH: Final[tuple[Option, ...]] = (
    Option(
        "auth",
        "who may connect: none, everybody; token, clients with a JWT; redis, clients with a"
        " ticket that is kept in Redis",
        None,
        one_of("none", "token", "redis"),
        placeholder="none|token|redis",
        section="auth",
    ),
    Option(
        "token-key",
        "key that verifies tokens: a public key or certificate in PEM, or the secret of HS256",
        placeholder="FILE",
        section="auth",
        path=True,
    ),
    Option(
        "token-jwks",
        "keys that verify tokens, as a JSON Web Key Set; the file is read again when a token"
        " names a key that is not in it",
        placeholder="FILE",
        section="auth",
        path=True,
    ),
    Option(
        "token-algorithms",
        "algorithm that tokens may be signed with; when not given, those that the keys are for",
        None,
        one_of("HS256", "RS256", "ES256", "EdDSA"),
        placeholder="HS256|RS256|ES256|EdDSA",
        repeatable=True,
        section="auth",
    ),
    Option(
        "token-audience",
        "audience that a token's aud must name",
        placeholder="TEXT",
        section="auth",
    ),
    Option("token-issuer", "issuer that a token's iss must be", placeholder="TEXT", section="auth"),
    Option(
        "token-leeway",
        "most that the clock of a token's issuer may differ from this machine's",
        "10",
        seconds(0, 600),
        "seconds",
        "SECONDS",
        section="auth",
    ),
    Option(
        "token-in-url",
        "also accept tokens in the URL's parameter `token`, although proxies may write URLs to"
        " their logs",
        flag=True,
        section="auth",
    ),
    Option(
        "auth-timeout",
        "time a client has to authenticate before it is closed with 4004",
        "10",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
        section="auth",
    ),
    Option(
        "delays",
        "delay of quotes that a token may ask for; a token that asks for a delay in between gets"
        " the next longer one",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        repeatable=True,
        section="auth",
    ),
    Option(
        "delay-buffer",
        "memory for quotes held back by --delays; a quote that does not fit is announced as a gap",
        "67108864",
        whole_number(65_536, 1024**4),
        "bytes",
        "N",
        section="auth",
    ),
    Option(
        "origins",
        "origin of web pages that browsers may connect from, such as https://example.org, or *"
        " for any; when not given, the daemon's own",
        None,
        allowed_origin,
        placeholder="ORIGIN",
        repeatable=True,
        section="auth",
    ),
    Option(
        "require-origin",
        "refuse clients that send no Origin header, as programs other than browsers do",
        flag=True,
        section="auth",
    ),
)
