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
    "auth": "Who may connect",
    "feed": "Where quotes come from",
    "registry": "Who watches what",
    "limits": "Limits",
    "workers": "Processes",
    "log": "Logs",
}

INTRODUCTION: Final = """\
Options
=======

All options of ``twistd quotepush``. ``quotepush check`` takes the same, and says what each is set
to, who set it, and what is wrong.

An option is set by the first of these that has it:

1. the command line: ``--max-symbols 500``; a flag is just named: ``--plain``;
2. its environment variable: ``QUOTEPUSH_MAX_SYMBOLS=500``. A flag is ``1``, ``true``, ``yes`` or
   ``on``, or ``0``, ``false``, ``no`` or ``off``, which unsets what the file sets. What may be
   given more than once is separated by white space. An empty variable says nothing;
3. the configuration file, in TOML: ``max-symbols = 500`` in the section ``[limits]``. A flag is
   ``true`` or ``false``; what may be given more than once is an array, or one value alone;
4. its default.

Of an option that may be given more than once, all values come from one of these. ``--redis-file``
names a file with what ``--redis`` would be, and so does each option whose name ends in ``-file``;
to give both in one place is an error.

Names that are no option's are errors, but for variables: of those you are only warned. Paths in the
file are relative to its directory, others to the directory that the daemon is started in.
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
