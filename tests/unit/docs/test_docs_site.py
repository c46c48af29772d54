"""The documents as a website: it builds without a warning and has no dead links."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit
from xml.etree import ElementTree

import pytest

ROOT: Final = Path(__file__).parents[3]
DOCS: Final = ROOT / "docs"
SITE: Final = "site:/"
#: elements that make a browser fetch something, and which attribute says what
FETCHED: Final = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "image": "href",
    "img": "src",
    "input": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "track": "src",
    "video": "src",
}


@dataclass
class Reader(HTMLParser):
    """One page of the site. Addresses are absolute; those of the site begin with SITE."""

    name: str
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    in_style: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def absolute(self, address: str) -> str:
        # An address without a scheme is one of the site; urljoin knows no scheme of ours.
        return urljoin(f"http://site/{self.name}", address).replace("http://site/", SITE)

    def handle_starttag(self, tag, attrs):
        given = {key: value or "" for key, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(self.absolute(given["href"]))
        if tag == "form":
            self.links.append(self.absolute(given.get("action", "")))
        if given.get(FETCHED.get(tag, "")):
            self.fetched.append(self.absolute(given[FETCHED[tag]]))
        if "srcset" in given:
            self.fetched += [self.absolute(each.split()[0]) for each in given["srcset"].split(",")]
        if tag == "img":
            self.images.append((self.absolute(given["src"]), given.get("alt", "")))
        self.styles.append(given.get("style", ""))
        self.in_style = tag == "style"

    def handle_endtag(self, tag):
        self.in_style = False

    def handle_data(self, data):
        if self.in_style:
            self.styles.append(data)


def path_of(address: str) -> str:
    """The file of an address of the site, without its anchor."""
    return unquote(urlsplit(address).path).removeprefix("/")


def is_of_the_site(address: str) -> bool:
    return address.startswith(SITE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as script/docs does."""
    (command,) = re.findall(
        r'^"\$PYTHON" -m (sphinx .*) docs build/docs$',
        (ROOT / "script" / "docs").read_text("utf-8"),
        re.MULTILINE,
    )
    for wanted in ("--nitpicky", "--fail-on-warning", "--keep-going"):
        assert wanted in command
    made = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *command.split(),
            "--doctree-dir",
            made / "trees",
            DOCS,
            made / "html",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return made / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Reader]:
    """The pages by their file names."""
    read = {}
    for file in site.rglob("*.html"):
        if not file.is_relative_to(site / "_static"):
            name = file.relative_to(site).as_posix()
            read[name] = Reader(name)
            read[name].feed(file.read_text("utf-8"))
    return read


def test_every_document_is_a_page(pages):
    documents = {
        path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.rst")
    }
    assert set(pages) == documents | {"search.html"}


def test_every_page_can_be_reached_from_the_index(pages):
    reached, left = set(), {"index.html"}
    while left:
        name = left.pop()
        reached.add(name)
        ours = {path_of(link) for link in pages[name].links if is_of_the_site(link)}
        left |= (ours & set(pages)) - reached
    assert reached == set(pages)


def test_every_decision_is_listed(pages):
    listed = {path_of(link) for link in pages["adr/index.html"].links}
    decisions = {path.with_suffix(".html").name for path in (DOCS / "adr").glob("0*.rst")}
    assert {f"adr/{name}" for name in decisions} <= listed


def test_no_link_within_the_site_is_dead(site, pages):
    dead = []
    for name, page in pages.items():
        for link in filter(is_of_the_site, page.links):
            target, anchor = path_of(link), unquote(urlsplit(link).fragment)
            there = pages.get(target)
            if there is None:
                good = (site / target).is_file() and not anchor
            else:
                good = not anchor or anchor in there.anchors
            if not good:
                dead.append((name, link))
    assert not dead


def test_external_links_use_http_or_https(pages):
    leaving = {link for page in pages.values() for link in page.links if not is_of_the_site(link)}
    assert leaving
    assert {urlsplit(link).scheme for link in leaving} <= {"http", "https"}, leaving


def test_links_between_documents_point_to_pages_not_sources(pages):
    for page in pages.values():
        for link in filter(is_of_the_site, page.links):
            if link.endswith(".rst"):
                assert "/_downloads/" in link
                assert not link.endswith(tuple(f"/{path.name}" for path in DOCS.rglob("*.rst")))


def test_images_exist_and_have_alternative_texts(site, pages):
    shown = [image for page in pages.values() for image in page.images]
    assert shown
    for address, words in shown:
        assert is_of_the_site(address), address
        assert (site / path_of(address)).is_file(), address
        assert len(words.split()) >= 5, address


def test_drawings_have_a_title_and_a_description():
    drawings = list((DOCS / "images").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.read_text("utf-8"))
        for name in ("title", "desc"):
            element = root.find(f"{{{root.tag[1:].partition('}')[0]}}}{name}")
            assert element is not None
            assert element.text.strip()
            assert element.get("id") in root.get("aria-labelledby")


def test_nothing_is_fetched_from_other_servers(site, pages):
    fetched = {address for page in pages.values() for address in page.fetched}
    styles = [style for page in pages.values() for style in page.styles]
    for pattern in ("*.css", "*.svg"):
        styles += [file.read_text("utf-8") for file in site.rglob(pattern)]
    assert f"{SITE}_static/styles/furo.css" in {address.partition("?")[0] for address in fetched}
    assert all(is_of_the_site(address) for address in fetched), fetched
    for address in fetched:
        assert (site / path_of(address)).is_file(), address
    named = re.findall(r"(?:url\(\s*|@import\s+)[\"']?([^\"')\s;]+)", "\n".join(styles))
    assert [address for address in named if re.match(r"(?!data:)[\w+.-]*:?//", address)] == []


def test_the_pages_show_the_version_of_the_package(site):
    import pushservice

    assert f"quotepush {pushservice.__version__}" in (site / "index.html").read_text("utf-8")
