"""A server that echoes: the daemon's own connections, listening as the daemon does, without quotes.

Run with the directory for the development certificate; it prints its two ports, ws:// and wss://.
Everything below a whole message is the daemon's: handshake, frames, pings, closing, TLS, outlets.
"""

from __future__ import annotations

import sys
from typing import Final

from rfc6455_records import MAX_MESSAGE
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from pushservice.config.config import Config
from pushservice.protocol.frames import frame_head
from pushservice.server.lean_autobahn import configured
from pushservice.server.websocket import QuoteProtocol
from pushservice.service.daemon import Daemon
from pushservice.tap import Options

#: The daemon's limits as far as they would be in the way; 0 is none.
RAISED: Final = {
    "max-message": MAX_MESSAGE,
    "message-rate": 0,
    "byte-rate": 0,
    "connect-rate": 0,
    "max-per-address": 0,
    "ping-interval": 0,
}


class EchoProtocol(QuoteProtocol):
    """The daemon's connection, but what it makes of a message is the message itself."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.session is not None:
            first = 0x82 if isBinary else 0x81
            self.session.outbox.send(frame_head(len(payload), first) + payload)


def config(certs: str, *more: str) -> Config:
    """What the daemon makes of its command line; the address of Redis is never used."""
    words = ["--listen=tcp:0:interface=127.0.0.1", f"--certs={certs}", "--redis=redis://[::1]:1"]
    words += [f"--{name}={value}" for name, value in RAISED.items()]
    options = Options()
    options.parseOptions([*words, *more])
    return options.config


def main(certs: str) -> None:
    """Listen on two ports, say which, and serve until SIGTERM."""
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    ports = []
    for more in (["--plain"], []):
        daemon = Daemon(reactor, config(certs, *more))
        daemon.factory.protocol = configured(
            EchoProtocol, daemon.factory, connections=daemon.connections
        )
        # Listening is all of it: what starts after that are feed, heartbeats and Redis.
        daemon.privilegedStartService()
        ports += [port.getHost().port for port in daemon.ports]
    print("echoing on", *ports, flush=True)  # noqa: T201 - how the tests learn the ports
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1])
