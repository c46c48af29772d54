"""The operator's page: its files as the admin port serves them, and by which names it may be asked.

Must not know: what the page shows, or how any of that is found out. Everything is read once.
"""

from __future__ import annotations

from importlib.resources import files
from ipaddress import ip_address
from typing import Final

from twisted.web.resource import Resource

from pushservice.web import Document, content_security_policy

_SCRIPTS: Final = ("console.js", "chart.js", "figures.js")
_HEADERS: Final = {b"x-frame-options": b"DENY", b"cross-origin-resource-policy": b"same-origin"}


def console_documents() -> dict[str, Resource]:
    """The page and its scripts by their names; the page's own name is empty."""
    here = files("pushservice.web")
    page = (here / "console.html").read_text("utf-8")
    policy = {b"content-security-policy": content_security_policy(page, "'self'").encode()}
    documents: dict[str, Resource] = {
        "": Document(page.encode(), b"text/html; charset=utf-8", _HEADERS | policy)
    }
    for name in _SCRIPTS:
        script = (here / name).read_bytes()
        documents[name] = Document(script, b"text/javascript; charset=utf-8", _HEADERS)
    return documents


def may_be_called(host: bytes | None, bound_to: str) -> bool:
    """Whether a request whose Host is `host` may be answered on a port bound to `bound_to`.

    A page of anybody's may have its own name lead to 127.0.0.1, and then its readers' browsers take
    what is asked there for its own (DNS rebinding). So a loopback port is called localhost, by an
    address, or as `bound_to` says. Other ports are reached by names that only their owners know.
    """
    if host is None or not _is_loopback(bound_to):
        return True
    name = _without_port(host.decode("latin-1").lower())
    return name == bound_to.lower() or name == "localhost" or _is_address(name)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(text: str) -> bool:
    return text == "localhost" or (_is_address(text) and ip_address(text).is_loopback)
