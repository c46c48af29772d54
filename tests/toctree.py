"""Sphinx's `toctree` for plain docutils, so that tests read the documents without Sphinx.

The listed pages become links to their files, relative to the document.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives


class Toctree(Directive):
    has_content: ClassVar[bool] = True
    option_spec: ClassVar[dict] = {
        "caption": directives.unchanged,
        "glob": directives.flag,
        "hidden": directives.flag,
        "maxdepth": directives.nonnegative_int,
    }

    def run(self) -> list[nodes.Node]:
        here = Path(self.state.document["source"]).parent
        listed = nodes.paragraph()
        for entry in self.content:
            if "glob" in self.options and "*" in entry:
                files = sorted(here.glob(f"{entry}.rst"))
            else:
                files = [here / f"{entry}.rst"]
            for file in files:
                target = file.relative_to(here).as_posix()
                listed += nodes.reference("", target, refuri=target)
        return [listed]


directives.register_directive("toctree", Toctree)
