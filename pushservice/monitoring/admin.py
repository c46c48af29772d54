"""The admin port: liveness, readiness, status, metrics and reports over HTTP.

Must not know: how anything of that is found out. It is for loopback and says all that it knows.
"""

from __future__ import annotations

from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from pushservice.config.coercers import Admin
from pushservice.monitoring.console import console_documents, may_be_called
from pushservice.monitoring.exposition import exposed
from pushservice.monitoring.http_api import (
    Endpoint,
    Endpoints,
    IntParameter,
    Reply,
    json_reply,
    with_parameter,
)
from pushservice.server.client_reports import Report
from pushservice.server.ports import CannotListen, listen

_IDLE_TIMEOUT: Final = 30
#: How many rows are shown.
SLOW: Final = IntParameter("slow", 20, 1, 1000)
TOP: Final = IntParameter("top", 50, 1, 1000)


class StatusSource(Protocol):
    """Provides what the admin port serves; see open_admin."""

    def faults(self) -> list[str]: ...
    def status(self) -> dict[str, Any]: ...
    def figures(self) -> dict[str, Any]: ...
    def clients(self, most: int) -> Coroutine[Any, Any, Report]: ...
    def symbols(self, most: int) -> Coroutine[Any, Any, Report]: ...


class _Site(Site):
    def __init__(self, root: Resource, host: str | None, reactor: Any) -> None:
        """`host` is what the port is bound to; None where names do not lead to it."""
        super().__init__(  # type: ignore[no-untyped-call]  # the library's, unannotated
            root, reactor=reactor, timeout=_IDLE_TIMEOUT, parsePOSTFormSubmission=False
        )
        self.noisy = False
        self._host = host

    def getResourceFor(self, request: Request) -> Resource:
        named = self._host is None or may_be_called(request.getHeader(b"host"), self._host)
        # To other methods any question says in words that it does not take them.
        if named and request.method in (b"GET", b"HEAD"):
            found: Resource = super().getResourceFor(request)  # type: ignore[no-untyped-call]  # the library's
            return found
        return _MISDIRECTED

    def log(self, request: HTTPRequest) -> None:
        """No access log: probes ask every few seconds."""


_MISDIRECTED: Final = Endpoint(
    lambda _request: json_reply(
        {"error": "ask for localhost, or by an address: this port goes by no other name"},
        HTTPStatus.MISDIRECTED_REQUEST,
    )
)


def open_admin(reactor: Any, where: Admin, known: StatusSource) -> IListeningPort:
    """Answer on `where`, a host and a port or the path of a Unix socket. Raises CannotListen.

    `/live` is 200 as long as anything is answered. `/ready` is 200, or 503 with the `faults` that
    are `known`. `/status` is the status with these. `/clients?slow=N` and `/symbols?top=N` are the
    slowest clients and the busiest symbols. `/metrics` is made of the figures. `/` is a page for
    people. What is asked of a loopback port by a name that is not its own is 421.
    """

    def ready(_request: Request) -> Reply:
        found = known.faults()
        status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
        return json_reply({"ready": not found, "faults": found}, status)

    def metrics(request: Request) -> Reply:
        accept = request.getHeader("accept") or ""
        return Reply(HTTPStatus.OK, *exposed(known.figures(), accept))

    tree = Endpoints(
        {
            "live": lambda _request: json_reply({"live": True}),
            "ready": ready,
            "status": lambda _: json_reply({"faults": known.faults()} | known.status()),
            "metrics": metrics,
            "clients": with_parameter(
                SLOW, lambda most: Deferred.fromCoroutine(known.clients(most))
            ),
            "symbols": with_parameter(
                TOP, lambda most: Deferred.fromCoroutine(known.symbols(most))
            ),
        }
    )
    for name, document in console_documents().items():
        tree.putChild(name.encode(), document)
    site = _Site(tree, None if isinstance(where, str) else where[0], reactor)
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
