"""`quotepush`: the command and its overview, with `check` and `completion`.

Must not know: how the daemon works. Commands import most modules when they run, so that each of
them starts fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from pushservice import __version__
from pushservice.cli.bench import bench
from pushservice.cli.daemon_options import daemon_option
from pushservice.cli.feed import feed
from pushservice.cli.record import record
from pushservice.cli.token import token
from pushservice.cli.watch import watch
from pushservice.config.coercers import AUTO
from pushservice.config.config import Config
from pushservice.config.files import Sources
from pushservice.config.layers import SECTIONS
from pushservice.config.options import CONFIG_FILE, OPTIONS
from pushservice.config.settings import Settings

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


#: the overview: headings, and the commands below each
_GROUPS: Final = {
    "Quotes": ("feed", "watch", "record", "bench"),
    "The daemon": ("check", "token"),
    "This shell": ("completion",),
}
_FIRST_STEPS: Final = """\b
First steps, in three terminals:
  twistd -n quotepush --redis redis://localhost
  quotepush feed
  quotepush watch wss://localhost:8008 --insecure

quotepush COMMAND --help has examples of each. The daemon's own options are in
twistd quotepush --help."""


class _Overview(click.Group):
    """A group whose commands are listed under headings."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for heading, names in _GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (name.ljust(width), self.commands[name].get_short_help_str(80))
                        for name in names
                    ]
                )


@click.group(cls=_Overview, context_settings=_CONTEXT, epilog=_FIRST_STEPS)
@click.version_option(__version__, prog_name="quotepush", message="%(prog)s %(version)s")
def main() -> None:
    """Live market quotes from Redis to WebSocket clients: tools beside the daemon.

    The daemon itself is started with twistd: see `twistd quotepush --help`.
    """


for command in (token, feed, record, watch, bench):
    main.add_command(command)

_COMPLETION_EXAMPLES: Final = """\b
Examples:
  quotepush completion bash > ~/.local/share/bash-completion/completions/quotepush
  eval "$(quotepush completion zsh)"      a line for ~/.zshrc
  quotepush completion fish > ~/.config/fish/completions/quotepush.fish"""


@main.command(short_help="Print the completion script of a shell.", epilog=_COMPLETION_EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes commands, options and files."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, "click knows these shells"
    click.echo(made(main, {}, "quotepush", "_QUOTEPUSH_COMPLETE").source())


def _daemon_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds every option of the daemon to a command, which gets each as a keyword."""
    for option in reversed((CONFIG_FILE, *OPTIONS)):
        command = daemon_option(option)(command)
    return command


_CHECK_EXAMPLES: Final = """\b
Examples:
  quotepush check --config quotepush.toml
  quotepush check --redis rediss://redis.example --cert fullchain.pem --key privkey.pem"""


@main.command(short_help="Say whether the configuration is good.", epilog=_CHECK_EXAMPLES)
@_daemon_options
def check(**given: Any) -> None:
    """Print the value of every option, who set it, and all errors of the configuration.

    Takes the options of the daemon, and reads the same environment and the same file, but starts
    nothing. The exit status is 0 when the daemon would accept the configuration, and 1 when not.
    """
    configs = given.pop(CONFIG_FILE.name)
    typed = {name.replace("_", "-"): value for name, value in given.items() if value}
    settings = Sources(typed, configs[-1] if configs else None).load()
    for line in _table(settings):
        click.echo(line)
    for warning in settings.warnings:
        click.echo(f"warning: {warning}", err=True)
    errors = [*settings.errors, *_faults(settings)]
    if not settings.errors:
        for note in _notes(settings.config):
            click.echo(note)
    for error in errors:
        click.echo(f"error: {error}", err=True)
    if errors:
        sys.exit(1)
    click.echo("the configuration is good")


def _table(settings: Settings) -> Iterator[str]:
    """The lines of the table of all options; secrets are masked."""
    rows = [("SECTION", "OPTION", "VALUE", "ORIGIN")] + [
        (each.option.section or "-", each.option.name, each.shown() or "-", each.origin)
        for each in sorted(settings.settings, key=lambda each: SECTIONS.index(each.option.section))
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=False))
        yield "  ".join((*padded, row[3]))
    yield ""


def _faults(settings: Settings) -> Iterator[str]:
    """What files and programs of this machine would keep the daemon from starting.

    All of it, whatever other errors there are, except for what may follow from those.
    """
    from twisted.internet import reactor

    from pushservice.redis.tls import check_files
    from pushservice.service.startup import outlets_here
    from pushservice.tls.factory import server_options
    from pushservice.tls.material import read_certificates

    def refusals(
        options: Sequence[str], call: Callable[..., object], *arguments: object
    ) -> Iterator[str]:
        try:
            call(*arguments)
        except ValueError as error:
            yield settings.with_origins(str(error), options)

    # Check the pairs that are complete: where a key is missing, that is another error.
    certificates, keys = settings["cert"].value or (), settings["key"].value or ()
    for pair in zip(map(Path, certificates), map(Path, keys), strict=False):
        yield from refusals(("cert", "key"), server_options, *pair)
    authority = settings["client-ca"].value
    if authority is not None:
        yield from refusals(("client-ca",), read_certificates, Path(authority))
    config = settings.partial_config
    if config is not None:
        if config.redis_over_tls:
            of_redis = ("redis-ca", "redis-cert", "redis-key")
            yield from refusals(of_redis, check_files, config.redis_tls)
        if config.auth == "token":
            of_tokens = ("token-key", "token-jwks", "token-algorithms")
            yield from refusals(of_tokens, _look_at_token_keys, config)
        for error in _unusable_endpoints(config):
            yield settings.with_origins(error, ("listen", "interface", "port"))
    if not settings.errors and not settings.config.redis:
        # With errors it is not known whether the embedded Redis is meant.
        yield from _no_redis_server()
    yield from refusals((), outlets_here, reactor)


def _look_at_token_keys(config: Config) -> None:
    from twisted.internet.task import Clock

    from pushservice.service.access import token_authenticator

    token_authenticator(Clock(), config)


def _no_redis_server() -> Iterator[str]:
    from pushservice.redis.embedded import NoRedisServer, find_redis_server

    try:
        find_redis_server()
    except NoRedisServer as error:
        yield str(error)


def _unusable_endpoints(config: Config) -> Iterator[str]:
    """Errors of endpoints that Twisted can't parse or workers can't share; nothing listens."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import serverFromString

    from pushservice.server.ports import CannotListen, check_shareable

    for text in config.endpoints():
        if text.startswith("systemd:"):
            # systemd passes its socket to the daemon only.
            continue
        try:
            serverFromString(reactor, text)
            if config.workers:
                check_shareable(text)
        except CannotListen as error:
            yield str(error)
        except (ValueError, TypeError, LookupError, OSError) as error:
            yield f"can't listen on {text}: {error}"


def _notes(config: Config) -> Iterator[str]:
    """Notes on how the configuration meets this machine."""
    cores = len(os.sched_getaffinity(0))
    if config.workers == AUTO:
        yield f"--workers auto is {cores} here, one per core"
    elif isinstance(config.workers, int) and config.workers > cores:
        yield f"--workers {config.workers} is more than the {cores} cores of this machine"
