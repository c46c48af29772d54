"""`quotepush token ticket` and `revoke`: what Redis keeps of tickets and revocations.

Must not know: how Redis is reached. Its commands import most modules when they run.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, Final

import click

from pushservice.cli.token_options import (
    PATH,
    Command,
    checked,
    claims_of,
    duration,
    printable_name,
    rights_options,
)

_AS_DAEMON: Final = "As the daemon's option."


def _redis(command: Command) -> Command:
    """Adds the options about Redis to a command."""
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
        click.option("--redis-ca", envvar="QUOTEPUSH_REDIS_CA", type=PATH, help=_AS_DAEMON),
        click.option("--redis-cert", envvar="QUOTEPUSH_REDIS_CERT", type=PATH, help=_AS_DAEMON),
        click.option("--redis-key", envvar="QUOTEPUSH_REDIS_KEY", type=PATH, help=_AS_DAEMON),
        click.option(
            "--prefix",
            default="quotepush:",
            show_default=True,
            help="Prefix of keys and channels in Redis.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _send_to_redis(given: dict[str, Any], *commands: list[str | bytes | int]) -> None:
    """Send `commands` to Redis; raises ClickException where that fails."""
    from pushservice.redis.one_shot import RequestFailed, execute
    from pushservice.redis.url import RedisTLS, redis_address

    try:
        address = redis_address(given["redis"])
        if address is None:
            raise ValueError(
                "embedded is the daemon's own Redis; give the URL of the Redis for tickets"
            )
        tls = RedisTLS(given["redis_ca"], given["redis_cert"], given["redis_key"])
        execute(address, commands, tls)
    except (ValueError, RequestFailed) as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.option("--expires", callback=checked(duration), default="60s", show_default=True)
@click.option(
    "--once/--lasting",
    default=True,
    show_default=True,
    help="For one use, or for any number of uses.",
)
@rights_options
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
        **claims_of(given),
    }
    text = json.dumps({name: each for name, each in value.items() if each is not None})
    if len(text) > MOST_VALUE:
        raise click.ClickException(
            f"the ticket would have {len(text)} bytes; at most {MOST_VALUE} are allowed"
        )
    _send_to_redis(given, ["SET", ticket_key(made, given["prefix"]), text, "EX", expires])
    click.echo(made)


@click.command()
@click.option(
    "--user",
    callback=checked(printable_name),
    help="Revoke all tokens and tickets issued to this user until now.",
)
@click.option(
    "--id", callback=checked(printable_name), help="Revoke the token or the ticket with this id."
)
@_redis
def revoke(user: str | None, id: str | None, **given: Any) -> None:
    """Revoke one token, or all of a user, and close the connections that they opened."""
    from pushservice.auth.revocation_feed import revoke_channel, revoked_hash

    if (user is None) == (id is None):
        raise click.ClickException(
            "give either --user, for all tokens of a user, or --id, for one token"
        )
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
