"""One process's answers about its clients and symbols, made between what it does for them.

Must not know: who asks, or what is in a report beyond its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.task import Cooperator

from pushservice.server import client_reports
from pushservice.server.client_reports import About, Report, Steps, Symbols

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub

#: Seconds between two steps: enough for the reactor to serve everybody who waits.
_PAUSE: Final = 0.001


class ClientQueries:
    """Answers from one hub, and those that are late beside it."""

    def __init__(
        self,
        reactor: Any,
        hub: Hub,
        about: Callable[[str], About | None],
        late: Sequence[Hub] = (),
        worker: int = 0,
    ) -> None:
        """`about` tells of a connection by its id; `worker` is this process's number."""
        self._hub = hub
        self._about = about
        self._worker = worker
        self._symbols = Symbols(hub, late)
        # A step a turn of the reactor. Twisted's own goes on for ten milliseconds.
        self._cooperator = Cooperator(
            terminationPredicateFactory=lambda: lambda: True,
            scheduler=lambda call: reactor.callLater(_PAUSE, call),
        )

    async def clients(self, most: int) -> Report:
        """The slowest clients."""
        return await self._made(
            client_reports.clients(self._hub, self._about, self._hub.seconds(), most, self._worker)
        )

    async def symbols(self, most: int) -> Report:
        """The busiest symbols."""
        return await self._made(self._symbols.busiest(self._hub.seconds(), most))

    def named_symbols(self, symbols: Sequence[str]) -> Report:
        """These of them."""
        return self._symbols.named(self._hub.seconds(), symbols)

    async def _made(self, steps: Steps) -> Report:
        made: list[Report] = []

        def run() -> Iterator[None]:
            made.append((yield from steps))

        await self._cooperator.cooperate(run()).whenDone()
        return made[0]
