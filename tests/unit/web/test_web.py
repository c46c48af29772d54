"""What the public port serves over HTTP, asked by a plain HTTP client over a real socket."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
from html.parser import HTMLParser
from importlib.resources import files
from typing import NamedTuple

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.threads import deferToThread
from waiting import until

from pushservice.web import MAX_SYMBOLS, build_site, content_security_policy

WEB = files("pushservice.web")
PAGE = (WEB / "index.html").read_bytes()
SCRIPT = (WEB / "client" / "quotepush.js").read_bytes()
PARTS = ["page.js", "dom.js", "raw_frames.js"]
SYMBOLS = [f"S{at}" for at in range(2000)]


class Answer(NamedTuple):
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Served:
    """A site on a real port; counts what it says it has served."""

    def __init__(self, with_page: bool) -> None:
        self.counted = 0
        self.limits: list[int] = []
        self.connections = 0
        site = build_site(reactor, self._recent, self._count, with_page)
        build = site.buildProtocol

        def buildProtocol(address):
            channel = build(address)
            lost = channel.connectionLost

            def connectionLost(reason):
                self.connections -= 1
                lost(reason)

            channel.connectionLost = connectionLost
            self.connections += 1
            return channel

        site.buildProtocol = buildProtocol
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.number = self.port.getHost().port

    def _recent(self, limit: int) -> list[str]:
        self.limits.append(limit)
        return SYMBOLS[:limit]

    def _count(self) -> None:
        self.counted += 1

    def ask(self, path: str, method: str = "GET", **headers: str) -> defer.Deferred[Answer]:
        """Send one request and read its answer, in a thread."""
        return deferToThread(self._ask, path, method, headers)

    def _ask(self, path: str, method: str, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.number, timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            response = connection.getresponse()
            got = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, got, response.read())
        finally:
            connection.close()

    async def stop(self) -> None:
        await self.port.stopListening()
        await until(lambda: self.connections == 0, "the connections to end")


@pytest.fixture
def serve():
    """serve(with_page=True): a site that is ended at the end."""
    made = []

    def start(with_page: bool = True) -> Served:
        made.append(Served(with_page))
        return made[-1]

    yield start
    for served in made:
        pytest_twisted.blockon(defer.ensureDeferred(served.stop()))


# -- documents -------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("path", "content", "content_type"),
    [
        ("/", PAGE, "text/html; charset=utf-8"),
        ("/index.html", PAGE, "text/html; charset=utf-8"),
        ("/?anything=1", PAGE, "text/html; charset=utf-8"),
        ("/quotepush.js", SCRIPT, "text/javascript; charset=utf-8"),
        *(
            (f"/{name}", (WEB / name).read_bytes(), "text/javascript; charset=utf-8")
            for name in PARTS
        ),
    ],
)
async def test_the_page_and_the_client_are_served_as_they_are_in_the_package(
    serve, path, content, content_type
):
    served = serve()
    answer = await served.ask(path)
    assert answer.status == 200
    assert answer.body == content
    assert answer.headers["content-type"] == content_type
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    assert served.counted == 1


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["/", "/quotepush.js", "/page.js", "/symbols.json", "/nothing"])
async def test_head_has_the_headers_of_get_and_no_body(serve, path):
    served = serve()
    head, get = await served.ask(path, "HEAD"), await served.ask(path)
    assert head.body == b""
    assert head.status == get.status
    different = {"date", "content-length"}
    assert {name: v for name, v in head.headers.items() if name not in different} == {
        name: v for name, v in get.headers.items() if name not in different
    }


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["/", "/quotepush.js", "/page.js"])
async def test_what_a_browser_has_already_is_not_sent_again(serve, path):
    served = serve()
    etag = (await served.ask(path)).headers["etag"]
    again = await served.ask(path, If_None_Match=etag)
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == etag
    changed = await served.ask(path, If_None_Match='"another"')
    assert (changed.status, len(changed.body) > 1000) == (200, True)


def test_the_page_asks_for_all_its_scripts_at_once():
    """Without, a browser would find the second only once it has read the first."""
    preloaded = re.findall(r'<link rel="modulepreload" href="([^"]+)">', PAGE.decode())
    imported = {
        name
        for script in PARTS
        for name in re.findall(r'from "\./([^"]+)"', (WEB / script).read_text("utf-8"))
    }
    assert sorted(preloaded) == sorted({"page.js", *imported}) == sorted([*PARTS, "quotepush.js"])


@pytest_twisted.ensureDeferred
async def test_the_page_and_the_client_are_told_apart(serve):
    served = serve()
    page, script = await served.ask("/"), await served.ask("/quotepush.js")
    assert page.headers["etag"] != script.headers["etag"]
    assert script.headers["access-control-allow-origin"] == "*", "others may import the client"
    assert "access-control-allow-origin" not in page.headers


# -- the page's policy -----------------------------------------------------------------------------


class Inline(HTMLParser):
    """Collects a page's inline scripts and styles as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: dict[str, list[str]] = {"script": [], "style": []}
        self.handlers: list[str] = []
        self._within: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        self.handlers += [name for name in names if name.startswith("on") or name == "style"]
        if tag in self.found and "src" not in names:
            self._within = tag
            self.found[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._within:
            self._within = None

    def handle_data(self, data: str) -> None:
        if self._within:
            self.found[self._within][-1] += data


@pytest_twisted.ensureDeferred
async def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else(serve):
    served = serve()
    policy = (await served.ask("/")).headers["content-security-policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    inline = Inline(PAGE.decode())
    assert inline.found["style"], "the page has an inline style"
    assert inline.found["script"] == [], "its scripts are files"
    digests = [hashlib.sha256(text.encode()).digest() for text in inline.found["style"]]
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    assert rules.pop("style-src") == ["'self'", *hashes]
    assert rules.pop("script-src") == ["'self'"]
    assert rules == {
        "default-src": ["'none'"],
        "connect-src": ["'self'", "ws:", "wss:"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    assert inline.handlers == [], "the policy forbids handlers and styles in attributes"


def test_a_policy_has_a_hash_for_each_inline_script_and_none_for_those_elsewhere():
    page = (
        '<script>a()</script><script src="x.js"></script><style media="print">b {}</style>'
        '<script type="module">\n"é"\n</script>'
    )
    policy = content_security_policy(page)
    for text in ("a()", '\n"é"\n', "b {}"):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.count("sha256-") == 3


# -- symbols ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("query", "count"), [("", 60), ("?limit=1", 1), ("?limit=1000", 1000), ("?limit=2&limit=3", 2)]
)
async def test_the_recent_symbols_are_served_as_many_as_asked(serve, query, count):
    served = serve()
    answer = await served.ask(f"/symbols.json{query}")
    assert answer.status == 200
    assert json.loads(answer.body) == SYMBOLS[:count]
    assert served.limits == [count]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "limit",
    [
        *("0", "-1", "1001", "", "x", "1e3", "1.5", "+5", "%D9%A3", "9" * 5000),
        "0000001009999",
        "000000001" + "0" * 5000,
    ],
)
async def test_a_limit_that_is_none_is_refused_in_words(serve, limit, logged_failures):
    served = serve()
    answer = await served.ask(f"/symbols.json?limit={limit}")
    logged_failures.flush(ValueError)
    assert answer.status == 400
    assert json.loads(answer.body) == {"error": f"limit is a number from 1 to {MAX_SYMBOLS}"}
    assert answer.headers["content-type"] == "application/json"
    assert served.limits == []


# -- everything else -------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["/nothing", "/a/b", "/..", "/../tap.py", "/%2e%2e/tap.py"])
async def test_what_is_not_there_is_said_in_plain_text(serve, path):
    served = serve()
    answer = await served.ask(path)
    assert (answer.status, answer.body) == (404, b"There is nothing here; the page is at /\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert served.counted == 1


# Twisted answers with a page of its own that it deprecates itself.
@pytest.mark.filterwarnings("ignore:twisted.web.resource._UnsafeErrorPage:DeprecationWarning")
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("PUT", 501), ("DELETE", 501)])
async def test_the_page_cannot_be_written_to(serve, method, status):
    served = serve()
    for path in ("/", "/quotepush.js", "/symbols.json"):
        answer = await served.ask(path, method)
        assert answer.status == status
        if status == 405:
            assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("with_page", [True, False])
async def test_a_request_with_a_body_is_cut_off_and_nothing_of_it_is_kept(serve, with_page):
    served = serve(with_page)

    def post() -> int:
        """Send a body without end until the server has enough; how much it took."""
        sent = 0
        with socket.create_connection(("127.0.0.1", served.number), 10) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
            try:
                while sent < 100_000_000:
                    sent += client.send(b"x" * 65536)
            except (ConnectionResetError, BrokenPipeError):
                return sent
        return sent

    assert await deferToThread(post) < 50_000_000
    assert (await served.ask("/nothing")).status in {404, 426}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/index.html", "/quotepush.js", "/symbols.json", "/x/y"])
async def test_without_the_page_every_request_is_told_to_upgrade(serve, method, path):
    served = serve(with_page=False)
    answer = await served.ask(path, method)
    assert answer.status == 426
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body == b"This is a WebSocket server: connect with wss:// or ws://.\n"
    assert served.counted == 1
    assert served.limits == []


@pytest_twisted.ensureDeferred
async def test_a_fault_in_an_answer_is_500_with_the_id_that_the_log_has(
    serve, logged_failures, monkeypatch
):
    served = serve()

    # What is asked for is kept there.
    monkeypatch.setattr(served, "limits", None)
    answer = await served.ask("/symbols.json?limit=3&token=secret")
    [event] = logged_failures.flush(AttributeError)
    assert answer.status == 500
    assert answer.body.decode() == f"internal error: incident {event['incident']}\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert event["path"] == b"/symbols.json"
