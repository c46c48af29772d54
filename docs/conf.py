# ruff: noqa: INP001 - settings that Sphinx reads, in no package
"""Sphinx configuration: builds a website from the documents; run by `script/docs`.

The documents are plain reStructuredText that code hosts can render too, so their links name files:
`the protocol <protocol.rst>`_. This module turns them into links between pages, and links to other
files (examples in contrib) into downloads. The site loads nothing from other servers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar, Final

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

HERE: Final = Path(__file__).parent.resolve()
ROOT: Final = HERE.parent

_VERSION: Final = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_FOUND = _VERSION.search((ROOT / "pushservice" / "__init__.py").read_text("utf-8"))
if _FOUND is None:
    raise RuntimeError("pushservice/__init__.py has no __version__")

project = "quotepush"
version = release = _FOUND[1]
root_doc = "index"
language = "en"
nitpicky = True
# Plain literal blocks have no language.
highlight_language = "none"
html_theme = "furo"
html_title = f"quotepush {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_use_index = False

#: files outside this directory that pages here include, and their pages
INCLUDED: Final = {
    ROOT / "README.rst": "index",
    ROOT / "CHANGELOG.rst": "changelog",
    ROOT / "SECURITY.rst": "threats",
    ROOT / "contrib" / "README.rst": "contrib",
}
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_LOG: Final = logging.getLogger(__name__)


def page_of(file: Path) -> str | None:
    """The name of the page that shows `file`; None when there is none."""
    if file in INCLUDED:
        return INCLUDED[file]
    if file.suffix == ".rst" and file.is_relative_to(HERE):
        return file.relative_to(HERE).with_suffix("").as_posix()
    return None


class FileLinks(SphinxTransform):
    """Resolves links that name files to pages or downloads, and warns about dead ones.

    A link is relative to the file in which it is written, also where a page includes that file.
    """

    default_priority: ClassVar[int] = 800  # once references have their targets

    def apply(self, **_: Any) -> None:
        for reference in list(self.document.findall(nodes.reference)):
            target, _, anchor = reference.get("refuri", "").partition("#")
            if not target or _SCHEME.match(target):
                continue
            file = (written_in(reference).parent / target).resolve()
            page = page_of(file)
            if page is not None and page in self.env.found_docs:
                reference["page"], reference["anchor"] = page, anchor
            elif file.is_file():
                where = f"/{os.path.relpath(file, HERE)}"
                download = addnodes.download_reference("", "", reftarget=where)
                download += nodes.literal("", reference.astext())
                reference.replace_self(download)
            else:
                _LOG.warning("dead link: %s", target, location=reference)


class NoLocalContents(SphinxTransform):
    """Drops the tables of contents within pages, since the theme shows one beside each page."""

    default_priority: ClassVar[int] = 800

    def apply(self, **_: Any) -> None:
        for topic in list(self.document.findall(nodes.topic)):
            if "contents" in topic["classes"]:
                topic.parent.remove(topic)
                for title in self.document.findall(nodes.title):
                    title.attributes.pop("refid", None)  # the way back to it


def written_in(node: nodes.Node) -> Path:
    """The source file of `node`."""
    while not node.source and node.parent is not None:
        node = node.parent
    return Path(node.source or node["source"])


def lead_to_pages(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Make links to pages relative to the page that contains them."""
    for reference in doctree.findall(nodes.reference):
        if "page" in reference:
            anchor = f"#{reference['anchor']}" if reference["anchor"] else ""
            address = app.builder.get_relative_uri(page, reference["page"])
            reference["refuri"], reference["internal"] = address + anchor, True


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transforms with Sphinx."""
    app.add_transform(FileLinks)
    app.add_transform(NoLocalContents)
    app.connect("doctree-resolved", lead_to_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
