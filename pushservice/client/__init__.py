"""A client of quotepush for programs: live quotes in asyncio or Twisted, over one conversation.

Must not know: anything of the daemon but the protocol's words.

With asyncio::

    from pushservice.client import Quote, connect

    async with connect("wss://localhost:8008/", ca="certs/dev.crt") as quotes:
        await quotes.subscribe("AAPL", "600519.SH")
        async for quote in quotes.only(Quote):
            print(quote.symbol, quote.n, quote.data)

With Twisted, ``QuoteService``. docs/clients.rst has more. Each adapter is imported when it is asked
for, so that neither needs the other's library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pushservice.client.events import (
    Authenticated,
    Bye,
    Event,
    Expiring,
    Feed,
    Fresh,
    Gap,
    Heartbeat,
    Quote,
    QuoteError,
    Refused,
    Stale,
    State,
    Welcome,
)
from pushservice.client.options import Options

if TYPE_CHECKING:
    from pushservice.client.for_asyncio import Quotes, connect
    from pushservice.client.for_twisted import QuoteService

__all__ = [
    "Authenticated",
    "Bye",
    "Event",
    "Expiring",
    "Feed",
    "Fresh",
    "Gap",
    "Heartbeat",
    "Options",
    "Quote",
    "QuoteError",
    "QuoteService",
    "Quotes",
    "Refused",
    "Stale",
    "State",
    "Welcome",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name in ("connect", "Quotes"):
        from pushservice.client import for_asyncio

        return getattr(for_asyncio, name)
    if name == "QuoteService":
        from pushservice.client import for_twisted

        return for_twisted.QuoteService
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
