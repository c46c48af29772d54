"""The daemon's options on commands beside it, which read the same environment and the same file.

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

#: which Redis it is where nobody says
LOCAL_REDIS: Final = "redis://localhost:6379"
_ABOUT_REDIS: Final = ("redis", "redis-file", "redis-ca", "redis-cert", "redis-key", "channels")

Command = Callable[..., None]


def declared(option: Option) -> Callable[[Command], Command]:
    """Gives a command an option of the daemon; what was typed comes as a keyword."""
    names = (f"--{option.name}", option.name.replace("-", "_"))
    if option.flag:
        return click.option(*names, is_flag=True, help=option.description)
    kind = click.Path() if option.path else None
    # All of them may be typed again, as on twistd's command line; the last one counts.
    return click.option(
        *names, multiple=True, type=kind, metavar=option.placeholder, help=option.description
    )


def redis_options(channels: str) -> Callable[[Command], Command]:
    """Gives a command the options that say which Redis; `channels` is that option's help."""
    changed: dict[str, dict[str, Any]] = {
        "redis": {
            "help": "which Redis: redis://, rediss://, unix:// or redis+sentinel://, as the"
            " daemon's option",
            "default": LOCAL_REDIS,
        },
        "channels": {"help": channels},
    }

    def decorate(command: Command) -> Command:
        known = {option.name: option for option in OPTIONS}
        for name in reversed(_ABOUT_REDIS):
            option = dataclasses.replace(known[name], **changed.get(name, {}))
            command = declared(option)(command)
        return declared(CONFIG_FILE)(command)

    return decorate


def redis_config(given: dict[str, Any]) -> Config:
    """What the daemon's options come to, of which `given` has those of `redis_options`.

    They are taken out of it. Raises ClickException with all that is wrong.
    """
    configs = given.pop(CONFIG_FILE.name)
    typed = {name: given.pop(name.replace("-", "_")) for name in _ABOUT_REDIS}
    typed = {name: texts for name, texts in typed.items() if texts}
    config = configs[-1] if configs else None
    settings = Sources(typed, config).load()
    if settings["redis"].origin == DEFAULT:
        settings = Sources(typed | {"redis": (LOCAL_REDIS,)}, config).load()
    for warning in settings.warnings:
        click.echo(f"warning: {warning}", err=True)
    if settings.errors:
        raise click.ClickException("\n".join(settings.errors))
    if not settings.config.redis:
        raise click.ClickException(
            "--redis embedded is the daemon's own Redis; its log says where that is:"
            " give it as --redis unix:///..."
        )
    return settings.config
