"""The documents parse and agree with the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import click
import docutils.core
import msgspec
import pytest
import toctree  # noqa: F401 - makes docutils know the directive
from authentication_doubles import AuthenticatedHub
from core_doubles import Client, FixedClock, make_hub, publish
from docutils import nodes
from twisted.scripts.twistd import ServerOptions

from pushservice.cli.main import main
from pushservice.config.files import Sources
from pushservice.config.options import CONFIG_FILE, OPTIONS
from pushservice.limits import BURST_SECONDS, Limits
from pushservice.protocol import commands, events
from pushservice.protocol.close_codes import RECONNECT_AFTER, CloseCode, ErrorCode
from pushservice.protocol.codecs import CODECS, JSON, RAW, Codec
from pushservice.protocol.symbols import MAX_SYMBOL_BYTES
from pushservice.tap import Options

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "pushservice"


def documents() -> list[Path]:
    """The documents that are not empty."""
    found = [ROOT / name for name in ("README.rst", "CHANGELOG.rst", "SECURITY.rst")]
    found.append(ROOT / "certs" / "README.rst")
    found += sorted((ROOT / "docs").rglob("*.rst"))
    return [path for path in found if path.read_text("utf-8").strip()]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("path", documents(), ids=named)


@cache
def parsed(path: Path) -> nodes.document:
    """The document at `path`; a warning by docutils raises.

    Its notes of level 1 don't: one link text used twice for the same target is one of them.
    """
    return docutils.core.publish_doctree(
        path.read_text("utf-8"),
        source_path=str(path),
        settings_overrides={
            "report_level": 2,
            "halt_level": 2,
            "syntax_highlight": "none",
            "_disable_config": True,
        },
    )


def protocol() -> nodes.document:
    return parsed(ROOT / "docs" / "protocol.rst")


def rows_of(table: nodes.table) -> list[list[str]]:
    """The texts of a table's body, row by row."""
    body = next(iter(table.findall(nodes.tbody)))
    return [[entry.astext() for entry in row.findall(nodes.entry)] for row in body.children]


def table_named(document: nodes.document, name: str) -> list[list[str]]:
    (table,) = (t for t in document.findall(nodes.table) if name in t["names"])
    return rows_of(table)


def blocks(*classes: str) -> list[tuple[str, list[str]]]:
    """The code blocks of the protocol of any of `classes` in order: its class and its messages."""
    return [
        (name, block.astext().splitlines())
        for block in protocol().findall(nodes.literal_block)
        for name in classes
        if name in block["classes"]
    ]


def file_of(reference: nodes.reference) -> Path | None:
    """The file that a link leads to, from the file it is written in; None for other links."""
    target = reference.get("refuri", "").partition("#")[0]
    if not target or re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    node: nodes.Node = reference
    while not node.source and node.parent is not None:
        node = node.parent
    return Path(node.source or node["source"]).parent / target


# -- syntax and links -----------------------------------------------------------------------------


def test_the_documents_are_found():
    assert {"README.rst", "docs/protocol.rst", "docs/operations.rst", "docs/architecture.rst"} <= {
        named(path) for path in documents()
    }


@each_document
def test_a_document_parses_without_a_docutils_warning(path):
    assert parsed(path).astext()


@each_document
def test_links_and_images_point_to_existing_files(path):
    for reference in parsed(path).findall(nodes.reference):
        target = file_of(reference)
        assert target is None or target.exists(), f"{named(path)}: {target}"
    for image in parsed(path).findall(nodes.image):
        assert "://" in image["uri"] or (path.parent / image["uri"]).exists(), image["uri"]


def test_every_document_below_docs_is_linked_from_another():
    linked = set()
    for path in documents():
        for reference in parsed(path).findall(nodes.reference):
            target = file_of(reference)
            if target is not None:
                linked.add(target.resolve())
    # The index is the start page.
    assert set((ROOT / "docs").rglob("*.rst")) - linked <= {ROOT / "docs" / "index.rst"}


# -- options --------------------------------------------------------------------------------------


def twistd_options() -> set[str]:
    names = set()
    for options in (ServerOptions(), Options()):
        names |= {name.rstrip("=") for name in options.longOpt}
    return names


def options_of(command: click.Command) -> set[str]:
    """The options of a command such as `quotepush`, and of all commands below it."""
    names = {
        name.removeprefix("--")
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
    }
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return names.union(*map(options_of, below))


