"""The floors: imports only go down, and the two lower floors know no network library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pushservice"

FLOORS = {
    "compose": [
        "tap",
        "__main__",
        "cli",
        "token_cli",
        "feed_cli",
        "record_cli",
        "watch_cli",
        "watching",
        "bench_cli",
        "benching",
        "client_cli",
        "daemon_options",
        "process",
        "solo",
        "workers",
        "overview",
        "posts",
        "worker",
        "service",
        "standing",
        "access",
        "sources",
        "development",
        "client",
    ],
    "edges": [
        "websocket",
        "reception",
        "lean",
        "outlet",
        "kernel",
        "logs",
        "clientlog",
        "feeds",
        "listening",
        "redisfeed",
        "redislink",
        "redistls",
        "registry",
        "registry_scripts",
        "sentinel",
        "snapshots",
        "tokenkeys",
        "tokens",
        "tickets",
        "revoking",
        "errands",
        "demo",
        "publishing",
        "recorder",
        "recordings",
        "foreground",
        "statusline",
        "screen",
        "columns",
        "keys",
        "recent",
        "embedded",
        "configfile",
        "certificates",
        "tls",
        "proxyprotocol",
        "systemd",
        "signals",
        "admin",
        "questions",
        "exposition",
        "insight",
        "vitals",
        "console",
        "ports",
        "balance",
        "tally",
        "workerprocess",
        "workerlink",
        "inheritance",
        "web",
    ],
    "core": [
        "announcements",
        "farewell",
        "hub",
        "mirror",
        "topic",
        "outbox",
        "backlog",
        "pacing",
        "tape",
        "delayed",
        "liveness",
        "session",
        "subscriptions",
        "doorkeeper",
        "auth",
        "revocations",
        "allowance",
        "admission",
        "proxies",
        "market",
        "reports",
        "totals",
        "punctuality",
        "playback",
        "board",
        "load",
    ],
    "words": [
        "wire",
        "commands",
        "listings",
        "recording",
        "ticker",
        "closing",
        "interfaces",
        "config",
        "coercers",
        "options",
        "layers",
        "settings",
        "redisurl",
        "limits",
        "channels",
        "origins",
        "credentials",
        "deflate",
        "metrics",
        "families",
        "stamps",
    ],
}
ORDER = ["words", "core", "edges", "compose"]
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

#: the floors of the Python client, from above, below the words that it shares with the daemon
CLIENT_FLOORS = {
    "faces": ["for_asyncio", "for_twisted", "twisted_tls"],
    "core": ["conversation", "wishes", "mailbox"],
    "words": ["events", "options", "frames", "refusals"],
}
CLIENT_ORDER = ["words", "core", "faces"]
CLIENT_FLOOR_OF = {room: floor for floor, rooms in CLIENT_FLOORS.items() for room in rooms}
CLIENT_ONLY_IN = {
    "websockets": {"for_asyncio"},
    "asyncio": {"for_asyncio"},
    "ssl": {"for_asyncio"},
    "autobahn": {"for_twisted"},
    "twisted": {"for_twisted", "twisted_tls"},
    "OpenSSL": {"twisted_tls"},
    "cryptography": {"twisted_tls"},
    "service_identity": {"twisted_tls"},
    "time": set(),
    "socket": set(),
}

#: third-party packages and the only rooms that may import them
ONLY_IN = {
    "websockets": set(),
    "autobahn": {"websocket", "reception", "lean"},
    "txredisapi": {
        "redislink",
        "redisfeed",
        "publishing",
        "registry",
        "sentinel",
        "snapshots",
        "tickets",
        "revoking",
        "errands",
    },
    "hiredis": {"redisfeed"},
    "OpenSSL": {"certificates", "redistls", "outlet"},
    "service_identity": {"redistls"},
    "click": {
        "cli",
        "token_cli",
        "feed_cli",
        "record_cli",
        "watch_cli",
        "bench_cli",
        "daemon_options",
        "client_cli",
    },
    "rich": {"screen", "columns"},
    "zstandard": {"recordings"},
    "jwt": {"tokens"},
    "prometheus_client": {"exposition"},
    "cryptography": {"certificates", "tls", "redistls", "outlet", "tokenkeys"},
}
#: what floors 1 and 2 may not import: networks, clocks, files and processes
FORBIDDEN_BELOW = {"twisted", "autobahn", "txredisapi", "hiredis", "OpenSSL", "socket", "ssl"} | {
    "time",
    "asyncio",
    "threading",
    "subprocess",
    "os",
}


def room_files() -> dict[str, Path]:
    files = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    return files | {name: PACKAGE / name / "__init__.py" for name in ("web", "client")}


def client_files() -> dict[str, Path]:
    found = (PACKAGE / "client").glob("*.py")
    return {path.stem: path for path in found if path.stem != "__init__"}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, those for types alone left out."""
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module in ("pushservice", "pushservice.client"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_has_a_floor_and_every_floor_its_rooms():
    assert set(room_files()) == set(FLOOR_OF)


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_imports_go_down_or_sideways_never_up(room):
    mine = ORDER.index(FLOOR_OF[room])
    for module in imports_of(room_files()[room]):
        head, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if head == "pushservice" and other in FLOOR_OF:
            assert ORDER.index(FLOOR_OF[other]) <= mine, f"{room} imports {other}, a floor up"


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_a_library_is_imported_only_in_its_rooms(room):
    for module in imports_of(room_files()[room]):
        head = module.partition(".")[0]
        assert room in ONLY_IN.get(head, {room}), f"{head} is not for {room}"
        if FLOOR_OF[room] in ("words", "core"):
            assert head not in FORBIDDEN_BELOW, f"{room} does no I/O and reads no clock: {head}"


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_a_room_says_what_it_is_for_and_what_it_must_not_know(room):
    docstring = ast.get_docstring(ast.parse(room_files()[room].read_text("utf-8")))
    assert docstring is not None
    assert "Must not know" in docstring


def test_the_core_is_importable_without_twisted():
    code = (
        "import sys; from pushservice import hub, outbox, session, market, config, channels;"
        "bad = [m for m in ('twisted', 'autobahn', 'txredisapi', 'OpenSSL') if m in sys.modules];"
        "sys.exit(' '.join(bad) or 0)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


# -- the Python client ---------------------------------------------------------------------------


def test_every_room_of_the_client_has_a_floor():
    assert set(client_files()) == set(CLIENT_FLOOR_OF)


@pytest.mark.parametrize("room", sorted(CLIENT_FLOOR_OF))
def test_the_client_imports_its_own_rooms_below_and_of_the_daemon_the_words_alone(room):
    mine = CLIENT_ORDER.index(CLIENT_FLOOR_OF[room])
    for module in imports_of(client_files()[room]):
        parts = module.split(".")
        if parts[:2] == ["pushservice", "client"]:
            if len(parts) == 2:
                continue
            assert CLIENT_ORDER.index(CLIENT_FLOOR_OF[parts[2]]) <= mine, f"{room}: {module}"
        elif parts[0] == "pushservice" and len(parts) > 1:
            assert FLOOR_OF[parts[1]] == "words", f"client/{room} imports {module}"
        else:
            assert room in CLIENT_ONLY_IN.get(parts[0], {room}), f"{parts[0]} is not for {room}"


@pytest.mark.parametrize("room", sorted(CLIENT_FLOOR_OF))
def test_a_room_of_the_client_says_what_it_is_for_and_what_it_must_not_know(room):
    docstring = ast.get_docstring(ast.parse(client_files()[room].read_text("utf-8")))
    assert docstring is not None
    assert "Must not know" in docstring


def test_the_architecture_names_every_room_of_the_client():
    text = (PACKAGE.parent / "docs" / "architecture.rst").read_text("utf-8")
    assert set(re.findall(r" client/(\w+)\.py ", text)) == set(CLIENT_FLOOR_OF)


@pytest.mark.parametrize(
    ("wanted", "bad"),
    [
        (
            "from pushservice.client import Quote, conversation",
            ("twisted", "websockets", "asyncio"),
        ),
        ("from pushservice.client import connect", ("twisted", "autobahn")),
        ("from pushservice.client import QuoteService", ("websockets",)),
    ],
)
def test_a_face_of_the_client_brings_only_its_own_library(wanted, bad):
    code = f"{wanted}; import sys; sys.exit(' '.join(m for m in {bad} if m in sys.modules) or 0)"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
