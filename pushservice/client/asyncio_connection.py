"""One connection of the client for asyncio: how it is opened, and why it failed or ended.

Must not know: when to connect, what messages say, or who reads them. With for_asyncio the only user
of the `websockets` package.
"""

from __future__ import annotations

import asyncio
import logging
import ssl

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from pushservice.client.connection_errors import (
    BROKEN,
    CLOSE_TIMEOUT,
    MAX_MESSAGE,
    NO_CODE,
    TLS_FAILED,
    error_text,
    no_tls_text,
    refusal_text,
    retry_after,
    untrusted_text,
)
from pushservice.client.conversation import Conversation
from pushservice.client.options import Options
from pushservice.protocol.codecs import JSON_SUBPROTOCOL

_log = logging.getLogger("pushservice.client")
# At the level of debugging, websockets writes every message to its log, tokens too.
_silent = logging.getLogger("pushservice.client.websockets")
_silent.setLevel(logging.WARNING)


class Link:
    """One connection, or the attempt to make it."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[str] = asyncio.Queue()
        self.socket: websockets.asyncio.client.ClientConnection | None = None
        self.task: asyncio.Task[None] | None = None

    async def write(self) -> None:
        """Send what is put into `outgoing`, until the connection is closed."""
        assert self.socket is not None
        try:
            while True:
                await self.socket.send(await self.outgoing.get())
        except ConnectionClosed:
            return  # the reader hears of it too, and tells

    async def hang_up(self, *, politely: bool) -> None:
        """End the connection, `politely` with a close frame, or the attempt to make it."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])
        if self.socket is None:
            return
        if politely:
            await self.socket.close()
        else:
            self.socket.transport.abort()


async def open_connection(
    options: Options, trust: ssl.SSLContext | None
) -> websockets.asyncio.client.ClientConnection:
    """Open a WebSocket connection; raises what `report_failure` takes."""
    return await websockets.asyncio.client.connect(
        options.url,
        ssl=trust,
        subprotocols=[Subprotocol(JSON_SUBPROTOCOL)],
        compression="deflate" if options.compression else None,
        proxy=None,
        open_timeout=None,  # the conversation has one for all until the welcome
        ping_interval=None,  # it watches the daemon's heartbeats
        close_timeout=CLOSE_TIMEOUT,
        max_size=MAX_MESSAGE,
        logger=_silent,
    )


def report_failure(core: Conversation, now: float, options: Options, error: Exception) -> None:
    """Tell the conversation why `open_connection` failed."""
    if isinstance(error, InvalidStatus):
        response = error.response
        core.refused(
            now,
            response.status_code,
            refusal_text(response.body),
            retry_after(response.headers.get("Retry-After")),
        )
    elif isinstance(error, ssl.SSLCertVerificationError):
        why = untrusted_text(options.host, error.verify_code, error.verify_message)
        core.failed(now, TLS_FAILED, why)
    elif isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        core.failed(now, TLS_FAILED, no_tls_text(options.place))
    elif isinstance(error, InvalidHandshake | EOFError | OSError):
        core.lost(now, BROKEN, f"{options.place}: {error_text(error)}")
    else:
        _log.error("no connection, by an error of this client", exc_info=error)
        core.failed(now, BROKEN, f"an error of this client: {error!r}")


def close_reason(closed: ConnectionClosed) -> tuple[int, str]:
    """The close code and the reason for which a connection ended."""
    if closed.rcvd is not None:
        code = BROKEN if closed.rcvd.code == NO_CODE else closed.rcvd.code
        return code, closed.rcvd.reason
    if closed.sent is not None:
        return BROKEN, f"this client closed: {closed.sent.reason or closed.sent.code}"
    return BROKEN, ""