@each_document
def test_every_named_option_exists(path):
    known = {option.name for option in OPTIONS} | twistd_options() | options_of(main)
    # Options of the benchmark and of other programs are their own.
    theirs = r"\b(?:script/bench|curl|docker|npx|systemctl|useradd) (?:.*\\\n)*.*"
    ours = re.sub(theirs, "", parsed(path).astext())
    found = set(re.findall(r"(?<![\w-])--([a-z][a-z-]*[a-z])", ours))
    assert found <= known


def starts_of(path: Path) -> list[list[str]]:
    """The arguments after the word quotepush in each command that starts a daemon."""
    found = []
    for block in parsed(path).findall(nodes.literal_block):
        for line in block.astext().replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith("twistd ") else []
            if "quotepush" in words:
                found.append(words[words.index("quotepush") + 1 :])
    return found


@each_document
def test_every_command_that_starts_a_daemon_has_valid_options(path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("QUOTEPUSH_")]:
        monkeypatch.delenv(name)
    for words in starts_of(path):
        Options().parseOptions(words)


def test_commands_that_start_a_daemon_are_found():
    assert len(starts_of(ROOT / "docs" / "operations.rst")) >= 5


def option_rows(path: Path) -> dict[str, list[str]]:
    """The rows of a document's tables of options, by their first cell."""
    rows = [row for table in parsed(path).findall(nodes.table) for row in rows_of(table)]
    return {row[0]: row for row in rows if row[0].startswith("--")}


@pytest.mark.parametrize("what", ["options", "metrics"])
def test_the_generated_page_matches_the_declarations(what):
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / f"{what}_table.py"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    written = (ROOT / "docs" / f"{what}.rst").read_text("utf-8")
    # To regenerate it: python docs/options_table.py > docs/options.rst, and likewise for metrics.
    assert written == done.stdout.decode()


def test_the_options_page_lists_each_option_with_its_variable_and_default():
    rows = option_rows(ROOT / "docs" / "options.rst")
    assert {name: row[1:3] for name, row in rows.items()} == {
        f"--{option.name}": [option.variable, option.default or "—"]
        for option in (CONFIG_FILE, *OPTIONS)
    }
    for option in OPTIONS:
        meaning = rows[f"--{option.name}"][3].replace("\n", " ")
        assert meaning[0].isupper()
        assert meaning[1:].startswith(option.help[1:].replace("`", ""))


def test_the_setup_page_repeats_rows_of_the_options_page():
    first, every = (
        option_rows(ROOT / "docs" / "setup.rst"),
        option_rows(ROOT / "docs" / "options.rst"),
    )
    assert 10 <= len(first) <= 15
    for name, row in first.items():
        ours, theirs = ([re.sub(r"\s+", " ", cell) for cell in each] for each in (row, every[name]))
        assert ours == theirs


def test_the_configuration_file_of_the_setup_page_is_valid(tmp_path):
    (example,) = (
        block.astext()
        for block in parsed(ROOT / "docs" / "setup.rst").findall(nodes.literal_block)
        if "configuration" in block["names"]
    )
    secret = tmp_path / "redis"
    secret.write_text("rediss://user:password@redis.example\n")
    file = tmp_path / "quotepush.toml"
    file.write_text(example.replace("/run/secrets/redis", str(secret)))
    settings = Sources({}, str(file), environment={}).load()
    assert settings.errors == settings.warnings == ()
    config = settings.config
    assert config.cert == (tmp_path / "fullchain.pem",)
    assert [str(address) for address in config.redis] == ["rediss://user:***@redis.example:6379"]
    set_by_it = {each.option.name for each in settings.settings if each.origin != "default"}
    keys = {*re.findall(r"^([a-z-]+) = ", example, re.MULTILINE)}
    assert set_by_it == keys | {"redis"}


# -- codes ----------------------------------------------------------------------------------------


def test_the_table_of_error_codes_matches_the_code():
    rows = table_named(protocol(), "error-codes")
    assert [int(code) for code, _ in rows] == sorted(ErrorCode)


def test_every_error_code_is_used_in_the_code():
    sources = "".join(
        path.read_text("utf-8") for path in PACKAGE.rglob("*.py") if path.name != "close_codes.py"
    )
    used = {ErrorCode[name].value for name in re.findall(r"ErrorCode\.([A-Z_]+)", sources)}
    assert {int(code) for code, _ in table_named(protocol(), "error-codes")} == used


