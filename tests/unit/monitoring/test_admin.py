"""What operators ask over HTTP: the answers, on a port and on a Unix socket."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.threads import deferToThread
from waiting import until

from pushservice.monitoring.admin import open_admin
from pushservice.server.ports import CannotListen


class State:
    """What is answered from."""

    def __init__(self) -> None:
        self.found: list[str] = []
        #: how many reports were asked for, and what they wait for
        self.asked = 0
        self.waits: defer.Deferred[None] = defer.succeed(None)

    def faults(self) -> list[str]:
        return self.found

    def status(self) -> dict[str, Any]:
        return {"pid": 1, "workers": []}

    def figures(self) -> dict[str, Any]:
        return {"totals": {"subscriptions": 7}}

    async def clients(self, most: int) -> dict[str, Any]:
        self.asked += 1
        await self.waits
        return {"clients": [{"conn": str(at)} for at in range(most)], "total": 7}

    async def symbols(self, most: int) -> dict[str, Any]:
        self.asked += 1
        await self.waits
        return {"symbols": [{"symbol": str(at)} for at in range(most)], "total": 8}


def ask(where: Any, request: str, host: str = "localhost") -> tuple[int, dict[str, str], bytes]:
    """One request and its whole answer."""
    with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as client:
        client.settimeout(10)
        client.connect(where)
        client.sendall(f"{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        data = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in fields)}
    return int(first.split()[1]), headers, body


class Admin:
    """An admin port and how it is asked."""

    def __init__(self, where: Any) -> None:
        self.state = State()
        self.port = open_admin(reactor, where, self.state)
        host: Any = self.port.getHost()
        self.where = where if isinstance(where, str) else ("127.0.0.1", host.port)

    async def ask(self, request: str, host: str = "localhost") -> tuple[int, dict[str, str], Any]:
        status, headers, body = await deferToThread(ask, self.where, request, host)
        return status, headers, json.loads(body) if body else None

    async def close(self) -> None:
        await defer.maybeDeferred(self.port.stopListening)


@pytest.fixture(params=["tcp", "unix"])
def admin(request, tmp_path):
    made = Admin(("127.0.0.1", 0) if request.param == "tcp" else str(tmp_path / "odd:name"))
    yield made
    pytest_twisted.blockon(defer.ensureDeferred(made.close()))


@pytest_twisted.ensureDeferred
async def test_it_lives_whatever_is_wrong(admin):
    admin.state.found = ["the feed is down"]
    status, headers, words = await admin.ask("GET /live")
    assert (status, words) == (200, {"live": True})
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"


@pytest_twisted.ensureDeferred
async def test_it_is_ready_where_nothing_is_wrong_and_says_what_is(admin):
    assert (await admin.ask("GET /ready"))[::2] == (200, {"ready": True, "faults": []})
    admin.state.found = ["draining"]
    assert (await admin.ask("GET /ready"))[::2] == (503, {"ready": False, "faults": ["draining"]})
    admin.state.found = []
    assert (await admin.ask("GET /ready?x=1"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_the_status_has_the_faults_too(admin):
    admin.state.found = ["no worker serves"]
    status, _, words = await admin.ask("GET /status")
    assert (status, words) == (200, {"faults": ["no worker serves"], "pid": 1, "workers": []})


@pytest_twisted.ensureDeferred
async def test_who_asks_for_the_head_gets_no_body(admin):
    admin.state.found = ["draining"]
    status, headers, words = await admin.ask("HEAD /ready")
    assert (status, words) == (503, None)
    assert headers["content-type"] == "application/json"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["/console", "/metrics2", "/../live"])
async def test_what_is_not_there_is_answered_with_what_is(admin, path):
    status, _, words = await admin.ask(f"GET {path}")
    assert status == 404
    for name in ("/live", "/ready", "/status"):
        assert name in words["error"]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_nothing_can_be_changed_here(admin, method):
    status, headers, body = await deferToThread(ask, admin.where, f"{method} /live")
    assert status == 405
    assert "GET" in headers["allow"]
    assert b"Traceback" not in body


def test_a_busy_port_is_named_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = taken.getsockname()
        with pytest.raises(CannotListen) as caught:
            open_admin(reactor, where, State())
    text = str(caught.value)
    assert text.startswith("--admin: can't listen on tcp:")
    assert str(where[1]) in text
    assert text.endswith("Address already in use; name another place, or off")


@pytest_twisted.ensureDeferred
async def test_a_fault_in_the_answer_is_an_error_there_and_ends_nothing(logged_failures):
    class Broken(State):
        def status(self) -> dict[str, Any]:
            raise ZeroDivisionError

    port = open_admin(reactor, ("127.0.0.1", 0), Broken())
    where = ("127.0.0.1", port.getHost().port)
    assert (await deferToThread(ask, where, "GET /status"))[0] == 500
    assert (await deferToThread(ask, where, "GET /live"))[0] == 200
    await defer.maybeDeferred(port.stopListening)
    assert logged_failures.flush(ZeroDivisionError)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("request_", "rows"),
    [
        ("GET /clients", 20),
        ("GET /clients?slow=3", 3),
        ("GET /symbols", 50),
        ("GET /symbols?top=1000", 1000),
    ],
)
async def test_so_many_rows_are_shown_as_are_asked_for(admin, request_, rows):
    status, headers, words = await admin.ask(request_)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert len(words.get("clients") or words["symbols"]) == rows


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("request_", "right"),
    [
        ("GET /clients?slow=0", "slow=20, a whole number from 1 to 1000"),
        ("GET /clients?slow=1&slow=2", "slow=20, a whole number from 1 to 1000"),
        ("GET /clients?top=1", "slow=20, a whole number from 1 to 1000"),
        ("GET /symbols?top=1001", "top=50, a whole number from 1 to 1000"),
        ("HEAD /symbols?top=x", None),
    ],
)
async def test_what_is_asked_wrongly_is_answered_with_what_would_be_right(admin, request_, right):
    status, headers, words = await admin.ask(request_)
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert (words is None) if right is None else words["error"].endswith(f"right is {right}")


@pytest_twisted.ensureDeferred
async def test_an_answer_may_take_its_time_and_others_are_answered_meanwhile(admin):
    admin.state.waits = defer.Deferred()
    later = defer.ensureDeferred(admin.ask("GET /clients?slow=2"))
    head = defer.ensureDeferred(admin.ask("HEAD /clients?slow=2"))
    assert (await admin.ask("GET /live"))[0] == 200
    assert not later.called
    waiting, admin.state.waits = admin.state.waits, defer.succeed(None)
    waiting.callback(None)
    status, headers, words = await later
    assert (status, words["total"]) == (200, 7)
    assert int(headers["content-length"]) == len(json.dumps(words, separators=(",", ":"))) + 1
    status, headers, words = await head
    assert (status, words) == (200, None)


@pytest_twisted.ensureDeferred
async def test_who_leaves_before_the_answer_is_there_gets_none_and_harms_nobody(admin):
    admin.state.waits = defer.Deferred()
    family = socket.AF_UNIX if isinstance(admin.where, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.connect(admin.where)
        client.sendall(b"GET /symbols HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: admin.state.asked == 1, "the question")
    # The next one comes after the end of the first, which the port hears in order.
    assert (await admin.ask("GET /live"))[0] == 200
    assert (await admin.ask("GET /live"))[0] == 200
    admin.state.waits.callback(None)
    assert (await admin.ask("GET /live"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_report_that_fails_is_an_error_in_words(admin, logged_failures):
    admin.state.waits = defer.fail(ZeroDivisionError())
    status, _, words = await admin.ask("GET /clients")
    [event] = logged_failures.flush(ZeroDivisionError)
    assert (status, words) == (500, {"error": f"internal error: incident {event['incident']}"})


@pytest_twisted.ensureDeferred
async def test_a_fault_in_an_answer_at_once_is_an_error_in_words_too(
    admin, logged_failures, monkeypatch
):
    def fail() -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(admin.state, "status", fail)
    status, headers, words = await admin.ask("GET /status?any=thing")
    [event] = logged_failures.flush(ZeroDivisionError)
    assert (status, words) == (500, {"error": f"internal error: incident {event['incident']}"})
    assert headers["content-type"] == "application/json"
    assert event["path"] == b"/status"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "text/plain"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics"),
    ],
)
async def test_metrics_are_text_of_the_kind_that_is_asked_for(admin, accept, kind):
    def fetch() -> tuple[int, dict[str, str], bytes]:
        return ask(admin.where, f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\nX-Rest:")

    status, headers, body = await deferToThread(fetch)
    assert status == 200
    assert headers["content-type"].startswith(kind)
    assert b"\nquotepush_subscriptions 7" in body
    assert body.endswith(b"# EOF\n") is (kind != "text/plain")


# -- the operator's page, and who may have a browser ask -------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_operator_s_page_and_its_scripts_are_there(admin):
    for path, kind in [("/", "text/html"), ("/console.js", "text/javascript")]:
        status, headers, body = await deferToThread(ask, admin.where, f"GET {path}")
        assert status == 200
        assert headers["content-type"] == f"{kind}; charset=utf-8"
        assert body
    status, headers, _ = await deferToThread(ask, admin.where, "POST /")
    assert status == 405


@pytest.mark.parametrize("admin", ["tcp"], indirect=True)
@pytest.mark.parametrize("path", ["/", "/status", "/live", "/console.js", "/nothing"])
@pytest_twisted.ensureDeferred
async def test_a_name_that_is_not_its_own_gets_nothing_from_a_loopback_port(admin, path):
    status, _, words = await admin.ask(f"GET {path}", host="rebound.example:8009")
    assert status == 421
    assert "localhost" in words["error"]
    assert (await admin.ask("GET /live", host="localhost"))[0] == 200


@pytest.mark.parametrize("admin", ["unix"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_names_do_not_matter_on_a_unix_socket(admin):
    assert (await admin.ask("GET /live", host="whatever.example"))[0] == 200
