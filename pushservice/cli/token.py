"""`quotepush token`: makes keys and tokens, and shows what a token says.

Must not know: how tokens are signed. Its commands import most modules when they run.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from pushservice.auth.identity import Identity, Refused, time_of
from pushservice.cli.token_options import PATH, checked, claims_of, duration, rights_options
from pushservice.cli.token_redis import revoke, ticket

_TIMES: Final = ("exp", "nbf", "iat")
_ALGORITHMS: Final = click.Choice(["HS256", "EdDSA"])

_EXAMPLES: Final = """\b
Examples:
  quotepush token key sign.pem > verify.pem
  quotepush token make --key sign.pem --user ann --symbols '*.SH' --expires 1h > token.txt
  quotepush token show --key verify.pem < token.txt
  quotepush token ticket --redis redis://localhost --user ann
  quotepush token revoke --redis redis://localhost --user ann"""


@click.group(epilog=_EXAMPLES)
def token() -> None:
    """Make and show tokens, write tickets, and revoke both."""


token.add_command(ticket)
token.add_command(revoke)


@token.command()
@click.argument("file", type=PATH)
@click.option("--algorithm", type=_ALGORITHMS, default="EdDSA", show_default=True)
def key(file: Path, algorithm: str) -> None:
    """Make a key in FILE, with permissions for you alone.

    For HS256 it is a secret, which the daemon needs too. For EdDSA it is a private key, which the
    daemon does not need: the public key, for the daemon, is printed.
    """
    from pushservice.auth.token_keys import make_key

    try:
        public = make_key(file, algorithm)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if public is not None:
        click.echo(public, nl=False)


@token.command()
@click.option(
    "--key", type=PATH, required=True, help="File of the secret, or of the private key in PEM."
)
@click.option("--algorithm", type=_ALGORITHMS, help="Algorithm that the key must be for.")
@click.option("--expires", callback=checked(duration), default="1h", show_default=True)
@click.option("--audience", help="The claim aud.")
@click.option("--issuer", help="The claim iss.")
@rights_options
def make(key: Path, algorithm: str | None, expires: int, **given: Any) -> None:
    """Print a signed token."""
    from pushservice.auth.token_keys import MADE, signing_key_in
    from pushservice.auth.tokens import MAX_TOKEN, sign

    now = int(time.time())
    claims = {
        "sub": given["user"],
        "jti": given["id"] or secrets.token_hex(8),
        "iat": now,
        "exp": now + expires,
        "aud": given["audience"],
        "iss": given["issuer"],
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    try:
        found = signing_key_in(key, algorithm)
        if found.algorithm not in MADE:
            raise ValueError(
                f"{key} is a key for {found.algorithm}; tokens are made with {' and '.join(MADE)}"
            )
        signed = sign(claims | claims_of(given), found)
        if len(signed) > MAX_TOKEN:
            raise ValueError(
                f"the token would have {len(signed)} characters; at most {MAX_TOKEN} are allowed"
            )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(signed)


@token.command()
@click.argument("text", metavar="[TOKEN]", default="-")
@click.option("--key", type=PATH, help="Verify it with the key in this file.")
@click.option("--jwks", type=PATH, help="Verify it with the JSON Web Key Set in this file.")
@click.option(
    "--algorithm", multiple=True, help="Accept this algorithm; may be given more than once."
)
@click.option("--audience", help="Audience that the claim aud must name.")
@click.option("--issuer", help="Issuer that the claim iss must be.")
def show(text: str, key: Path | None, jwks: Path | None, **given: Any) -> None:
    """Print the header and claims of a token, and whether it verifies.

    Without TOKEN, or with -, the token is read from the standard input, where others can't see it.
    The exit status is 1 when it does not verify. Without a key nothing is verified.
    """
    from pushservice.auth.tokens import unverified

    # A copied token may have white space around it.
    text = (sys.stdin.read(1_000_000) if text == "-" else text).strip()
    try:
        header, claims = unverified(text)
    except Refused as error:
        raise click.ClickException(str(error)) from None
    for line in _format_token(header, claims):
        click.echo(line)
    if key is None and jwks is None:
        click.echo("verifies: not checked, without a key")
        return
    refusal = _verify_error(text, key, jwks, given)
    click.echo(f"verifies: {'yes' if refusal is None else f'no: {refusal}'}")
    if refusal is not None:
        sys.exit(1)


def _verify_error(
    text: str, key: Path | None, jwks: Path | None, given: dict[str, Any]
) -> Exception | None:
    """Why a token does not verify; None where it does."""
    from pushservice.auth.tokens import TokenAuthenticator

    try:
        authenticator = TokenAuthenticator(
            _SystemClock(), key, jwks, given["algorithm"], given["audience"], given["issuer"]
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    found: list[Identity | Refused] = []
    authenticator.verify(text, found.append)
    return found[0] if isinstance(found[0], Refused) else None


class _SystemClock:
    """The time of this machine."""

    def seconds(self) -> float:
        return time.time()

    def callLater(self, delay: float, callable: Callable[..., object]) -> Any:
        raise NotImplementedError("verifying a token sets no timer")


def _format_token(header: dict[str, Any], claims: dict[str, Any]) -> Iterator[str]:
    # As ASCII, so that a token can't send control characters to the terminal.
    yield "header:"
    for name, value in header.items():
        yield f"  {json.dumps(name)}: {json.dumps(value)}"
    yield "claims:"
    for name, value in claims.items():
        said = f" ({_format_time(value)})" if name in _TIMES else ""
        yield f"  {json.dumps(name)}: {json.dumps(value)}{said}"


def _format_time(value: object) -> str:
    try:
        at = time_of({"it": value}, "it")
    except Refused:
        return "no time"
    assert at is not None, "it is there"
    away = at - time.time()
    length = _format_duration(abs(away))
    when = f"in {length}" if away > 0 else f"{length} ago"
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC, {when}"


def _format_duration(seconds: float) -> str:
    for name, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}s"
    return f"{seconds:.0f} seconds"
