"""Options of the commands that are clients: URL, symbols, certificates and tokens.

Must not know: what the commands do with them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pushservice.client.connection_errors import TLS_FAILED
from pushservice.client.events import QuoteError
from pushservice.client.options import Options, Settings
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.symbols import symbol_fault

#: symbols that are watched when none is named
MAX_RECENT = 60

Command = Callable[..., None]


def client_options(command: Command) -> Command:
    """Adds URL, SYMBOL, and the options about certificates and tokens to a command."""
    options = [
        click.argument("url", metavar="URL"),
        click.argument("symbols", nargs=-1, metavar="[SYMBOL]..."),
        click.option(
            "--ca",
            type=click.Path(dir_okay=False),
            help="Trust the certificates in this file (PEM) instead of the system's.",
        ),
        click.option(
            "--insecure",
            is_flag=True,
            help="Do not verify the daemon's certificate; for development.",
        ),
        click.option(
            "--token",
            envvar="QUOTEPUSH_TOKEN",
            show_envvar=True,
            metavar="TEXT",
            help="Token for a daemon that requires one. Others can see a command line: use the"
            " variable or --token-file instead.",
        ),
        click.option(
            "--token-file",
            type=click.Path(dir_okay=False),
            help="File with the token; it is read again whenever a new token is needed.",
        ),
        click.option(
            "--interval",
            type=click.IntRange(0, 60_000),
            default=0,
            metavar="MS",
            help="At most one update of a symbol in this many milliseconds.",
        ),
        click.option(
            "--no-snapshot", is_flag=True, help="Do not begin with the last known quotes."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def client_settings(given: dict[str, Any]) -> tuple[str, Settings]:
    """The URL and the settings of the Python client, taken out of `given`.

    Raises ClickException, which says what would be right.
    """
    url = given.pop("url")
    token, file = given.pop("token"), given.pop("token_file")
    settings: Settings = {
        "token": token or None,
        "ca": given.pop("ca"),
        "insecure": given.pop("insecure"),
        "interval": given.pop("interval") / 1000,
        "snapshot": not given.pop("no_snapshot"),
    }
    if file is not None:
        _read_token(file)
        settings["token"] = lambda _why: _read_token(file)
    try:
        Options(url, **settings)
    except ValueError as error:
        raise click.UsageError(_with_option_names(str(error))) from None
    ca = settings["ca"]
    if ca is not None and not Path(ca).is_file():
        raise click.UsageError(f"--ca: there is no file {ca}")
    return url, settings


def _read_token(file: str) -> str:
    try:
        token = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise click.ClickException(f"--token-file: can't read {file}: {why}") from None
    if not token:
        raise click.ClickException(f"--token-file: {file} is empty")
    return token


def symbols_of(given: dict[str, Any], url: str, settings: Settings, limit: int) -> list[str]:
    """The symbols that are named; when none is, those that were quoted last at the daemon.

    The standard error tells which is the case. Raises ClickException.
    """
    symbols = list(dict.fromkeys(given.pop("symbols")))
    for symbol in symbols:
        fault = symbol_fault(symbol)
        if fault is not None:
            raise click.UsageError(f"{symbol!r}: {fault}")
    if symbols:
        return symbols
    from pushservice.cli.recent_symbols import SymbolsUnavailable, recent_symbols

    try:
        found = recent_symbols(url, limit, settings["ca"], insecure=settings["insecure"])
    except SymbolsUnavailable as error:
        raise click.ClickException(
            f"no SYMBOL is named, and the daemon gives no list: {error}{_trust_hint(str(error))}"
        ) from None
    if not found:
        raise click.ClickException(
            "no SYMBOL is named, and the daemon's list of symbols is empty: no quote came yet, or"
            " it keeps the list to itself; name symbols, such as AAPL"
        )
    click.echo(f"no SYMBOL is named: taking the {len(found)} that were quoted last", err=True)
    return found


def explain_error(error: QuoteError) -> str:
    """Why there is no connection, with the options that may help."""
    text = _with_option_names(error.message or f"the connection ended with {error.code}")
    if error.code == TLS_FAILED:
        return f"{text}{_trust_hint(text)}"
    if error.code in (CloseCode.AUTHENTICATION_FAILED, CloseCode.AUTHENTICATION_TOO_LATE):
        return f"{text} (give a token with --token-file FILE or QUOTEPUSH_TOKEN)"
    return text


def _trust_hint(text: str) -> str:
    if "certificate" not in text:
        return ""
    other = "--insecure trusts any certificate"
    return f"; {other}" if "--ca" in text else f"; --ca FILE names what to trust, {other}"


def _with_option_names(text: str) -> str:
    """An error of the Python client, with options in place of its arguments."""
    for argument, option in (("ca=", "--ca"), ("token=", "--token"), ("insecure=", "--insecure")):
        text = text.replace(argument, option)
    return text
