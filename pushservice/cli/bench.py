"""`quotepush bench`: puts a load of clients on a daemon and prints the results.

Must not know: how clients connect, or how times are counted. It imports most modules when it runs.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from pushservice.cli.bench_results import Results
from pushservice.cli.client_options import (
    client_options,
    client_settings,
    explain_error,
    symbols_of,
)
from pushservice.cli.status_line import StatusLine

_MAX_CLIENTS: Final = 5000
_MAX_SECONDS: Final = 600
#: symbols that are subscribed when none is named
_MAX_RECENT: Final = 1000

_EXAMPLES = """\b
Examples:
  quotepush bench wss://localhost:8008 AAPL --ca certs/dev.crt
  quotepush bench wss://localhost:8008 --insecure --clients 500 --seconds 30
  quotepush bench wss://localhost:8008 --insecure --clients 200 --symbols-each 10
  quotepush bench ws://localhost:8008 AAPL --json | jq .latency_ms.p99

The daemon needs quotes, for example from quotepush feed --rate 1000. Latency is the time from the
daemon's receive time, in whole milliseconds, to a client here; it includes the difference of the
two machines' clocks. All clients run in one process, which reaches its own limit at some 50,000
quotes a second: see own CPU. docs/performance.rst has the larger benchmark. The exit status is 0,
also after Ctrl-C, and 1 when no client connected."""


@click.command(short_help="Measure a daemon of yours with many clients.", epilog=_EXAMPLES)
@client_options
@click.option(
    "--clients",
    type=click.IntRange(1, _MAX_CLIENTS),
    default=100,
    show_default=True,
    help="Number of clients.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, _MAX_SECONDS, min_open=True),
    default=10,
    show_default=True,
    help="Time for which quotes are counted, once all clients are connected.",
)
@click.option(
    "--symbols-each",
    type=click.IntRange(1),
    metavar="N",
    help="Symbols per client, taken round robin; all when not given.",
)
@click.option(
    "--connect-rate",
    type=click.FloatRange(0.1, 1000),
    default=50,
    show_default=True,
    help="New connections a second.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
@click.option(
    "--yes-this-is-mine",
    "mine",
    is_flag=True,
    help="Confirm that a daemon on another machine is yours to test.",
)
def bench(*, as_json: bool, quiet: bool, mine: bool, **given: Any) -> None:
    """Measure the daemon at URL with many clients that watch each SYMBOL.

    Connects the clients one after the other, counts quotes for some seconds, and disconnects. It
    refuses a daemon on another machine unless you confirm that it is yours. Without a SYMBOL, the
    clients watch the symbols that were quoted last.
    """
    import asyncio

    from pushservice.cli.bench_clients import (
        is_loopback,
        raise_file_limit,
        run_load,
        symbols_per_client,
    )
    from pushservice.client.events import QuoteError

    url, settings = client_settings(given)
    if not mine and not is_loopback(url):
        raise click.ClickException(
            "the daemon is not on this machine, and a load on somebody else's is an attack;"
            " if it is yours, add --yes-this-is-mine"
        )
    symbols = symbols_of(given, url, settings, _MAX_RECENT)
    clients = given["clients"]
    status = StatusLine(sys.stderr, quiet=quiet)
    try:
        raise_file_limit(clients)
        results = asyncio.run(
            run_load(
                url,
                settings,
                symbols_per_client(symbols, given["symbols_each"], clients),
                seconds=given["seconds"],
                connect_rate=given["connect_rate"],
                say=status.say,
            )
        )
    except QuoteError as error:
        raise click.ClickException(explain_error(error)) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    status.end()
    if results.most_connected:
        _print(results, as_json=as_json)
    for note in results.notes():
        click.echo(f"note: {note}", err=True)
    if not results.most_connected:
        raise click.ClickException("no client connected")


def _print(results: Results, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(results.as_dict(), indent=2))
    else:
        rows = list(results.rows())
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            click.echo(f"{name.ljust(width)}  {value}")
