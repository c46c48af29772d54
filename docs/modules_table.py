# ruff: noqa: INP001 - a program beside the documents, in no package
"""Writes the page of all modules from their docstrings.

python docs/modules_table.py > docs/modules.rst
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parents[1] / "pushservice"

INTRODUCTION: Final = """\
Modules
=======

This page lists every file of ``pushservice`` with its purpose, folder by folder. `Architecture
<architecture.rst>`_ explains which folder may import which, and how a quote travels through them.
"""


def subject(path: Path) -> str:
    """The first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    first = " ".join(docstring.partition("\n\n")[0].split()).replace("*", "\\*")
    return re.sub("`+", "``", first)


def files(folder: Path) -> Iterator[str]:
    """The lines for the files of one folder, and of the folders in it."""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"``{path.relative_to(PACKAGE)}``"
            yield f"    {subject(path)}"
    for inner in sorted(folder.glob("*/__init__.py")):
        yield from files(inner.parent)


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION, "pushservice", "-----------", ""]
    lines += [
        line
        for path in sorted(PACKAGE.glob("*.py"))
        if path.name != "__init__.py"
        for line in (f"``{path.name}``", f"    {subject(path)}")
    ]
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        lines += ["", folder.name, "-" * len(folder.name), ""]
        lines += [subject(folder / "__init__.py"), "", *files(folder)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
