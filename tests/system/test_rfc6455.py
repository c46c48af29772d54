"""RFC 6455, rule by rule: the daemon's WebSocket side as a server that echoes, plain and under TLS.

The cases are in rfc6455_*.py, and docs/conformance.rst lists them.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rfc6455_cases import CASES
from rfc6455_client import Play, faults
from rfc6455_link import Link
from rfc6455_records import Case
from rfc6455_table import GROUPS, TRANSPORTS, documented, rendered
from system_harness import Daemon

ECHO_SERVER = Path(__file__).with_name("echo_server.py")


@pytest.fixture(autouse=True)
def logged_failures() -> None:
    """Nothing here touches the reactor of this process: what it leaves behind is not looked for."""


@dataclass
class EchoServer:
    """Where the server listens, and what a client needs for its TLS."""

    ports: dict[str, int]
    contexts: dict[str, ssl.SSLContext | None]


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    directory = tmp_path_factory.mktemp("echo")
    command = [sys.executable, "-W", "error", str(ECHO_SERVER), str(directory)]
    process = Daemon(command, port=0, directory=directory, certs=directory)
    *_, plain, tls = process.wait_for("echoing on").split()
    yield EchoServer(
        {"plain": int(plain), "tls": int(tls)}, {"plain": None, "tls": process.ssl_context}
    )
    process.stop()
    assert "Traceback" not in process.output(), process.output()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_server_does_what_the_rfc_demands(
    echo_server: EchoServer, case: Case, transport: str
) -> None:
    found = []
    for way in case.ways:
        link = Link(echo_server.ports[transport], echo_server.contexts[transport])
        try:
            play = Play(case, way, link)
        finally:
            link.close()
        found += [f"{way.name}, {transport}: {fault}" for fault in faults(play)]
    if found:
        pytest.fail(f"{case.id} ({case.section}) {case.title}:\n" + "\n".join(found), pytrace=False)


def test_every_case_has_a_number_of_its_own_in_a_group() -> None:
    ids = [case.id for case in CASES]
    assert sorted(set(ids)) == sorted(ids)
    assert {number.partition(".")[0] for number in ids} == set(GROUPS)


def test_the_document_lists_the_cases_as_they_are() -> None:
    assert documented() == rendered(), "make it anew: python tests/system/rfc6455_table.py"
