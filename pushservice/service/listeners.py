"""The ports of one daemon: listens on its endpoints, or accepts on the sockets of its manager.

Must not know: what connections are for, or when the daemon starts and stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from pushservice.config.config import Config
from pushservice.server import ports
from pushservice.server.ports import Listening, Ports
from pushservice.server.proxies import Trusted
from pushservice.server.proxy_protocol import ProxyHeaderFactory
from pushservice.server.socket_info import bound_send_buffer
from pushservice.tls.certificates import Certificates
from pushservice.tls.factory import NeverNone, TLSFactory

_log: Final = Logger()


class Listeners:
    """Opens and adopts `ports`, with TLS and the PROXY protocol where `config` asks for them."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        factory: IProtocolFactory,
        certificates: Certificates | None,
        trusted: Trusted,
        opened: Ports,
    ) -> None:
        """`factory` serves connections; what is listened on is added to `opened`."""
        self._reactor = reactor
        self._config = config
        self._factory = factory
        self._certificates = certificates
        self._trusted = trusted
        self._opened = opened
        # Ports that this process listens on by itself, and whether each uses TLS.
        self._listening: list[tuple[Any, bool]] = []

    def listen(self) -> None:
        """Listen on the endpoints of the configuration. Raises CannotListen."""
        for text in self._config.endpoints():
            factory, secure = self._factory_for(text)
            port = ports.listen(self._reactor, text, factory)
            bound_send_buffer(getattr(port, "socket", None), self._config.limits.send_buffer)
            self._opened.add(port)
            self._listening.append((port, secure))

    def adopt(self, sockets: Sequence[Listening]) -> None:
        """Accept connections on sockets that the manager opened."""
        for listening in sockets:
            factory, _ = self._factory_for(listening.text)
            self._opened.adopt(self._reactor, listening, factory)

    def log_served(self) -> None:
        """Log the URL of each port that this process listens on by itself."""
        for port, secure in self._listening:
            log_served(port, secure, self._config.page)

    def _factory_for(self, text: str) -> tuple[IProtocolFactory, bool]:
        """The factory for connections of the endpoint `text`, and whether they use TLS."""
        factory: IProtocolFactory = self._factory
        # An ssl: endpoint names certificates of its own.
        secure = text.startswith("ssl:")
        if self._certificates is not None and not secure:
            factory = TLSFactory(self._certificates, factory, self._reactor)
            secure = True
        if not text.startswith(ports.SHAREABLE):
            # Endpoints of Twisted that wrap the factory, and plugins, may not accept None from it;
            # and they may not pass on the first byte of the connection.
            return NeverNone(factory), secure
        if self._config.trusted_proxies:
            factory = ProxyHeaderFactory(
                factory, self._trusted, self._reactor, self._config.limits.tls_timeout
            )
        return factory, secure


def log_served(port: Any, secure: bool, page: bool) -> None:
    """Log the URL of `port`, and of the page if it is served."""
    url = ports.address_text(port, "wss" if secure else "ws")
    if page and "+unix:" not in url:
        where = url.replace("ws", "http", 1)
        _log.info("{url} is served; the page is at {page}", url=url, page=where)
    else:
        _log.info("{url} is served", url=url)
