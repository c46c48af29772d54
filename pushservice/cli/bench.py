"""`quotepush bench`: a load of clients on a daemon of one's own, and what that came to.

Must not know: how clients connect, or how times are counted. It imports what it needs when it runs.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from pushservice.cli.client_options import client_options, client_settings, explained, symbols_of
from pushservice.cli.load import Load
from pushservice.cli.status_line import StatusLine

_MOST_CLIENTS: Final = 5000
_MOST_SECONDS: Final = 600
#: symbols that are subscribed where none is named
_MOST_RECENT: Final = 1000

_EXAMPLES = """\b
Examples:
  quotepush bench wss://localhost:8008 AAPL --ca certs/dev.crt
  quotepush bench wss://localhost:8008 --insecure --clients 500 --seconds 30
  quotepush bench wss://localhost:8008 --insecure --clients 200 --symbols-each 10
  quotepush bench ws://localhost:8008 AAPL --json | jq .latency_ms.p99

Quotes have to come from somewhere: quotepush feed --rate 1000. Latency is from the daemon's receive
time, in whole milliseconds, to a client here; where the two machines' clocks differ, that is in it.
One process has all the clients, so that past some 50,000 quotes a second it is its own limit: see
own CPU. docs/performance.rst has the larger benchmark. The exit status is 0, also after Ctrl-C, and
1 when no client was served."""


@click.command(short_help="Put a load of clients on a daemon of yours.", epilog=_EXAMPLES)
@client_options
@click.option(
    "--clients",
    type=click.IntRange(1, _MOST_CLIENTS),
    default=100,
    show_default=True,
    help="Clients that connect.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, _MOST_SECONDS, min_open=True),
    default=10,
    show_default=True,
    help="How long quotes are counted, once all are connected.",
)
@click.option(
    "--symbols-each",
    type=click.IntRange(1),
    metavar="N",
    help="Symbols that each client subscribes, going round; all when not given.",
)
@click.option(
    "--connect-rate",
    type=click.FloatRange(0.1, 1000),
    default=50,
    show_default=True,
    help="New connections a second.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="Do not say every second how it goes.")
@click.option(
    "--yes-this-is-mine",
    "mine",
    is_flag=True,
    help="The daemon is on another machine, and mine to put a load on.",
)
def bench(*, as_json: bool, quiet: bool, mine: bool, **given: Any) -> None:
    """Have many clients watch each SYMBOL at the daemon at URL, and say how that went.

    Connects them one after the other, counts for some seconds, and leaves. A daemon on another
    machine is left alone unless it is said to be yours. Without a SYMBOL it takes what the daemon
    was quoted last.
    """
    import asyncio

    from pushservice.cli.benching import is_loopback, make_room, put_load, shares
    from pushservice.client.events import QuoteError

    url, settings = client_settings(given)
    if not mine and not is_loopback(url):
        raise click.ClickException(
            "that daemon is not on this machine: a load on somebody else's is an attack;"
            " if it is yours, say --yes-this-is-mine"
        )
    symbols = symbols_of(given, url, settings, _MOST_RECENT)
    clients = given["clients"]
    status = StatusLine(sys.stderr, quiet=quiet)
    try:
        make_room(clients)
        load = asyncio.run(
            put_load(
                url,
                settings,
                shares(symbols, given["symbols_each"], clients),
                seconds=given["seconds"],
                connect_rate=given["connect_rate"],
                say=status.say,
            )
        )
    except QuoteError as error:
        raise click.ClickException(explained(error)) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    status.end()
    if load.most_connected:
        _print(load, as_json=as_json)
    for note in load.notes():
        click.echo(f"note: {note}", err=True)
    if not load.most_connected:
        raise click.ClickException("no client was served")


def _print(load: Load, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(load.told(), indent=2))
    else:
        rows = list(load.rows())
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            click.echo(f"{name.ljust(width)}  {value}")