def test_the_table_of_close_codes_matches_the_code():
    rows = table_named(protocol(), "close-codes")
    assert [int(code) for code, _, _ in rows] == sorted({*CloseCode, *RECONNECT_AFTER})
    for code, _, reconnect in rows:
        assert reconnect == ("yes" if int(code) in RECONNECT_AFTER else "no"), code


# -- examples -------------------------------------------------------------------------------------

REFUSED = ("unknown op",)


def test_every_example_of_the_protocol_has_a_sender():
    known = {"client", "answer", "server", "raw-client", "raw-answer"}
    known |= {"anonymous", "anonymous-answer"}
    for block in protocol().findall(nodes.literal_block):
        assert known & set(block["classes"]), block.astext()


@pytest.mark.parametrize("text", [t for _, lines in blocks("client", "anonymous") for t in lines])
def test_a_client_example_is_a_valid_command_or_a_known_error(text):
    refused = None
    try:
        commands.parse_command(text.encode())
    except commands.BadCommand as fault:
        refused = str(fault)
    assert refused is None or any(reason in refused for reason in REFUSED)


def conversation(said: str, answered: str, codec: Codec) -> None:
    """Send the documented commands to a real session and compare its answers."""
    clock = FixedClock(1_763_799_999.0)
    hub = make_hub(clock)
    publish(hub, *[("AAPL", b'{"last":189.50}')] * 1201)
    client = Client(hub, codec=codec)
    client.texts()
    converse(client, said, answered)


