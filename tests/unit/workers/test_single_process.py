"""A daemon that is one process: certificates are renewed, all else waits for a new start."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from pushservice.config.config import Config
from pushservice.redis.url import redis_address
from pushservice.tls.factory import development_pair
from pushservice.workers.plan import Plan
from pushservice.workers.single_process import SingleProcess, changed_fields

NOWHERE = redis_address("unix:///nowhere/redis.sock")


@pytest.fixture
def lines():
    """What is logged, as text."""
    found: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_format"):
            found.append(event["log_format"].format_map(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def pair_in(directory: Path) -> dict[str, Any]:
    """A new pair, and the fields of a configuration that names it."""
    pair = development_pair(directory)
    return {"cert": (pair.certificate,), "key": (pair.key,)}


class Served:
    """A single_process daemon that serves."""

    def __init__(self, **values: Any) -> None:
        base = {"listen": ("tcp:0:interface=127.0.0.1",), "redis": (NOWHERE,)}
        self.config = Config(**base | {"registry_prefix": None} | values)
        self.single_process = SingleProcess(reactor, Plan(self.config, {}))
        self.single_process.privilegedStartService()
        self.single_process.startService()

    async def reload(self, **values: Any) -> bool:
        return await self.single_process.reload(Plan(replace(self.config, **values), {}))

    async def certificate(self) -> str:
        """What a client that connects now is shown."""
        address = ("127.0.0.1", self.single_process._daemon.ports[0].getHost().port)
        return await deferToThread(ssl.get_server_certificate, address, timeout=10)


@pytest.fixture
def serve():
    """serve(**config): a single_process daemon that is stopped at the end."""
    made: list[Served] = []

    def one(**values: Any) -> Served:
        made.append(Served(**values))
        return made[-1]

    yield one
    for served in made:
        pytest_twisted.blockon(defer.maybeDeferred(served.single_process.stopService))


@pytest_twisted.ensureDeferred
async def test_a_reload_brings_the_certificates_that_are_there_now(serve, tmp_path, lines):
    served = serve(**pair_in(tmp_path / "a"))
    before = await served.certificate()
    assert await served.reload()
    assert await served.certificate() == before
    assert "new certificates for new connections" not in lines
    other = pair_in(tmp_path / "b")
    assert await served.reload(**other)
    assert await served.certificate() == other["cert"][0].read_text()
    assert lines.count("new certificates for new connections") == 1
    assert not [line for line in lines if "start again" in line]


@pytest_twisted.ensureDeferred
async def test_after_a_reload_the_files_that_are_in_use_are_watched(serve, tmp_path):
    first, second = pair_in(tmp_path / "a"), pair_in(tmp_path / "b")
    served = serve(**first, cert_watch=True)
    await served.reload(**second)
    assert served.single_process._certificate_watch._files._paths == (
        *second["cert"],
        *second["key"],
    )
    served.single_process._renew_certificates()
    assert await served.certificate() == second["cert"][0].read_text()


@pytest_twisted.ensureDeferred
async def test_the_authorities_of_clients_are_watched_too_and_others_need_a_new_start(
    serve, tmp_path, lines
):
    first, second = pair_in(tmp_path / "a"), pair_in(tmp_path / "b")
    [authority], [other] = first["cert"], second["cert"]
    served = serve(**first, cert_watch=True, client_ca=authority)
    assert authority in served.single_process._certificate_watch._files._paths
    authority_before = served.single_process._daemon.certificates.materials[0]
    served.single_process._renew_certificates()
    assert served.single_process._daemon.certificates.materials == (authority_before,)
    assert await served.reload(client_ca=other)
    assert served.single_process._daemon.certificates.materials == (authority_before,)
    assert [line for line in lines if line.endswith("start again for client_ca")]


@pytest_twisted.ensureDeferred
async def test_files_that_can_not_be_used_leave_those_of_before_serving(serve, tmp_path, lines):
    files = pair_in(tmp_path)
    served = serve(**files)
    before = await served.certificate()
    files["key"][0].write_text("nonsense")
    with pytest.raises(ValueError, match="holds no unencrypted private key"):
        await served.reload()
    served.single_process._renew_certificates()
    assert [line for line in lines if "the certificates stay as they are" in line]
    assert await served.certificate() == before


@pytest_twisted.ensureDeferred
async def test_what_needs_a_new_start_is_said(serve, lines):
    served = serve(plain=True)
    assert await served.reload(drain_timeout=1.0, workers=2)
    [line] = [line for line in lines if "start again" in line]
    assert line.endswith("start again for drain_timeout, workers")


@pytest_twisted.ensureDeferred
async def test_from_tls_to_none_and_back_needs_a_new_start(serve, tmp_path, lines):
    served = serve(**pair_in(tmp_path))
    assert await served.reload(plain=True, cert=(), key=())
    assert [line for line in lines if "start again for cert, key, plain" in line]
    assert "BEGIN" in await served.certificate()


@pytest_twisted.ensureDeferred
async def test_it_serves_and_says_whether_quotes_come_in(serve):
    served = serve(plain=True)
    assert served.single_process.serves
    assert served.single_process.faults() == ["the feed is down"]
    served.single_process._daemon.announcements.feed_changed(True)
    assert served.single_process.faults() == []
    status = served.single_process.status()
    assert (status["pid"], status["clients"]) == (os.getpid(), 0)
    served.single_process.abort()
    assert served.single_process.status()["draining"] is False


def test_changed_fields_are_those_that_differ():
    config = Config(plain=True)
    assert changed_fields(config, config) == set()
    assert changed_fields(config, replace(config, page=False, port=1)) == {"page", "port"}
