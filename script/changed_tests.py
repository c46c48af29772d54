"""Reads names of changed files and prints the test modules that are about them.

These are tests/unit modules that changed, that import what changed, or that test the same module;
and for documents those of tests/unit/docs. The tests of the layering go with any source.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNIT = ROOT / "tests" / "unit"


def imports_of(path: Path) -> set[str]:
    """The dotted names that a file imports, with those it takes from modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def tests_of(changed: Iterable[str]) -> set[Path]:
    """The test modules about the changed files, which are relative to the root."""
    tests: set[Path] = set()
    modules: set[str] = set()
    for name in changed:
        path = ROOT / name
        if UNIT in path.parents and path.name.startswith("test_"):
            tests.add(path)
        elif path.parent == ROOT / "tests" and path.suffix == ".py":
            modules.add(path.stem)
        elif name.startswith("pushservice/"):
            tests.add(UNIT / "test_layering.py")
            modules.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
            same = path.relative_to(ROOT / "pushservice").parent / f"test_{path.stem}.py"
            tests.add(UNIT / same)
            if path.suffix in {".js", ".html", ".css"}:
                tests |= set((UNIT / "web").glob("test_*.py"))
        if path.suffix == ".rst" or name.startswith(("docs/", "pushservice/")):
            tests |= set((UNIT / "docs").glob("test_*.py"))
    tests |= {path for path in UNIT.rglob("test_*.py") if imports_of(path) & modules}
    return {path for path in tests if path.exists()}


if __name__ == "__main__":
    for test in sorted(tests_of(sys.stdin.read().split())):
        sys.stdout.write(f"{test.relative_to(ROOT)}\n")
