"""`quotepush token`: keys and tokens made and looked at, tickets written, and all of them revoked.

Must not know: how tokens are signed, or how Redis is reached. Its commands import what they need
when they run.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from pushservice.auth.identity import (
    MAX_DELAY_S,
    MAX_SYMBOLS,
    MAX_TEXT,
    Identity,
    Refused,
    is_name,
    time_of,
)
from pushservice.protocol.commands import MAX_INTERVAL_MS
from pushservice.protocol.symbols import symbol_fault

#: seconds that a token or a ticket may live: ten years
_MAX_LIFETIME_S: Final = 10 * 366 * 86_400
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIMES: Final = ("exp", "nbf", "iat")
_ALGORITHMS: Final = click.Choice(["HS256", "EdDSA"])
_AS_DAEMON: Final = "As the daemon's option."
_PATH: Final = click.Path(path_type=Path)

_EXAMPLES: Final = """\b
Examples:
  quotepush token key sign.pem > verify.pem
  quotepush token make --key sign.pem --user ann --symbols '*.SH' --expires 1h > token.txt
  quotepush token show --key verify.pem < token.txt
  quotepush token ticket --redis redis://localhost --user ann
  quotepush token revoke --redis redis://localhost --user ann"""

Command = Callable[..., None]


@click.group(epilog=_EXAMPLES)
def token() -> None:
    """Make and show tokens, write tickets, and revoke both."""


# -- options that several have --------------------------------------------------------------------


def _checked(check: Callable[[Any], Any]) -> Callable[[Any, click.Parameter, Any], Any]:
    """A callback for an option whose value `check` makes another of, or refuses by a ValueError."""

    def callback(_context: Any, option: click.Parameter, given: Any) -> Any:
        try:
            if isinstance(given, tuple):
                return tuple(check(each) for each in given)
            return None if given is None else check(given)
        except ValueError as error:
            raise click.ClickException(f"{option.opts[0]}: {error}") from None

    return callback


def _duration(text: str) -> int:
    """Seconds."""
    parts = re.fullmatch(r"([0-9]{1,10})([smhd])", text, re.ASCII)
    length = int(parts[1]) * _UNITS[parts[2]] if parts else 0
    if not 1 <= length <= _MAX_LIFETIME_S:
        raise ValueError(f"{text!r} is no time such as 90s, 15m, 1h or 7d, up to ten years")
    return length


def _pattern(text: str) -> str:
    literal = text.removeprefix("!").replace("*", "")
    fault = symbol_fault(literal) if literal else None
    if not text.removeprefix("!") or fault is not None:
        raise ValueError(f"{text!r} matches no symbol: {fault or 'it is empty'}")
    return text


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text!r} has not 1 to {MAX_TEXT} printable characters")
    return text


def _number(value: float) -> float:
    if math.isnan(value):
        # It is in every range.
        raise ValueError("nan is no number of seconds")
    return value


def _whole(high: int) -> click.IntRange:
    return click.IntRange(0, high)