def converse(client: Client, said: str, answered: str) -> None:
    exchange = blocks(said, answered)
    assert [name for name, _ in exchange] == [said, answered] * (len(exchange) // 2)
    for name, lines in exchange:
        if name == said:
            for line in lines:
                client.say(line.encode())
        else:
            assert [text.decode() for text in client.texts()] == lines


def test_the_json_examples_match_a_real_session():
    conversation("client", "answer", JSON)


def test_the_raw_examples_match_a_real_session():
    conversation("raw-client", "raw-answer", RAW)


def test_the_authentication_examples_match_a_real_session():
    served = AuthenticatedHub()
    served.clock.rightNow = 1_763_799_999.0
    publish(served.hub, *[("AAPL", b'{"last":189.50}')] * 1201)
    tokens = re.findall(r'"op":"auth","id":\d+,"token":"(eyJ[^"]+)"', protocol().astext())
    for hours, text, pattern in zip((1, 2), tokens, ("AAPL", "MSFT"), strict=True):
        served.accept_token(text, pattern, expires_at=served.clock.seconds() + 3600 * hours)
    client = served.client()
    client.texts()
    converse(client, "anonymous", "anonymous-answer")
    client.session.close()


RawEvent = dict[str, msgspec.Raw]


def symbol_errors(event: RawEvent) -> dict[str, tuple[ErrorCode, str]]:
    errors = value(event, "errors") if "errors" in event else {}
    return {s: (ErrorCode(error["code"]), error["msg"]) for s, error in errors.items()}


def value(event: RawEvent, key: str):
    return msgspec.json.decode(event[key])


def quoted(event: RawEvent) -> tuple[bytes, int, int, bytes]:
    return (bytes(event["s"]), value(event, "n"), value(event, "t"), bytes(event["d"]))


def own_id(event: RawEvent) -> bytes | None:
    return bytes(event["id"]) if "id" in event else None


#: what makes each kind of event, from what an example of it says
MAKERS: dict[str, Callable[[RawEvent], bytes]] = {
    "welcome": lambda e: events.welcome(
        value(e, "conn"),
        value(e, "epoch"),
        value(e, "hb"),
        value(e, "limits")["symbols"],
        value(e, "limits")["message"],
        value(e, "auth") if "auth" in e else None,
    ),
    "authenticated": lambda e: events.authenticated(
        own_id(e), *(value(e, key) if key in e else None for key in ("user", "expires", "delay"))
    ),
    "expiring": lambda e: events.expiring(value(e, "in")),
    "subscribed": lambda e: events.subscribed(
        own_id(e), value(e, "symbols"), symbol_errors(e), value(e, "total")
    ),
    "unsubscribed": lambda e: events.unsubscribed(
        own_id(e), value(e, "symbols"), symbol_errors(e), value(e, "total")
    ),
    "list": lambda e: events.listing(own_id(e), value(e, "symbols")),
    "pong": lambda e: events.pong(own_id(e)),
    "error": lambda e: events.error(
        own_id(e),
        ErrorCode(value(e, "code")),
        value(e, "msg"),
        value(e, "retry") if "retry" in e else None,
    ),
    "quote": lambda e: JSON.quote(*quoted(e)),
    "snapshot": lambda e: JSON.snapshot(*quoted(e)),
    "heartbeat": lambda e: events.heartbeat(
        value(e, "t"), value(e, "feed") == "up", value(e, "age"), value(e, "merged")
    ),
    "feed": lambda e: events.feed(value(e, "state") == "up", value(e, "t")),
    "gap": lambda e: events.gap(bytes(e["s"])),
    "stale": lambda e: events.quiet(value(e, "symbols"), stale=True, everything="all" in e),
    "fresh": lambda e: events.quiet(value(e, "symbols"), stale=False, everything="all" in e),
    "bye": lambda e: events.bye(
        CloseCode(value(e, "code")), value(e, "retry") if "retry" in e else None
    ),
}


@pytest.mark.parametrize(
    "text", [t for _, lines in blocks("server", "answer", "anonymous-answer") for t in lines]
)
def test_a_server_example_is_an_array_of_events_as_the_code_makes_them(text):
    for raw in msgspec.json.decode(text, type=list[msgspec.Raw]):
        event = msgspec.json.decode(raw, type=RawEvent)
        assert bytes(raw) == MAKERS[value(event, "ev")](event)


def test_every_kind_of_event_has_an_example():
    examples = "".join(t for _, lines in blocks("server", "answer") for t in lines)
    assert set(re.findall(r'"ev":"(\w+)"', examples)) == set(MAKERS)


def test_the_protocol_states_the_subprotocols_and_limits_of_the_code():
    text = protocol().astext()
    for name in CODECS:
        assert name in text
    assert f"1 to {MAX_SYMBOL_BYTES} bytes" in text
    assert f"0 to {commands.MAX_INTERVAL_MS}" in text


def test_the_documents_state_the_limits_of_the_code():
    # Imported here because these modules install the reactor, which the other tests don't need.
    from pushservice.fanout import outbox, pacing
    from pushservice.server import connection_limits, handshake
    from pushservice.service import daemon, startup

    limits = Limits()
    text = re.sub(r"\s+", " ", protocol().astext())
    operations = re.sub(r"\s+", " ", parsed(ROOT / "docs" / "operations.rst").astext())
    said = {
        f"{limits.tls_timeout} seconds for the TLS handshake": text,
        f"and {limits.upgrade_timeout} more for the request": text,
        f"{limits.close_timeout} seconds for the client to answer a close": text,
        f"{limits.message_rate} messages and {limits.byte_rate} bytes a second": text,
        f"averaged over {BURST_SECONDS} seconds": text,
        f"{limits.per_address:,} connections from one address": text,
        f"{limits.connect_rate} new connections a second": text,
        f"every {limits.ping_interval} seconds (--ping-interval)": text,
        f"for {limits.ping_timeout} seconds (--ping-timeout)": text,
        f"no data at all for {limits.stall_timeout} seconds": text,
        f"up to {limits.raw_budget // 1024 // 1024} MiB (--raw-budget)": text,
        f"up to about {2 * limits.send_buffer // 1024} KiB": text,
        f"can use {pacing.EXACT_INTERVALS} different intervals": text,
        f"{handshake.MAX_REQUEST_HEAD} bytes in the head": text,
        f"once {outbox.ANSWERS_BUDGET // 1024} KiB of answers wait": text,
        f"a random number up to {daemon.RECONNECT_SPREAD_MS} for each client": text,
        f"the number is at most {daemon.MOVE_SPREAD_MS}": text,
        f"Retry-After: {handshake.RETRY_AFTER}": operations,
        f"as it may open files, less {startup.RESERVED_FILES} and": operations,
        f"ends after {handshake.PAGE_TIMEOUT} seconds, or"
        f" {handshake.MAX_PAGE_REQUESTS // 1024} KiB of requests": operations,
        f"--raw-budget and {outbox.RAW_CHUNK // 1024} KiB": operations,
    }
    assert [words for words, document in said.items() if words not in document] == []
    assert connection_limits.PENDING_GRACE == 2
    assert "older than two seconds" in operations
