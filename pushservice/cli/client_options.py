"""Options of the commands that are clients: where, which symbols, whom to trust, and as whom.

Must not know: what the commands do with them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pushservice.client.events import QuoteError
from pushservice.client.options import Options, Settings
from pushservice.client.refusals import TLS_FAILED
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.symbols import symbol_fault

#: symbols that are watched where none is named
MOST_RECENT = 60

Command = Callable[..., None]


def client_options(command: Command) -> Command:
    """Gives a command URL and SYMBOL, and the options about trust and tokens."""
    options = [
        click.argument("url", metavar="URL"),
        click.argument("symbols", nargs=-1, metavar="[SYMBOL]..."),
        click.option(
            "--ca",
            type=click.Path(dir_okay=False),
            help="Trust the certificates in this file (PEM) in place of the system's.",
        ),
        click.option("--insecure", is_flag=True, help="Trust whoever answers; for development."),
        click.option(
            "--token",
            envvar="QUOTEPUSH_TOKEN",
            show_envvar=True,
            metavar="TEXT",
            help="A token, where the daemon asks for one. Others can see it on a command line: use"
            " the variable or --token-file.",
        ),
        click.option(
            "--token-file",
            type=click.Path(dir_okay=False),
            help="A file with the token; read again whenever another one is needed.",
        ),
        click.option(
            "--interval",
            type=click.IntRange(0, 60_000),
            default=0,
            metavar="MS",
            help="At most one update of a symbol in so many milliseconds.",
        ),
        click.option("--no-snapshot", is_flag=True, help="Without the last known quotes at first."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def client_settings(given: dict[str, Any]) -> tuple[str, Settings]:
    """The address and all that the Python client is told, taken out of `given`.

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
        raise click.UsageError(_in_words_of_the_shell(str(error))) from None
    ca = settings["ca"]
    if ca is not None and not Path(ca).is_file():
        raise click.UsageError(f"--ca: there is no file {ca}")
    return url, settings


def _read_token(file: str) -> str:
    try:
        token = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise click.ClickException(f"--token-file: can't read {file}: {why}") from None
    if not token:
        raise click.ClickException(f"--token-file: {file} is empty")
    return token


def symbols_of(given: dict[str, Any], url: str, settings: Settings, limit: int) -> list[str]:
    """The symbols that are named; where none is, those that the daemon was quoted lately.

    Says so on the standard error. Raises ClickException.
    """
    symbols = list(dict.fromkeys(given.pop("symbols")))
    for symbol in symbols:
        fault = symbol_fault(symbol)
        if fault is not None:
            raise click.UsageError(f"{symbol!r}: {fault}")
    if symbols:
        return symbols
    from pushservice.cli.recent import NotTold, recent_symbols

    try:
        found = recent_symbols(url, limit, settings["ca"], insecure=settings["insecure"])
    except NotTold as error:
        raise click.ClickException(
            f"no SYMBOL is named, and the daemon does not say which there are: {error}"
            f"{_trust_hint(str(error))}"
        ) from None
    if not found:
        raise click.ClickException(
            "no SYMBOL is named, and the daemon tells of none: no quote came yet, or it tells"
            " nobody; name them, such as AAPL"
        )
    click.echo(f"no SYMBOL is named: these {len(found)} are those that were quoted last", err=True)
    return found


def explained(error: QuoteError) -> str:
    """Why there is no connection, with what to type for that to change."""
    text = _in_words_of_the_shell(error.message or f"the connection ended with {error.code}")
    if error.code == TLS_FAILED:
        return f"{text}{_trust_hint(text)}"
    if error.code in (CloseCode.AUTHENTICATION_FAILED, CloseCode.AUTHENTICATION_TOO_LATE):
        return f"{text} (--token-file FILE or QUOTEPUSH_TOKEN say as whom)"
    return text


def _trust_hint(text: str) -> str:
    if "certificate" not in text:
        return ""
    other = "--insecure trusts whoever answers"
    return f"; {other}" if "--ca" in text else f"; --ca FILE names what to trust, {other}"


def _in_words_of_the_shell(text: str) -> str:
    """What the Python client says, with options in place of its arguments."""
    for argument, option in (("ca=", "--ca"), ("token=", "--token"), ("insecure=", "--insecure")):
        text = text.replace(argument, option)
    return text
