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
        "who may connect: none, everybody; token, who has a JWT; redis, who has a ticket that is"
        " kept in Redis",
        None,
        one_of("none", "token", "redis"),
        placeholder="none|token|redis",
        section="auth",
    ),
    Option(
        "token-key",
        "key that tokens are verified with: a public key or certificate in PEM, or the secret of"
        " HS256",
        placeholder="FILE",
        section="auth",
        path=True,
    ),
    Option(
        "token-jwks",
        "keys that tokens are verified with, as a JSON Web Key Set; read again when a token names"
        " a key that is not there",
        placeholder="FILE",
        section="auth",
        path=True,
    ),
    Option(
        "token-algorithms",
        "algorithm of tokens that is taken; when not given, those that the keys are for",
        None,
        one_of("HS256", "RS256", "ES256", "EdDSA"),
        placeholder="HS256|RS256|ES256|EdDSA",
        repeatable=True,
        section="auth",
    ),
    Option("token-audience", "what a token's aud must name", placeholder="TEXT", section="auth"),
    Option("token-issuer", "what a token's iss must be", placeholder="TEXT", section="auth"),
    Option(
        "token-leeway",
        "how far the clocks of whoever issues tokens may be off",
        "10",
        seconds(0, 600),
        "seconds",
        "SECONDS",
        section="auth",
    ),
    Option(
        "token-in-url",
        "take tokens from the URL's parameter `token` too, where they are written to logs on the"
        " way",
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
        "delay that tokens may ask quotes to be sent with; whoever asks for one gets the next"
        " longer",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        repeatable=True,
        section="auth",
    ),
    Option(
        "delay-buffer",
        "memory for quotes that wait for --delays; what does not fit is told as gaps",
        "67108864",
        whole_number(65_536, 1024**4),
        "bytes",
        "N",
        section="auth",
    ),
    Option(
        "origins",
        "web page that browsers may connect from, such as https://example.org, or * for any; when"
        " not given, the daemon's own",
        None,
        allowed_origin,
        placeholder="ORIGIN",
        repeatable=True,
        section="auth",
    ),
    Option(
        "require-origin",
        "refuse clients that name no origin, as programs other than browsers do",
        flag=True,
        section="auth",
    ),
)
