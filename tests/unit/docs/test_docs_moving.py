"""docs/moving-from-swoole.rst agrees with the options, the registry and the raw protocol."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import ROOT, code_blocks
from core_doubles import Client, FixedClock, make_hub, publish
from docutils import nodes
from docutils.core import publish_doctree
from twisted.scripts.twistd import ServerOptions

from pushservice.config.options import OPTIONS
from pushservice.fanout.hub import Hub
from pushservice.protocol.codecs import RAW

MOVING = "docs/moving-from-swoole.rst"
#: what an operator of the script looks for
SETTINGS = """
    host port mode sock_type SWOOLE_SSL ssl_cert_file ssl_key_file ssl_protocols worker_num
    reactor_num task_worker_num dispatch_mode max_request max_conn max_connection daemonize pid_file
    log_file log_level user group backlog open_tcp_nodelay open_tcp_keepalive tcp_defer_accept
    heartbeat_check_interval heartbeat_idle_time package_max_length buffer_output_size
    socket_buffer_size open_websocket_ping_frame
"""


def document(name: str) -> nodes.document:
    return publish_doctree((ROOT / name).read_text("utf-8"))


def rows(name: str, table: str) -> list[list[nodes.entry]]:
    """The cells of the body of a table that is called `table`."""
    (found,) = (each for each in document(name).findall(nodes.table) if table in each["names"])
    body = next(iter(found.findall(nodes.tbody)))
    return [list(row.findall(nodes.entry)) for row in body.children]


def literals(cell: nodes.entry) -> list[str]:
    return [each.astext() for each in cell.findall(nodes.literal)]


@pytest.fixture(scope="module")
def settings() -> list[list[nodes.entry]]:
    return rows(MOVING, "settings")


def twistd_defaults() -> dict[str, str | None]:
    """The options of twistd with their defaults."""
    options = ServerOptions()
    names = {name.rstrip("=") for name in options.longOpt}
    return {f"--{name}": options.get(name) for name in names} | {"--logfile": "twistd.log"}


def test_every_setting_of_swoole_is_listed(settings):
    named = {word for row in settings for word in literals(row[0])}
    assert set(SETTINGS.split()) <= named


def test_each_counterpart_is_an_option_with_the_stated_default(settings):
    ours = {f"--{option.name}": option.default for option in OPTIONS}
    theirs = twistd_defaults()
    compared = 0
    for _, here, default, _ in settings:
        known = theirs if here.astext().startswith("of twistd") else ours
        said = [text.strip() for text in default.astext().split(",")]
        options = literals(here)
        assert options or here.astext() in ("—", "of twistd"), here.astext()
        # One default for all of them, or one for each.
        each = said if len(said) > 1 else said * len(options)
        for option, expected in zip(options, each, strict=True):
            compared += 1
            assert option in known, option
            assert expected == (known[option] or "—"), option
    assert compared >= 30


def test_a_setting_without_a_counterpart_has_a_remark(settings):
    for there, here, _, remark in settings:
        if here.astext() == "—":
            assert remark.astext(), there.astext()


def test_every_option_in_the_remarks_exists(settings):
    known = {f"--{option.name}" for option in OPTIONS}
    for row in settings:
        for text in literals(row[3]):
            if text.startswith("--"):
                assert text.split()[0] in known, text


def test_the_new_keys_are_those_of_the_registry():
    kept = {key for row in rows("docs/registry.rst", "keys") for key in literals(row[0])}
    demand = "quotepush:demand"
    assert demand in document("docs/registry.rst").astext()
    new = {key for row in rows(MOVING, "old-keys") for key in literals(row[3])}
    assert new
    assert new <= kept | {demand}


def test_the_migrated_configuration_is_valid(tmp_path: Path):
    blocks = code_blocks(MOVING)
    secret = tmp_path / "redis"
    (example,) = re.findall(r"redis://\S+", blocks["migrated"])
    secret.write_text(f"{example}\n")
    text = blocks["migrated"].replace("/etc/quotepush/redis", str(secret))
    (tmp_path / "quotepush.toml").write_text(text)
    quotepush, *words = blocks["check-migrated"].split()
    done = subprocess.run(
        [Path(sys.executable).with_name(quotepush), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "the configuration is good" in done.stdout
    for key in re.findall(r"^([a-z-]+) = ", text, re.MULTILINE):
        assert re.search(rf"\b{key} .*{tmp_path}/", done.stdout), key


# -- clients --------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Hub:
    """A hub that knows two symbols."""
    hub = make_hub(FixedClock())
    publish(hub, ("AAPL", b'{"last":189.50}'), ("600519.SH", b'{"last":1689.5}'))
    return hub


def test_bare_symbols_bring_bare_payloads_in_one_message_or_several(hub):
    (sent,) = re.findall(r'send\("(.*)"\)', code_blocks(MOVING)["raw-client"])
    together, apart = (Client(hub, name, codec=RAW) for name in ("t-1", "t-2"))
    together.say(sent.encode())
    for symbol in sent.split(","):
        apart.say(symbol.encode())
    assert together.texts() == apart.texts() == [b'{"last":189.50}', b'{"last":1689.5}']


def test_unsubscribing_needs_json_and_is_not_answered(hub):
    (command,) = (
        text
        for each in document(MOVING).findall(nodes.literal)
        if "unsubscribe" in (text := each.astext())
    )
    client = Client(hub, codec=RAW)
    client.say(b"AAPL")
    client.texts()
    client.say(command.encode())
    publish(hub, ("AAPL", b"1"))
    assert client.texts() == []


def test_a_text_heartbeat_is_a_symbol_and_a_json_heartbeat_an_error(hub):
    client = Client(hub, codec=RAW)
    client.say(b"ping")
    publish(hub, ("ping", b"1"))
    assert client.texts() == [b"1"]
    client.say(b'{"type":"ping"}')
    (text,) = client.texts()
    assert set(json.loads(text)) == {"error"}


def test_bare_symbols_are_an_error_without_a_subprotocol(hub):
    client = Client(hub)
    client.events()
    client.say(b"AAPL,600519.SH")
    (event,) = client.events()
    assert (event["ev"], event["code"]) == ("error", 400)
