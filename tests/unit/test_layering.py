"""The folders: which may import which, which libraries live where, and no circle between files.

The table of folders is read from docs/architecture.rst, so that the document is what is checked.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import docutils.core
import docutils.nodes
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pushservice"

#: modules at the top that every folder may import
SHARED = {"metrics", "limits"}
#: modules at the top that compose: they may import every folder, and no folder may import them
TOP = {"tap", "__main__"}

#: folders and files that do no I/O and take the time from a clock that they are given
PURE = {"protocol", "fanout", "session"} | {
    "auth/identity",
    "auth/revocations",
    "auth/origins",
    "config/coercers",
    "config/config",
    "config/from_options",
    "config/layers",
    "config/option",
    "config/options",
    "config/options_auth",
    "config/options_feed",
    "config/options_limits",
    "config/options_server",
    "config/settings",
    "market/instruments",
    "market/payload_fields",
    "market/playback",
    "market/recording_format",
    "market/simulator",
    "cli/board",
    "cli/bench_results",
    "feed/publish_time",
    "feed/symbol_reader",
    "monitoring/families",
    "monitoring/reactor_delay",
    "redis/url",
    "registry/payloads",
    "registry/pending",
    "server/client_reports",
    "server/connection_limits",
    "server/proxies",
    "workers/totals",
    "client/actions",
    "client/backoff",
    "client/conversation",
    "client/events",
    "client/frames",
    "client/freshness",
    "client/requests",
    "client/timers",
    "client/token_renewal",
    "client/watchdog",
    "client/event_queue",
    "client/options",
    "client/subscriptions",
    "limits",
    "metrics",
}
IMPURE_LIBRARIES = {
    *("autobahn", "hiredis", "OpenSSL", "twisted", "txredisapi", "websockets"),
    *("asyncio", "os", "socket", "ssl", "subprocess", "threading", "time"),
}

#: libraries, and the only files that import them
ONLY_IN: dict[str, set[str]] = {
    "asyncio": {
        *("cli/bench", "cli/bench_clients", "cli/keys", "cli/watch", "cli/watch_views"),
        *("client/for_asyncio", "client/asyncio_connection"),
    },
    "autobahn": {
        "server/handshake",
        "server/factory",
        "server/lean_autobahn",
        "client/twisted_connection",
    },
    "click": {
        *("cli/token_options", "cli/token_redis"),
        *("cli/main", "cli/token", "cli/feed", "cli/record", "cli/watch", "cli/bench"),
        *("cli/daemon_options", "cli/client_options"),
    },
    "cryptography": {
        *("tls/certificates", "tls/factory", "tls/material", "redis/tls", "auth/token_keys"),
        *("server/outlets/private_names", "client/twisted_tls"),
    },
    "hiredis": {"feed/redis_pubsub"},
    "jwt": {"auth/tokens"},
    "OpenSSL": {
        *("tls/certificates", "redis/tls", "server/outlets/private_names", "client/twisted_tls"),
    },
    "prometheus_client": {"monitoring/exposition"},
    "rich": {"cli/screen", "cli/columns"},
    "service_identity": {"redis/tls", "client/twisted_tls"},
    "txredisapi": {
        *("redis/link", "redis/sentinel", "redis/one_shot", "auth/tickets", "auth/revocation_feed"),
        *("feed/redis_pubsub", "registry/connection"),
    },
    "websockets": {"client/for_asyncio", "client/asyncio_connection"},
    "zstandard": {"market/recording_files"},
}


def file_name(path: Path) -> str:
    """The name of a module below the package, such as fanout/hub; that of a folder is fanout."""
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return name.removesuffix("/__init__")


FILES = {file_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
each_file = pytest.mark.parametrize("name", sorted(FILES))


def folder_of(name: str) -> str:
    """The folder that a module is in; the module's own name where it is at the top."""
    return name.partition("/")[0]


