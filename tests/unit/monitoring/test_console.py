"""The operator's page as the admin port serves it, and by which names that may be asked."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from twisted.web.http_headers import Headers
from twisted.web.test.requesthelper import DummyRequest

from pushservice.monitoring.console import console_documents, may_be_called

WEB = files("pushservice.web")


class Asked(DummyRequest):
    """A request for one document, and its answer."""

    def __init__(self, name: str, method: bytes = b"GET") -> None:
        super().__init__([])
        self.method = method
        self.body = console_documents()[name].render(self)

    def setETag(self, etag: bytes) -> None:
        self.responseHeaders.setRawHeaders(b"etag", [etag])

    @property
    def headers(self) -> dict[str, str]:
        given: Headers = self.responseHeaders
        return {
            name.decode().lower(): b", ".join(values).decode()
            for name, values in given.getAllRawHeaders()
        }


def imported(script: str) -> set[str]:
    return set(re.findall(r'from "\./([\w.]+)"', script))


def test_the_page_and_all_that_its_scripts_import_are_served():
    documents = console_documents()
    page = (WEB / "console.html").read_text("utf-8")
    needed = set(re.findall(r'src="([^"]+)"', page))
    assert needed == {"console.js"}
    for name in sorted(set(documents) - {""}):
        needed |= imported((WEB / name).read_text("utf-8"))
    assert needed == set(documents) - {""}


@pytest.mark.parametrize("name", ["", "console.js", "chart.js", "figures.js"])
def test_a_document_is_served_as_it_is_in_the_package_and_framed_nowhere(name):
    asked = Asked(name)
    assert asked.body == (WEB / (name or "console.html")).read_bytes()
    kind = "javascript" if name else "html"
    assert asked.headers["content-type"] == f"text/{kind}; charset=utf-8"
    assert asked.headers["x-frame-options"] == "DENY"
    assert asked.headers["x-content-type-options"] == "nosniff"
    assert asked.headers["cache-control"] == "no-cache"
    assert asked.headers["etag"]
    assert "access-control-allow-origin" not in asked.headers


def test_a_head_is_answered_without_a_body():
    asked = Asked("console.js", b"HEAD")
    assert asked.body == b""
    assert int(asked.headers["content-length"]) == len((WEB / "console.js").read_bytes())


def test_the_policy_lets_the_page_ask_its_own_place_alone():
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in Asked("").headers["content-security-policy"].split(";")
    )
    page = (WEB / "console.html").read_text("utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["script-src"].split() == ["'self'"]
    assert policy["style-src"].split() == ["'self'", f"'sha256-{digest}'"]
    assert policy["frame-ancestors"] == "'none'"


class References(HTMLParser):
    """What a document leads to or runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "action", "srcset"):
                self.urls.append(value)
            if name == "style" or name.startswith("on"):
                self.inline.append(name)


def test_the_page_has_nothing_from_elsewhere_and_no_code_in_attributes():
    references = References((WEB / "console.html").read_text("utf-8"))
    assert {url for url in references.urls if not url.startswith("data:")} == {
        "console.js",
        "status",
    }
    assert references.inline == []


@pytest.mark.parametrize("name", ["console.js", "chart.js", "figures.js"])
def test_strangers_text_can_not_become_markup_or_code(name):
    script = (WEB / name).read_text("utf-8")
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser"
    assert re.findall(ways, script) == []


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8009",
        "LOCALHOST:8009",
        "localhost.:8009",
        "127.0.0.1:8009",
        "127.0.0.2",
        "[::1]:8009",
        "[::1]",
        "192.0.2.7:8009",
        None,
    ],
)
def test_a_loopback_port_may_be_called_by_addresses_and_by_localhost(host):
    assert may_be_called(None if host is None else host.encode(), "127.0.0.1")
    assert may_be_called(None if host is None else host.encode(), "::1")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8009",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[evil.example]:8009",
        "127.0.0.1@evil.example",
        "evil.example:127.0.0.1",
        "",
        "\xff",
    ],
)
@pytest.mark.parametrize("bound_to", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_port_may_not_be_called_by_anybody_s_name(host, bound_to):
    assert not may_be_called(host.encode("latin-1"), bound_to)


@pytest.mark.parametrize("bound_to", ["0.0.0.0", "::", "10.0.0.11", "quotes-1.internal"])
def test_other_ports_go_by_whatever_name_leads_there(bound_to):
    assert may_be_called(b"quotes-1.internal:8009", bound_to)


# -- colours ---------------------------------------------------------------------------------------


def palettes() -> dict[str, dict[str, str]]:
    """The page's colours by their names, in light and in dark."""
    page = (WEB / "console.html").read_text("utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2]
    schemes = {"light": light, "dark": dark}
    return {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", text))
        for name, text in schemes.items()
    }


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_lines_can_be_told_from_what_is_behind_them(scheme):
    colours = palettes()[scheme]
    words = [(name, back) for name in ("text", "muted") for back in ("bg", "card", "hover")]
    words += [(name, f"{name}-bg") for name in ("good", "bad", "warn")]
    words += [(name, back) for name in ("bad", "warn") for back in ("card", "hover")]
    words += [("card", name) for name in ("good", "bad", "warn")]
    for front, back in words:
        assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    for at in range(3):
        assert contrast(colours[f"series{at}"], colours["card"]) >= 3, at
