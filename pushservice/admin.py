"""What operators and their programs ask over HTTP: does it live, is it ready, how does it stand.

Must not know: how anything of that is found out. It is for loopback and says all that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IListeningPort
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from pushservice.coercers import Admin
from pushservice.ports import CannotListen, listen

_IDLE_TIMEOUT: Final = 30

#: What is answered: a status and what becomes JSON.
Answer = tuple[HTTPStatus, Any]


class _Question(Resource):
    """One path, answered anew each time."""

    isLeaf = True

    def __init__(self, answer: Callable[[], Answer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._answer = answer

    def render(self, request: Request) -> bytes:
        # What Twisted answers to other methods by itself is HTML.
        if request.method in (b"GET", b"HEAD"):
            status, words = self._answer()
        else:
            status, words = HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only GET and HEAD are served"}
            request.setHeader(b"allow", b"GET, HEAD")
        request.setResponseCode(status, status.phrase.encode())
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-content-type-options", b"nosniff")
        return msgspec.json.encode(words) + b"\n"


class _Questions(Resource):
    """The tree; whatever is not there is answered with what is."""

    def __init__(self, questions: Mapping[str, Callable[[], Answer]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's, unannotated
        there = [f"/{name}" for name in questions]
        self._otherwise = _Question(
            lambda: (HTTPStatus.NOT_FOUND, {"error": f"there is {', '.join(there)}"})
        )
        for name, answer in questions.items():
            self.putChild(name.encode(), _Question(answer))

    def getChild(self, path: bytes, request: Request) -> Resource:
        return self._otherwise


class _Site(Site):
    def log(self, request: HTTPRequest) -> None:
        """No access log: probes ask every few seconds."""


def open_admin(
    reactor: Any,
    where: Admin,
    faults: Callable[[], list[str]],
    status: Callable[[], dict[str, Any]],
) -> IListeningPort:
    """Answer on `where`, a host and a port or the path of a Unix socket. Raises CannotListen.

    `/live` is 200 as long as anything is answered. `/ready` is 200, or 503 with the `faults`.
    `/status` is `status()`.
    """

    def ready() -> Answer:
        found = faults()
        code = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
        return code, {"ready": not found, "faults": found}

    site = _Site(  # type: ignore[no-untyped-call]  # the library's, unannotated
        _Questions(
            {
                "live": lambda: (HTTPStatus.OK, {"live": True}),
                "ready": ready,
                "status": lambda: (HTTPStatus.OK, {"faults": faults()} | status()),
            }
        ),
        reactor=reactor,
        timeout=_IDLE_TIMEOUT,
        parsePOSTFormSubmission=False,
    )
    site.noisy = False
    try:
        return listen(reactor, _endpoint(where), site)
    except CannotListen as error:
        raise CannotListen(f"--admin: {error}; name another place, or off") from None


def _endpoint(where: Admin) -> str:
    if isinstance(where, str):
        return f"unix:{_escaped(where)}:mode=660"
    host, port = where
    kind = "tcp6" if ":" in host else "tcp"
    return f"{kind}:{port}:interface={_escaped(host)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")