def imported(source: str) -> Iterator[str]:
    """The dotted names of all that `source` imports, for types alone too.

    Of `from a import b` both `a` and `a.b` are named: only the files know which one is a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(source: str) -> tuple[set[str], set[str]]:
    """Our modules that `source` imports, and the libraries."""
    ours, libraries = set(), set()
    for name in imported(source):
        head, _, rest = name.partition(".")
        if head != "pushservice":
            libraries.add(head)
        elif rest.replace(".", "/") in FILES:
            ours.add(rest.replace(".", "/"))
    # A folder that is named on the way to a module in it is no import of its own.
    return {name for name in ours if not any(o.startswith(f"{name}/") for o in ours)}, libraries


@cache
def table() -> dict[str, set[str]]:
    """The table of folders in docs/architecture.rst: each with those that it may import."""
    document = docutils.core.publish_doctree(
        (ROOT / "docs" / "architecture.rst").read_text("utf-8"),
        settings_overrides={"report_level": 2, "syntax_highlight": "none"},
    )
    (found,) = (t for t in document.findall(docutils.nodes.table) if "folders" in t["names"])
    body = next(iter(found.findall(docutils.nodes.tbody)))
    rows = [[entry.astext() for entry in row.findall(docutils.nodes.entry)] for row in body]
    allowed: dict[str, set[str]] = {}
    for name, _, words in rows:
        said = words.replace(",", " ").split()
        if said[:2] == ["all", "above"]:
            allowed[name] = set(allowed) - set(said[3:])
        else:
            allowed[name] = set(said) - {"nothing"}
    return allowed


def forbidden_imports(
    name: str, source: str, allowed: Mapping[str, Iterable[str]]
) -> dict[str, str]:
    """What the module `name` with this `source` may not import, each with the reason."""
    faults = {}
    ours, libraries = imports_of(source)
    mine = folder_of(name)
    for other in ours:
        its = folder_of(other)
        if name in TOP or its == mine or its in SHARED:
            continue
        if name in SHARED:
            faults[other] = f"{name} imports no folder"
        elif its in TOP:
            faults[other] = f"{its} is for twistd and the shell alone"
        elif its not in allowed[mine]:
            faults[other] = f"{mine} may not import {its}"
    for library in libraries:
        if name not in ONLY_IN.get(library, {name}):
            faults[library] = f"{library} is for {', '.join(sorted(ONLY_IN[library]))}"
        if library in IMPURE_LIBRARIES and (name in PURE or mine in PURE):
            faults[library] = f"{name} does no I/O and reads no clock"
    return faults


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The circles of imports: each a path of modules that ends where it began."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


# -- the package ---------------------------------------------------------------------------------


def test_the_table_names_each_folder_once_and_only_folders_that_may_be_imported():
    assert set(table()) == FOLDERS
    assert {other for names in table().values() for other in names} <= FOLDERS
    assert {name for name in FILES if "/" not in name} - FOLDERS <= SHARED | TOP | {"__init__"}


@each_file
def test_a_file_imports_only_what_its_folder_may(name):
    assert forbidden_imports(name, FILES[name].read_text("utf-8"), table()) == {}


def test_no_files_import_each_other_in_a_circle():
    graph = {name: imports_of(path.read_text("utf-8"))[0] for name, path in FILES.items()}
    assert circles(graph) == []


def test_the_folders_form_no_circle():
    assert circles(table()) == []


def test_files_that_are_named_here_exist():
    named = {name for names in ONLY_IN.values() for name in names} | PURE
    assert named <= set(FILES)


@each_file
def test_a_file_says_what_it_is_for_and_what_it_must_not_know(name):
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text("utf-8")))
    assert docstring is not None
    assert name == "__init__" or "Must not know" in docstring


# -- these tests see what they are to see --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("fanout/hub", "import socket", "socket"),
        ("fanout/hub", "from twisted.internet import reactor", "twisted"),
        ("fanout/hub", "from pushservice.server import ports", "server/ports"),
        ("fanout/hub", "from pushservice.server.ports import Ports", "server/ports"),
        ("fanout/hub", "import pushservice.server.ports", "server/ports"),
        ("fanout/hub", "def late():\n    from pushservice.tls import factory", "tls/factory"),
        (
            "fanout/hub",
            "if TYPE_CHECKING:\n    from pushservice.session.session import Session",
            "session/session",
        ),
        ("fanout/hub", "from pushservice import tap", "tap"),
        ("server/ports", "from pushservice.monitoring.logs import install", "monitoring/logs"),
        ("server/ports", "import txredisapi", "txredisapi"),
        ("server/ports", "from OpenSSL import SSL", "OpenSSL"),
        ("auth/identity", "import time", "time"),
        ("metrics", "from pushservice.fanout.hub import Hub", "fanout/hub"),
        ("cli/main", "from pushservice.workers.manager import Manager", "workers/manager"),
    ],
)
def test_a_forbidden_import_is_found(name, source, fault):
    assert set(forbidden_imports(name, source, table())) == {fault}


def test_an_allowed_import_is_no_fault():
    source = "from pushservice.protocol import commands\nfrom pushservice.metrics import Counters"
    assert forbidden_imports("fanout/hub", source, table()) == {}
    assert forbidden_imports("tap", "from pushservice.workers import manager", table()) == {}


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b", "c"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["a"]}, [["a", "b", "a"]]),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, [["b", "c", "b"]]),
        ({"a": ["a"]}, [["a", "a"]]),
    ],
)
def test_a_circle_is_found(graph, found):
    assert circles(graph) == found


# -- what is imported while it runs --------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "bad"),
    [
        (
            "from pushservice.fanout import hub, outbox; from pushservice.session import session",
            ("twisted", "autobahn", "txredisapi", "OpenSSL"),
        ),
        (
            "from pushservice.client import Quote, conversation",
            ("twisted", "websockets", "asyncio"),
        ),
        ("from pushservice.client import connect", ("twisted", "autobahn")),
        ("from pushservice.client import QuoteService", ("websockets",)),
    ],
)
def test_an_import_brings_only_the_libraries_that_it_needs(wanted, bad):
    code = f"{wanted}; import sys; sys.exit(' '.join(m for m in {bad} if m in sys.modules) or 0)"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
