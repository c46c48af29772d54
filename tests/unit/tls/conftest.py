"""A TLS server for the tests of this folder."""

from __future__ import annotations

import sys

import pytest
import pytest_twisted
from twisted.internet import defer, protocol, reactor
from waiting import until

from pushservice.tls.certificates import Certificates
from pushservice.tls.factory import TLSFactory


class Echo(protocol.Protocol):
    """Sends back what comes, in capitals; counts who is there."""

    def connectionMade(self) -> None:
        self.factory.present += 1

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data.upper())

    def connectionLost(self, reason) -> None:
        self.factory.present -= 1


@pytest.fixture
def serve():
    """serve(certificates): an echoing TLS server; returns its port's number."""
    served = []

    def start(certificates: Certificates) -> int:
        factory = protocol.Factory.forProtocol(Echo)
        factory.present = 0
        tls = TLSFactory(certificates, factory, reactor)
        served.append((factory, reactor.listenTCP(0, tls, interface="127.0.0.1")))
        return served[-1][1].getHost().port

    async def stop() -> None:
        for factory, port in served:
            await port.stopListening()
            await until(lambda present=factory: present.present == 0, "all connections to end")

    yield start
    pytest_twisted.blockon(defer.ensureDeferred(stop()))


@pytest.fixture
def escaped(monkeypatch):
    """The exceptions that came out of a callback of OpenSSL's."""
    found = []
    monkeypatch.setattr(sys, "excepthook", lambda *info: found.append(info))
    return found
