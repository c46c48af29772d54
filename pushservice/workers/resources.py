"""What the manager opens and starts for its workers: listening sockets, and the development Redis.

A reload may need others. Old and new ones are kept until no worker uses the old ones.

Must not know: workers, or when a reload begins or ends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.protocol import Factory
from twisted.logger import Logger

from pushservice.config.config import Config
from pushservice.metrics import Counters
from pushservice.server import ports
from pushservice.server.ports import CannotListen
from pushservice.server.socket_info import bound_send_buffer
from pushservice.service.development import Development


class ResourceSet(NamedTuple):
    """What the workers of one plan use; `sockets` are open ports by their endpoints."""

    sockets: dict[str, Any]
    development: Development


class Resources:
    """The set that new workers use, and those that older ones may still use."""

    log = Logger()

    def __init__(self, reactor: Any, config: Config, counters: Counters) -> None:
        self._reactor = reactor
        self._counters = counters
        self._current = ResourceSet({}, Development(reactor, config, counters))
        # Started for a reload that has not come to use it yet.
        self._starting: Development | None = None
        # Used by workers that run an earlier plan, as not all of them could be replaced.
        self._superseded: list[ResourceSet] = []

    @property
    def sockets(self) -> dict[str, Any]:
        """The ports of the current set by their endpoints."""
        return self._current.sockets

    @property
    def development(self) -> Development:
        """The development Redis and market of the current set."""
        return self._current.development

    def open(self, config: Config) -> None:
        """Open the sockets of `config` for the current set. Raises CannotListen."""
        for text in config.endpoints():
            self._current.sockets[text] = self._open(text, config)

    def _open(self, text: str, config: Config) -> Any:
        ports.check_shareable(text)
        port: Any = ports.listen(self._reactor, text, Factory())
        # Workers accept. Here the socket only stays open, so that connections in its queue outlive
        # a worker.
        port.stopReading()
        bound_send_buffer(port.socket, config.limits.send_buffer)
        return port

    # -- reload ----------------------------------------------------------------------------------

    async def prepare(self, config: Config) -> ResourceSet:
        """What `config` needs: what is there already, and what is opened and started now.

        Raises CannotListen, and whatever keeps the development Redis from starting; then what was
        opened is closed.
        """
        opened = self._open_new(config)
        try:
            development = await self._development_for(config)
        except Exception:
            await self.release(ResourceSet(opened, self.development))
            raise
        return ResourceSet(opened, development)

    def _open_new(self, config: Config) -> dict[str, Any]:
        """The sockets of `config`, with those that are open already among them."""
        open_already: dict[str, Any] = {}
        for each in [*self._superseded, self._current]:
            open_already |= each.sockets
        opened: dict[str, Any] = {}
        for text in config.endpoints():
            try:
                opened[text] = open_already.get(text) or self._open(text, config)
            except CannotListen:
                for other, port in opened.items():
                    if other not in open_already:
                        port.stopListening()
                raise
        return opened

    async def _development_for(self, config: Config) -> Development:
        """The current one, if it is right for `config`; else another, which is started."""
        if self.development.serves(config):
            return self.development
        self._starting = starting = Development(self._reactor, config, self._counters)
        try:
            await starting.start()
        finally:
            self._starting = None
        return starting

    def use(self, resources: ResourceSet) -> ResourceSet:
        """Make `resources` the current set; returns the one before."""
        before, self._current = self._current, resources
        return before

    def supersede(self, before: ResourceSet) -> None:
        """Keep `before` until `release_superseded`: workers still use it."""
        self._superseded.append(before)

    async def release_superseded(self) -> None:
        """Close and stop what the current set has no part in: no worker uses it any more."""
        superseded, self._superseded = self._superseded, []
        await self.release(*superseded)

    async def release(self, *unused: ResourceSet) -> None:
        """Close and stop what of `unused` is in no set that is kept."""
        used = self.in_use()
        kept = {id(port) for each in used for port in each.sockets.values()}
        for sockets, development in unused:
            for text, port in sockets.items():
                if id(port) not in kept and port.connected:
                    await ports.stop_listening(port)
                    self.log.info("{text} is not listened on any more", text=text)
            if all(development is not other for _, other in used):
                await development.stop()

    # -- stop ------------------------------------------------------------------------------------

    def in_use(self) -> list[ResourceSet]:
        """The current set, and those that older workers use."""
        return [self._current, *self._superseded]

    @staticmethod
    async def close_sockets(resources: list[ResourceSet]) -> None:
        """Listen on none of these any more."""
        for each in resources:
            for port in each.sockets.values():
                if port.connected:
                    await ports.stop_listening(port)

    async def stop_starting(self) -> None:
        """Stop a development Redis that a reload waits for."""
        if self._starting is not None:
            await self._starting.stop()
