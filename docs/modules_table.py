# ruff: noqa: INP001 - a program beside the documents, in no package
"""Writes the page of all source files from their docstrings and first comments.

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


#: Source files that are no Python modules, and those of them that begin with no comment.
SUFFIXES: Final = {".c", ".html", ".js", ".ts"}
PAGES: Final = {
    "web/console.html": "The operator's page: its elements and styles.",
    "web/index.html": "The public page: its elements and styles.",
}


def subject(path: Path) -> str:
    """The first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return as_rst(docstring.partition("\n\n")[0])


def subject_of_other(path: Path) -> str:
    """The first sentence of the comment with which a file in another language begins."""
    name = path.relative_to(PACKAGE).as_posix()
    if name in PAGES:
        return PAGES[name]
    comment = re.match(r"/\*+(.+?)\*/", path.read_text("utf-8"), re.DOTALL)
    if comment is None:
        raise ValueError(f"{name} begins with no comment")
    lines = (line.strip().removeprefix("*") for line in comment[1].splitlines())
    return as_rst(re.split(r"(?<=\.)\s", " ".join(lines).strip(), maxsplit=1)[0])


def as_rst(sentence: str) -> str:
    """A sentence on one line, with its code and stars as reStructuredText has them."""
    return re.sub("`+", "``", " ".join(sentence.split()).replace("*", "\\*"))


def files(folder: Path) -> Iterator[str]:
    """The lines for the files of one folder, and of the folders in it."""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"``{path.relative_to(PACKAGE)}``"
            yield f"    {subject(path)}"
    for inner in sorted(folder.glob("*/__init__.py")):
        yield from files(inner.parent)


def others(folder: Path) -> Iterator[str]:
    """The lines for the files in other languages that are anywhere below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES:
            yield f"``{path.relative_to(PACKAGE)}``"
            yield f"    {subject_of_other(path)}"


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
        lines += [subject(folder / "__init__.py"), "", *files(folder), *others(folder)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
