"""The code blocks of the documents, for tests that run them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from docutils.core import publish_doctree
from docutils.nodes import literal_block

ROOT: Final = Path(__file__).parents[1]


def code_blocks(document: str) -> dict[str, str]:
    """The code blocks by their names, of a document such as docs/quickstart.rst."""
    tree = publish_doctree((ROOT / document).read_text("utf-8"))
    return {
        name: block.astext() for block in tree.findall(literal_block) for name in block["names"]
    }
