"""What the public port serves to a browser: one page, the JavaScript client, known symbols.

Must not know: WebSockets, or how connections come to it. Everything is read once, at start.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from http import HTTPStatus
from importlib.resources import files
from io import BytesIO
from typing import Any, Final

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import INTERNAL_SERVER_ERROR, NOT_FOUND
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from pushservice.protocol.events import internal_error

#: Symbols that one request for /symbols.json may ask for.
MAX_SYMBOLS: Final = 1000
_SCRIPTS: Final = ("page.js", "dom.js", "raw_frames.js")
_IDLE_TIMEOUT: Final = 30
_UPGRADE_REQUIRED: Final = 426

_COMMON_HEADERS: Final = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-cache",
}


def log_incident(log: Logger, failure: Failure, path: bytes) -> str:
    """Log a failure to answer `path`; returns the text of the answer, with the incident's id.

    Give the path without its query, which may hold a token.
    """
    incident = secrets.token_hex(6)
    log.failure(
        "answering {path} failed: incident {incident}", failure, path=path, incident=incident
    )
    return internal_error(incident)


class _Request(Request):
    """A request whose body is not read: nothing here needs one, and a body costs memory."""

    log = Logger()

    def processingFailed(self, reason: Failure) -> Failure:
        body = f"{log_incident(self.log, reason, self.path)}\n".encode()
        # Twisted's methods are not annotated.
        request: Any = self
        request.setResponseCode(INTERNAL_SERVER_ERROR)
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        request.setHeader(b"content-length", b"%d" % len(body))
        request.write(body)
        request.finish()
        return reason

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        if data:
            self.channel.loseConnection()


def _head_of(body: bytes, request: Request) -> bytes:
    """Answer HEAD: the headers of GET with the length of its body, and no body."""
    request.setHeader(b"content-length", b"%d" % len(body))
    return b""


class Document(Resource):
    """Bytes that don't change while the daemon runs."""

    isLeaf = True

    def __init__(self, body: bytes, content_type: bytes, headers: dict[bytes, bytes]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._body = body
        self._headers = _COMMON_HEADERS | {b"content-type": content_type} | headers
        self._etag = b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'

    def render_GET(self, request: Request) -> bytes:
        for name, value in self._headers.items():
            request.setHeader(name, value)
        if request.setETag(self._etag) is not None:
            return b""
        return self._body

    def render_HEAD(self, request: Request) -> bytes:
        return _head_of(self.render_GET(request), request)


class _Symbols(Resource):
    """The symbols quoted so far as a JSON array, the most recently quoted first; ?limit=60."""

    isLeaf = True

    def __init__(self, recent_symbols: Callable[[int], Sequence[str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._recent_symbols = recent_symbols

    def render_GET(self, request: Request) -> bytes:
        for name, value in _COMMON_HEADERS.items():
            request.setHeader(name, value)
        request.setHeader(b"content-type", b"application/json")
        given = request.args.get(b"limit", [b"60"])[0]
        if len(given) > 4 or not given.isdigit() or not 1 <= int(given) <= MAX_SYMBOLS:
            request.setResponseCode(400)
            return msgspec.json.encode({"error": f"limit is a number from 1 to {MAX_SYMBOLS}"})
        return msgspec.json.encode(self._recent_symbols(int(given)))

    def render_HEAD(self, request: Request) -> bytes:
        return _head_of(self.render_GET(request), request)


class _PlainText(Resource):
    """Answers every path with one text."""

    isLeaf = True

    def __init__(self, status: int, text: str, headers: dict[bytes, bytes]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._status = status
        self._text = text.encode()
        self._headers = _COMMON_HEADERS | headers

    def render(self, request: Request) -> bytes:
        request.setResponseCode(self._status, HTTPStatus(self._status).phrase.encode())
        for name, value in self._headers.items():
            request.setHeader(name, value)
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return _head_of(self._text, request) if request.method == b"HEAD" else self._text


class _Root(Resource):
    """The root of all paths: answers unknown paths with `otherwise`."""

    def __init__(self, otherwise: Resource) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._otherwise = otherwise

    def getChild(self, path: bytes, request: Request) -> Resource:
        return self._otherwise


def content_security_policy(page: str, connect: str = "'self' ws: wss:") -> str:
    """A policy that lets `page` use scripts and styles of its origin, and its own inline ones.

    The page may connect to what `connect` names, and load nothing else.
    """

    def hashes(tag: str) -> str:
        inline = re.findall(rf"<{tag}\b(?![^>]*\bsrc=)[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in inline)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src 'self' {hashes('script')};"
        f" style-src 'self' {hashes('style')}; connect-src {connect}; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def build_site(
    reactor: Any,
    recent_symbols: Callable[[int], Sequence[str]],
    counted: Callable[[], None],
    with_page: bool,
) -> Site:
    """The site of the public port; without the page it answers every request with 426.

    `counted` is called for each request served.
    """
    if with_page:
        root: Resource = _page_tree(recent_symbols)
    else:
        root = _PlainText(
            _UPGRADE_REQUIRED,
            "This is a WebSocket server: connect with wss:// or ws://.\n",
            {b"upgrade": b"websocket"},
        )

    class PublicSite(Site):
        def log(self, request: HTTPRequest) -> None:
            # No access log: a proxy in front keeps a better one.
            counted()

    return PublicSite(  # type: ignore[no-untyped-call]  # the library's, unannotated
        root,
        requestFactory=_Request,
        reactor=reactor,
        timeout=_IDLE_TIMEOUT,
        parsePOSTFormSubmission=False,
    )


def _page_tree(recent_symbols: Callable[[int], Sequence[str]]) -> Resource:
    here = files("pushservice.web")
    page = (here / "index.html").read_text("utf-8")
    policy = content_security_policy(page).encode()
    not_found = _PlainText(NOT_FOUND, "There is nothing here; the page is at /\n", {})
    index = Document(
        page.encode(), b"text/html; charset=utf-8", {b"content-security-policy": policy}
    )
    root = _Root(not_found)
    root.putChild(b"", index)
    root.putChild(b"index.html", index)
    for name in _SCRIPTS:
        body = (here / name).read_bytes()
        root.putChild(name.encode(), Document(body, b"text/javascript; charset=utf-8", {}))
    script = (here / "client" / "quotepush.js").read_bytes()
    # Other origins may import the client: it is meant for them too.
    root.putChild(
        b"quotepush.js",
        Document(script, b"text/javascript; charset=utf-8", {b"access-control-allow-origin": b"*"}),
    )
    root.putChild(b"symbols.json", _Symbols(recent_symbols))
    return root
