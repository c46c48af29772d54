"""`quotepush watch`: live quotes of a daemon, as a table on the terminal or as lines for a pipe.

Must not know: how quotes come, or how they are shown. It imports most modules when it runs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from pushservice.cli.client_options import (
    MAX_RECENT,
    client_options,
    client_settings,
    explain_error,
    symbols_of,
)
from pushservice.cli.status_line import count_of

_EXAMPLES = """\b
Examples:
  quotepush watch wss://localhost:8008 AAPL 600519.SH --ca certs/dev.crt
  quotepush watch wss://localhost:8008 --insecure           the symbols quoted last
  quotepush watch wss://quotes.example AAPL --token-file token.txt
  quotepush watch wss://quotes.example AAPL --json | jq .d.last
  quotepush watch wss://quotes.example AAPL --raw --count 10

Keys: q quits, the arrows scroll. A narrow terminal shows fewer columns. CHANGE and % are since the
open, where payloads have one. LATENCY is the time from the daemon to here, LAG the time from the
publisher's own ts to here; both include the difference of the clocks. The exit status is 0, also
after q and Ctrl-C, and 1 when the daemon refuses or was never reached."""


@click.command(short_help="Show a daemon's quotes as they come.", epilog=_EXAMPLES)
@client_options
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each quote.")
@click.option("--raw", is_flag=True, help="Print each payload as it was published, one a line.")
@click.option("--price", metavar="FIELD", help="The payload's field that holds the price.")
@click.option("--count", type=click.IntRange(1), help="Stop after this many quotes.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Stop after this time.")
def watch(*, as_json: bool, raw: bool, price: str | None, **given: Any) -> None:
    """Watch each SYMBOL at the daemon at URL, which is wss://HOST:PORT or ws://HOST:PORT.

    Shows a live table; where the output is not a terminal, a line of JSON for each quote, with the
    payload byte for byte. Without a SYMBOL it shows the symbols that were quoted last. It
    reconnects when the connection is lost.
    """
    import asyncio

    from pushservice.cli.screen import Screen
    from pushservice.cli.watch_views import json_line, print_lines, raw_line, show
    from pushservice.client.events import QuoteError

    if as_json and raw:
        raise click.UsageError("--json and --raw exclude each other")
    url, settings = client_settings(given)
    symbols = symbols_of(given, url, settings, MAX_RECENT)
    screen = Screen()
    if not (as_json or raw or screen.usable):
        click.echo(
            "the output is not a terminal: printing a line of JSON for each quote, as --json",
            err=True,
        )
        as_json = True
    ends = {"count": given["count"], "seconds": given["seconds"]}
    try:
        if as_json or raw:
            line = json_line if as_json else raw_line
            seen = asyncio.run(print_lines(url, settings, symbols, line, **ends))
        else:
            seen = asyncio.run(show(url, settings, symbols, screen, price_field=price, **ends))
    except BrokenPipeError:
        # The reader of the standard output closed it; the interpreter still flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except QuoteError as error:
        raise click.ClickException(explain_error(error)) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if not (as_json or raw):
        quotes, gaps = count_of(seen.quotes, "quote"), count_of(seen.gaps, "gap")
        click.echo(f"{quotes}, {seen.merged:,} merged, {gaps}", err=True)
    if not seen.opened:
        raise click.ClickException("there was no connection")
