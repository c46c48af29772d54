"""`twistd quotepush`: the options as Twisted wants them, and makeService; names concrete classes.

Must not know: how anything works. twistd imports this for its command line, so the reactor and the
edges that need it are imported by makeService alone.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.python import usage

from pushservice import __version__
from pushservice.config.config import Config
from pushservice.config.files import Sources
from pushservice.config.layers import BY_NAME, suggest_option
from pushservice.config.option import Option
from pushservice.config.options import CONFIG_FILE, OPTIONS
from pushservice.config.settings import Settings
from pushservice.monitoring import logs

if TYPE_CHECKING:
    from twisted.application.service import IService


def _collector(option: Option) -> Callable[[Any, str], None]:
    """A method that Twisted calls for each occurrence of an option that takes a value."""

    def collect(self: Any, text: str) -> None:
        self.opts.setdefault(option.name, []).append(text)

    collect.__doc__ = option.description
    return collect


class Options(usage.Options):
    """The command line of `twistd quotepush`, made from options.OPTIONS.

    Once it is parsed, `sources` reads everything that options come from, as often as it is asked
    to, `settings` is what it read first, and `config` the Config of that.
    """

    synopsis = "[options]"
    longdesc = "Push live market quotes from Redis pub/sub to TLS WebSocket clients."

    optFlags = [[option.name, None, option.description] for option in OPTIONS if option.flag]  # noqa: RUF012 - Twisted's way

    sources: Sources
    settings: Settings
    config: Config

    def opt_version(self) -> NoReturn:
        """Display the version of quotepush and exit."""
        sys.stdout.write(f"quotepush {__version__}\n")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line; raises UsageError with a line for each thing that is wrong."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]  # Twisted's, unannotated
        except usage.UsageError as error:
            unknown = re.fullmatch(r"option --(\S+) not recognized", str(error))
            if unknown is None:
                raise
            raise usage.UsageError(f"{error}{suggest_option(unknown[1])}") from None

    def postOptions(self) -> None:
        """Read the environment and the files, and check the whole."""
        # Taken out, because these options are a dict that anybody may print.
        typed = {name: self.opts.pop(name) for name in list(self.opts) if name in BY_NAME}
        typed |= {name: bool(value) for name, value in typed.items() if BY_NAME[name].flag}
        configs = self.opts.pop(CONFIG_FILE.name, None)
        self.sources = Sources(typed, configs[-1] if configs else None)
        self.settings = self.sources.load()
        try:
            config = self.config = self.settings.config
            # twistd's own options, which it has not looked at yet.
            logs.install(
                getattr(self, "parent", None),
                config.log_format,
                config.log_level,
                config.log_max_size,
                config.log_keep,
            )
        except ValueError as error:
            raise usage.UsageError(str(error)) from None


for _option in (CONFIG_FILE, *OPTIONS):
    if not _option.flag:
        setattr(Options, f"opt_{_option.name.replace('-', '_')}", _collector(_option))


def makeService(options: Options) -> IService:
    """The daemon that `options` describe; called by twistd before it daemonizes."""
    # Until signals are caught, Ctrl-C ends the process by default action, as SIGTERM does: a
    # library with a bare `except:` swallows a KeyboardInterrupt while it is imported.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from twisted.internet import reactor

    from pushservice.redis.embedded import NoRedisServer, find_redis_server
    from pushservice.service.access import exposure
    from pushservice.service.startup import CannotStart, prepare_memory
    from pushservice.workers.manager import Manager
    from pushservice.workers.plan import Plan
    from pushservice.workers.process import Process
    from pushservice.workers.single_process import SingleProcess

    config = options.config
    if not config.redis:
        try:
            find_redis_server()
        except NoRedisServer as error:
            raise CannotStart(f"quotepush: {error}") from None

    def plan_of(settings: Settings) -> Plan:
        warnings = (*settings.warnings, *exposure(settings.config))
        return Plan(settings.config, settings.texts(), warnings)

    plan = plan_of(options.settings)
    backend = Manager(reactor, plan) if config.workers else SingleProcess(reactor, plan)
    title = "quotepush: manager" if config.workers else "quotepush"
    process = Process(reactor, plan, backend, title, lambda: plan_of(options.sources.load()))
    prepare_memory()
    return process
