"""docs/architecture.rst and docs/modules.rst name the folders and files that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "pushservice"
ARCHITECTURE = (ROOT / "docs" / "architecture.rst").read_text("utf-8")


def test_the_modules_page_matches_the_docstrings():
    written = subprocess.run(
        [sys.executable, ROOT / "docs" / "modules_table.py"], stdout=subprocess.PIPE, check=True
    )
    # To regenerate it: python docs/modules_table.py > docs/modules.rst
    assert written.stdout.decode() == (ROOT / "docs" / "modules.rst").read_text("utf-8")


def test_the_modules_page_lists_every_source_file():
    listed = set(
        re.findall(r"^``(.+)``$", (ROOT / "docs" / "modules.rst").read_text("utf-8"), re.MULTILINE)
    )
    assert listed == {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.suffix in {".c", ".html", ".js", ".py", ".ts"} and path.name != "__init__.py"
    }


def test_every_file_named_in_the_architecture_exists():
    named = set(re.findall(r"``([\w/]+\.(?:py|c|js))(?:``|\.\w)", ARCHITECTURE))
    assert len(named) > 10
    there = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*")]
    missing = {
        name
        for name in named
        if name not in there
        and not (ROOT / name).exists()
        and not any(path.endswith(f"/{name}") for path in there)
    }
    assert missing == set()


def test_every_folder_has_a_row_and_a_folder_of_tests():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    rows = set(re.findall(r"^   (\w+) +\S.*$", ARCHITECTURE.split("=\n", 2)[-1], re.MULTILINE))
    assert folders <= rows
    assert folders <= {path.name for path in (ROOT / "tests" / "unit").iterdir()}
