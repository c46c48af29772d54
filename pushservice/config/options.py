"""All options of `twistd quotepush`, each declared once, in the order of the help.

Must not know: where values come from (command line, environment, file), or what any folder does
with them.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

from pushservice.config.option import Option
from pushservice.config.options_auth import AUTH
from pushservice.config.options_feed import FEED, REGISTRY
from pushservice.config.options_limits import LIMITS
from pushservice.config.options_server import GENERAL, LOG, TLS, WORKERS

#: The file that may set all other options; it can't name itself.
CONFIG_FILE: Final = Option(
    "config",
    "configuration file in TOML; the environment and the command line override it",
    placeholder="FILE",
    path=True,
)

#: Every option but --config. A secret one is followed by the option that names a file with it.
OPTIONS: Final[tuple[Option, ...]] = tuple(
    each
    for option in chain(GENERAL, TLS, FEED, REGISTRY, LIMITS, AUTH, WORKERS, LOG)
    for each in ((option, option.file_option) if option.secret else (option,))
)