def _rights(command: Command) -> Command:
    """Adds the options that say who may see what."""
    options = [
        click.option("--user", callback=_checked(_name), help="Whom it stands for; logs show it."),
        click.option(
            "--id",
            callback=_checked(_name),
            help="By what it can be revoked; made up if not given.",
        ),
        click.option(
            "--symbols",
            callback=_checked(_pattern),
            multiple=True,
            metavar="PATTERN",
            help="What may be seen, such as '*.SH', or '!BTC/*' for what may not."
            " May be given more than once; everything if not given.",
        ),
        click.option("--max-symbols", type=_whole(MAX_SYMBOLS), help="Symbols on one connection."),
        click.option(
            "--min-interval",
            type=_whole(MAX_INTERVAL_MS),
            help="Milliseconds between two updates of a symbol.",
        ),
        click.option(
            "--delay",
            type=click.FloatRange(0, MAX_DELAY_S),
            callback=_checked(_number),
            help="Seconds by which quotes come late.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _redis(command: Command) -> Command:
    """Adds the options that say where Redis is."""
    options = [
        click.option(
            "--redis",
            envvar="QUOTEPUSH_REDIS",
            show_envvar=True,
            required=True,
            metavar="URL",
            help="The Redis where tickets and revocations are kept."
            " Others can see a password on a command line: use the variable.",
        ),
        click.option("--redis-ca", envvar="QUOTEPUSH_REDIS_CA", type=_PATH, help=_AS_DAEMON),
        click.option("--redis-cert", envvar="QUOTEPUSH_REDIS_CERT", type=_PATH, help=_AS_DAEMON),
        click.option("--redis-key", envvar="QUOTEPUSH_REDIS_KEY", type=_PATH, help=_AS_DAEMON),
        click.option(
            "--prefix",
            default="quotepush:",
            show_default=True,
            help="What keys and channels in Redis begin with.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _send_to_redis(given: dict[str, Any], *commands: list[str | bytes | int]) -> None:
    """Have Redis do `commands`; a failure is told in one line."""
    from pushservice.redis.one_shot import RequestFailed, execute
    from pushservice.redis.url import RedisTLS, redis_address

    try:
        address = redis_address(given["redis"])
        if address is None:
            raise ValueError("embedded is the daemon's own Redis; give the URL of one for tickets")
        tls = RedisTLS(given["redis_ca"], given["redis_cert"], given["redis_key"])
        execute(address, commands, tls)
    except (ValueError, RequestFailed) as error:
        raise click.ClickException(str(error)) from None


def _claims_of(given: dict[str, Any]) -> dict[str, Any]:
    """The claims about rights, of those that were given."""
    claims = {name: given[name] for name in ("max_symbols", "min_interval", "delay")}
    claims["symbols"] = list(given["symbols"]) or None
    return {name: value for name, value in claims.items() if value is not None}


# -- keys and tokens ------------------------------------------------------------------------------


@token.command()
@click.argument("file", type=_PATH)
@click.option("--algorithm", type=_ALGORITHMS, default="EdDSA", show_default=True)
def key(file: Path, algorithm: str) -> None:
    """Make a key in FILE, which only you can read then.

    For HS256 it is a secret, which the daemon needs too. For EdDSA it is a private key, which it
    does not: the public one, for the daemon, is printed.
    """
    from pushservice.auth.token_keys import make_key

    try:
        public = make_key(file, algorithm)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if public is not None:
        click.echo(public, nl=False)


@token.command()
@click.option("--key", type=_PATH, required=True, help="The secret, or the private key in PEM.")
@click.option("--algorithm", type=_ALGORITHMS, help="That of the key, and no other.")
@click.option("--expires", callback=_checked(_duration), default="1h", show_default=True)
@click.option("--audience", help="The claim aud.")
@click.option("--issuer", help="The claim iss.")
@_rights
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
        signed = sign(claims | _claims_of(given), found)
        if len(signed) > MAX_TOKEN:
            raise ValueError(f"the token would have {len(signed)} characters; {MAX_TOKEN} may be")
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(signed)


@token.command()
@click.argument("text", metavar="[TOKEN]", default="-")
@click.option("--key", type=_PATH, help="Verify it by the key in this file.")
@click.option("--jwks", type=_PATH, help="Verify it by the set of keys in this file.")
@click.option("--algorithm", multiple=True, help="Accept this one; several may be given.")
@click.option("--audience", help="What the claim aud has to say.")
@click.option("--issuer", help="What the claim iss has to say.")
def show(text: str, key: Path | None, jwks: Path | None, **given: Any) -> None:
    """Print what a token says, and whether that is true.

    Without TOKEN, or for a -, it is read from the standard input, where nobody else sees it. The
    exit status is 1 when it does not verify. Without a key nothing is verified.
    """
    from pushservice.auth.tokens import unverified

    # A token that somebody copied may have come with space, or a newline, around.
    text = (sys.stdin.read(1_000_000) if text == "-" else text).strip()
    try:
        header, claims = unverified(text)
    except Refused as error:
        raise click.ClickException(str(error)) from None
    for line in _format_token(header, claims):
        click.echo(line)
    if key is None and jwks is None:
        click.echo("verifies: not looked at, without a key")
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
        raise NotImplementedError("nothing waits here")


def _format_token(header: dict[str, Any], claims: dict[str, Any]) -> Iterator[str]:
    # As ASCII, so that nothing in a token speaks to the terminal.
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


# -- tickets and revocations ----------------------------------------------------------------------


@token.command()
@click.option("--expires", callback=_checked(_duration), default="60s", show_default=True)
@click.option(
    "--once/--lasting", default=True, show_default=True, help="For one use, or for any number."
)
@_rights
@_redis
def ticket(expires: int, *, once: bool, **given: Any) -> None:
    """Write a ticket to Redis and print it; it can't be printed again."""
    from pushservice.auth.tickets import MOST_VALUE, ticket_key

    made = secrets.token_urlsafe(32)
    value = {
        "user": given["user"],
        "id": given["id"] or secrets.token_hex(8),
        "iat": int(time.time()),
        "exp": int(time.time()) + expires,
        "once": once,
        **_claims_of(given),
    }
    text = json.dumps({name: each for name, each in value.items() if each is not None})
    if len(text) > MOST_VALUE:
        raise click.ClickException(f"the ticket would have {len(text)} bytes; {MOST_VALUE} may be")
    _send_to_redis(given, ["SET", ticket_key(made, given["prefix"]), text, "EX", expires])
    click.echo(made)


@token.command()
@click.option(
    "--user", callback=_checked(_name), help="Refuse all that was issued to this user until now."
)
@click.option("--id", callback=_checked(_name), help="Refuse the token or the ticket with this id.")
@_redis
def revoke(user: str | None, id: str | None, **given: Any) -> None:
    """Revoke one token, or all of a user; connections that were opened with them are closed."""
    from pushservice.auth.revocation_feed import revoke_channel, revoked_hash

    if (user is None) == (id is None):
        raise click.ClickException("say whose tokens: --user, or which one: --id")
    kind, name = ("token", id) if user is None else ("user", user)
    prefix = given["prefix"]
    _send_to_redis(
        given,
        ["MULTI"],
        ["HSET", revoked_hash(prefix), f"{kind}:{name}", f"{time.time():.3f}"],
        ["PUBLISH", revoke_channel(prefix), json.dumps({kind: name})],
        ["EXEC"],
    )
    click.echo(f"revoked: {kind} {name}")
