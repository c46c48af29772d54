"""Connections that come and go leave the process's memory where it was."""

from __future__ import annotations

import gc
import os
from collections import Counter

import psutil
import pytest
import pytest_twisted
from core_doubles import FixedClock, make_hub, publish
from twisted.internet import defer, reactor
from twisted.internet.endpoints import (
    SSL4ClientEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from visit_bytes import CLOSE, FRAME, REQUEST
from waiting import until

from pushservice.limits import Limits
from pushservice.metrics import Counters
from pushservice.server.connections import Connections, Services
from pushservice.server.factory import QuoteFactory
from pushservice.tls.factory import TLSFactory, development_pair, server_options
from pushservice.web import build_site

pytestmark = pytest.mark.alone


class Visitor(Protocol):
    """Connects, subscribes, and tells when the answer and when the end came."""

    def __init__(self) -> None:
        self.data = b""
        self.subscribed: defer.Deferred[None] = defer.Deferred()
        self.gone: defer.Deferred[None] = defer.Deferred()

    def connectionMade(self) -> None:
        self.transport.write(REQUEST + FRAME)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        if b'"subscribed"' in self.data and not self.subscribed.called:
            self.subscribed.callback(None)

    def connectionLost(self, reason: object) -> None:
        self.gone.callback(None)


async def visit(endpoint: object, how: str) -> None:
    """One client from connect to its end, which is an orderly close, a hang-up or an abort."""
    visitor = await endpoint.connect(Factory.forProtocol(Visitor))
    await visitor.subscribed
    if how == "close":
        visitor.transport.write(CLOSE)
    elif how == "hang up":
        visitor.transport.loseConnection()
    else:
        visitor.transport.abortConnection()
    await visitor.gone


def counted_objects() -> Counter[str]:
    gc.collect()
    return Counter(
        f"{type(found).__module__}.{type(found).__qualname__}"
        for found in gc.get_objects()
        if str(type(found).__module__).partition(".")[0] in {"pushservice", "autobahn", "OpenSSL"}
    )


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest_twisted.inlineCallbacks
def test_clients_that_left_in_any_way_leave_no_object_and_no_memory(secure, tmp_path):
    yield defer.ensureDeferred(come_and_go(secure=secure, directory=tmp_path))


async def come_and_go(*, secure: bool, directory: object) -> None:
    counters = Counters()
    hub = make_hub(FixedClock(), counters)
    site = build_site(reactor, hub.recent_symbols, lambda: None, True)
    # All of them come from one address.
    limits = Limits(per_address=0, connect_rate=0)
    connections = Connections(reactor, hub, limits, counters, Services(site))
    factory = QuoteFactory(connections)
    served = factory
    if secure:
        pair = development_pair(directory)
        served = TLSFactory(server_options(pair.certificate, pair.key), factory, reactor)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(served)
    number = port.getHost().port
    if secure:
        endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", number, CertificateOptions())
    else:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", number)
    ways = ["close", "hang up", "abort"]

    async def wave(visits: int) -> None:
        for start in range(0, visits, 20):
            batch = [visit(endpoint, ways[at % 3]) for at in range(start, min(start + 20, visits))]
            await defer.gatherResults([defer.ensureDeferred(one) for one in batch])
            publish(hub, ("A", b"1"), ("B", b"2"))
        await until(lambda: connections.limiter.connections == 0, "the server to see every end")

    process = psutil.Process(os.getpid())
    await wave(300)
    objects, memory = counted_objects(), process.memory_info().rss
    descriptors = process.num_fds()
    visits = 1500
    await wave(visits)
    grown = counted_objects() - objects
    assert not grown, f"objects left behind: {grown}"
    assert process.num_fds() <= descriptors
    # An idle TLS client costs about 36 KiB and a plain one 9: one in twenty kept would show.
    allowed = 2 * 1024 * 1024
    assert process.memory_info().rss - memory < allowed
    assert hub.count_outboxes() == 0
    assert counters.handshakes == counters.connections_closed == 300 + visits
    await port.stopListening()
