# ruff: noqa: INP001 - a program beside the documents, in no package
"""Writes the page of all options from their declarations.

python docs/options_table.py > docs/options.rst
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Final

from list_table import list_table

from pushservice.config.layers import SECTIONS
from pushservice.config.option import Option
from pushservice.config.options import CONFIG_FILE, OPTIONS

TITLES: Final = {
    "": "Ports, pages and the simulated market",
    "tls": "Certificates",
    "auth": "Authentication and origins",
    "feed": "The feed",
    "registry": "The registry",
    "limits": "Limits",
    "workers": "Processes",
    "log": "Logs",
}

INTRODUCTION: Final = """\
Options
=======

This page lists all options of ``twistd quotepush``. ``quotepush check`` accepts the same options.
It shows the value of each, where it was set, and all errors.

The daemon takes an option from the first of these that sets it:

1. the command line: ``--max-symbols 500``. A flag has no value: ``--plain``;
2. its environment variable: ``QUOTEPUSH_MAX_SYMBOLS=500``. A flag is set by ``1``, ``true``,
   ``yes`` or ``on``. ``0``, ``false``, ``no`` or ``off`` unset a flag that the file sets. Separate
   several values of a repeatable option by white space. An empty variable counts as not set;
3. the configuration file, in TOML: ``max-symbols = 500`` in the section ``[limits]``. A flag is
   ``true`` or ``false``. A repeatable option takes an array or a single value;
4. its default.

All values of a repeatable option come from the same place. ``--redis-file`` names a file with the
values of ``--redis``, and so does each option whose name ends in ``-file``. Setting both in one
place is an error.

An unknown option or key is an error; an unknown environment variable is only a warning. Paths in
the file are relative to the file's directory, other paths to the directory where the daemon was
started.
"""


def literal(text: str | None) -> str:
    """`text` as code; a dash where there is none."""
    return "—" if text is None else f"``{text}``"


def prose(text: str) -> str:
    """The words of an option in reStructuredText, from a capital letter on."""
    escaped = re.sub(r"([*\\|])", r"\\\1", text.replace("`", "``"))
    # An endpoint's kind, such as tcp:8008, would be taken for the scheme of a link.
    escaped = re.sub(r"\b([a-z]+):(?=\d)", r"\1\\:", escaped)
    return escaped[:1].upper() + escaped[1:]


def row(option: Option) -> list[str]:
    """The cells: option, variable, default, meaning."""
    notes = [f"in {option.unit}"] if option.unit else []
    if option.repeatable:
        notes.append("may be given more than once")
    meaning = prose(option.help) + (f" ({'; '.join(notes)})" if notes else "")
    return [literal(f"--{option.name}"), literal(option.variable), literal(option.default), meaning]


def table(title: str, rows: Iterable[list[str]]) -> Iterator[str]:
    """The lines of a table."""
    titles = ["Option", "Environment variable", "Default", "Meaning"]
    return list_table(title, (20, 26, 12, 42), titles, rows)


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    lines += table("The file itself", [row(CONFIG_FILE)])
    for section in SECTIONS:
        title = TITLES[section]
        place = f"Section ``[{section}]``" if section else "At the top of the file"
        lines += [title, "-" * len(title), ""]
        lines += table(
            f"{place} of the configuration file" if section else place,
            [row(option) for option in OPTIONS if option.section == section],
        )
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
