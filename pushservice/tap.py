"""`twistd quotepush`: the options as Twisted wants them, and makeService; names concrete classes.

Must not know: how anything works. twistd imports this for its command line, so the reactor and the
edges are imported by makeService alone.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.python import usage

from pushservice import __version__
from pushservice.config import Config
from pushservice.options import OPTIONS, Option

if TYPE_CHECKING:
    from twisted.application.service import IService


def _described(option: Option) -> str:
    """The help of `option` with its unit, its variable and, where Twisted doesn't, its default."""
    notes = []
    if option.unit:
        notes.append(f"in {option.unit}")
    if option.variable:
        notes.append(f"or the environment's {option.variable}")
    if option.repeatable:
        notes.append("may be given more than once")
        if option.default is not None:
            notes.append(f"default: {option.default}")
    return f"{option.help} ({'; '.join(notes)})" if notes else option.help


def _coercer(option: Option, source: str | None = None) -> Callable[[str], Any]:
    """The option's coercer with the `source` of its value in every refusal."""

    def coerce(text: str) -> Any:
        try:
            return option.coerce(text)
        except ValueError as error:
            raise usage.UsageError(f"{source or f'--{option.name}'}: {error}") from None

    return coerce


def _collector(option: Option) -> Callable[[Any, str], None]:
    """A method that Twisted calls for each occurrence of a repeatable option."""
    coerce = _coercer(option)

    def collect(self: Any, text: str) -> None:
        self.opts.setdefault(option.name, []).append(coerce(text))

    collect.__doc__ = _described(option)
    return collect


class Options(usage.Options):
    """The command line of `twistd quotepush`, made from options.OPTIONS."""

    synopsis = "[options]"
    longdesc = "Push live market quotes from Redis pub/sub to TLS WebSocket clients."

    optFlags = [[option.name, None, option.help] for option in OPTIONS if option.flag]  # noqa: RUF012 - Twisted's way
    optParameters = [  # noqa: RUF012 - Twisted's way
        [option.name, None, option.default, _described(option), _coercer(option)]
        for option in OPTIONS
        if not option.flag and not option.repeatable
    ]

    def opt_version(self) -> NoReturn:
        """Display the version of quotepush and exit."""
        sys.stdout.write(f"quotepush {__version__}\n")
        sys.exit(0)

    def postOptions(self) -> None:
        """Fill in what was not given, and check the whole: `self.config` is the outcome."""
        for option in OPTIONS:
            if option.repeatable:
                self._collect_default(option)
            if option.flag or option.repeatable:
                continue
            # Twisted coerces what was typed and leaves the very default where nothing was.
            if self.opts[option.name] is not option.default:
                continue
            value, source = option.default, f"--{option.name}"
            if option.variable and os.environ.get(option.variable):
                value, source = os.environ[option.variable], f"{option.variable} in the environment"
            if value is not None:
                self.opts[option.name] = _coercer(option, source)(value)
        try:
            self.config = Config.from_options(self.opts)
        except ValueError as error:
            raise usage.UsageError(str(error)) from None

    def _collect_default(self, option: Option) -> None:
        """Where a repeatable option was not given, its variable may have several values."""
        if option.name in self.opts or not option.variable:
            return
        words = os.environ.get(option.variable, "").split()
        if words:
            coerce = _coercer(option, f"{option.variable} in the environment")
            self.opts[option.name] = [coerce(word) for word in words]


for _option in OPTIONS:
    if _option.repeatable:
        setattr(Options, f"opt_{_option.name.replace('-', '_')}", _collector(_option))


def makeService(options: Options) -> IService:
    """The daemon that `options` describe; called by twistd before it daemonizes."""
    from twisted.internet import reactor

    from pushservice.embedded import NoRedisServer, find_redis_server
    from pushservice.service import CannotStart, Daemon

    if not options.config.redis:
        try:
            find_redis_server()
        except NoRedisServer as error:
            raise CannotStart(f"quotepush: {error}") from None
    daemon = Daemon(reactor, options.config)
    # What is there now stays: full collections need not walk the modules, half of all objects at
    # 5,000 clients and two thirds of the time, again and again.
    gc.collect()
    gc.freeze()
    return daemon
