"""Autobahn's factory: makes a WebSocket connection for each that is accepted, unless refused.

Must not know: what connections are counted or limited by, what they say, symbols or quotes.
"""

from __future__ import annotations

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.interfaces import IAddress

from pushservice.server.connections import Connections
from pushservice.server.lean_autobahn import configured
from pushservice.server.websocket import QuoteProtocol


class QuoteFactory(WebSocketServerFactory):
    """Makes connections and hands each what they share: `connections`."""

    noisy = False

    def __init__(self, connections: Connections) -> None:
        super().__init__(reactor=connections.reactor, server="")  # type: ignore[no-untyped-call]  # the library's, unannotated
        self.connections = connections
        message = connections.limits.message
        self.setProtocolOptions(  # type: ignore[no-untyped-call]  # the library's, unannotated
            webStatus=False,
            # A violation is answered by a close frame with its code, not by a bare disconnect.
            failByDrop=False,
            # `Connections.origins` decides about pages without an origin, as about all others.
            allowNullOrigin=True,
            # Our own deadlines are exact, and run to the end of the TCP connection.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            maxFramePayloadSize=message,
            maxMessagePayloadSize=message,
        )
        self.protocol = configured(QuoteProtocol, self, connections=connections)

    def buildProtocol(self, addr: IAddress | None) -> QuoteProtocol | None:
        """A connection was accepted from `addr`; None where it may not come in at all."""
        if not self.connections.admits(addr):
            return None
        connection = super().buildProtocol(addr)
        assert isinstance(connection, QuoteProtocol)
        return connection
