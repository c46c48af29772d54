"""The daemon's options on other commands, which read the same environment and the same file.

Must not know: what the commands do with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import click

from pushservice.config.config import Config
from pushservice.config.files import Sources
from pushservice.config.option import Option
from pushservice.config.options import CONFIG_FILE, OPTIONS
from pushservice.config.settings import DEFAULT

#: the Redis that is used when no layer sets one
DEFAULT_REDIS: Final = "redis://localhost:6379"
_REDIS_OPTIONS: Final = ("redis", "redis-file", "redis-ca", "redis-cert", "redis-key", "channels")

Command = Callable[..., None]


def daemon_option(option: Option) -> Callable[[Command], Command]:
    """Adds an option of the daemon to a command, which gets what was typed as a keyword."""
    names = (f"--{option.name}", option.name.replace("-", "_"))
    if option.flag:
        return click.option(*names, is_flag=True, help=option.description)
    kind = click.Path() if option.path else None
    # Each may be typed more than once, as on twistd's command line; the last one counts.
    return click.option(
        *names, multiple=True, type=kind, metavar=option.placeholder, help=option.description
    )


def redis_options(channels: str) -> Callable[[Command], Command]:
    """Adds the options about Redis to a command; `channels` is the help of --channels."""
    changed: dict[str, dict[str, Any]] = {
        "redis": {
            "help": "Redis to use: redis://, rediss://, unix:// or redis+sentinel://, as the"
            " daemon's option",
            "default": DEFAULT_REDIS,
        },
        "channels": {"help": channels},
    }

    def decorate(command: Command) -> Command:
        known = {option.name: option for option in OPTIONS}
        for name in reversed(_REDIS_OPTIONS):
            option = dataclasses.replace(known[name], **changed.get(name, {}))
            command = daemon_option(option)(command)
        return daemon_option(CONFIG_FILE)(command)

    return decorate


def redis_config(given: dict[str, Any]) -> Config:
    """The Config of the options that `redis_options` added, which are taken out of `given`.

    Raises ClickException with all errors.
    """
    configs = given.pop(CONFIG_FILE.name)
    typed = {name: given.pop(name.replace("-", "_")) for name in _REDIS_OPTIONS}
    typed = {name: texts for name, texts in typed.items() if texts}
    config = configs[-1] if configs else None
    settings = Sources(typed, config).load()
    if settings["redis"].origin == DEFAULT:
        settings = Sources(typed | {"redis": (DEFAULT_REDIS,)}, config).load()
    for warning in settings.warnings:
        click.echo(f"warning: {warning}", err=True)
    if settings.errors:
        raise click.ClickException("\n".join(settings.errors))
    if not settings.config.redis:
        raise click.ClickException(
            "--redis embedded is the daemon's own Redis; its log has the address:"
            " give that as --redis unix:///..."
        )
    return settings.config
