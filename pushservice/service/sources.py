"""What of a daemon uses Redis, composed: feeds, snapshots, the registry.

Must not know: option names, ports, or clients beyond the hub. It composes the edges of Redis around
one hub, as service/daemon.py composes those of clients.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pushservice.config.config import Config
from pushservice.fanout.announcements import Announcements
from pushservice.fanout.topic import Topic
from pushservice.feed.channels import AllPatterns, ChannelSelection, OnDemand
from pushservice.feed.combined import CombinedFeed
from pushservice.feed.redis_pubsub import RedisFeed
from pushservice.feed.snapshot_hash import SnapshotHash
from pushservice.metrics import Counters, Measures
from pushservice.redis.url import RedisAddress
from pushservice.registry.registry import Registry

if TYPE_CHECKING:
    from pushservice.fanout.delayed import Tiers
    from pushservice.fanout.hub import Hub
    from pushservice.fanout.interfaces import Interest


class Interests:
    """Passes interest, which the hub tells one listener, on to several."""

    def __init__(self) -> None:
        self.listeners: list[Interest] = []

    def watched(self, client: str, symbol: str, first: bool) -> None:
        """See Interest."""
        for listener in self.listeners:
            listener.watched(client, symbol, first)

    def unwatched(self, client: str, symbol: str, last: bool) -> None:
        """See Interest."""
        for listener in self.listeners:
            listener.unwatched(client, symbol, last)

    def quoted(self, topics: Mapping[Topic, object]) -> None:
        """See Interest."""
        for listener in self.listeners:
            listener.quoted(topics)


@dataclass(frozen=True, slots=True)
class Fanout:
    """Where quotes go: the hub, what it tells of interest, and what clients are told of the feed.

    `tiers` publish quotes again after a delay.
    """

    hub: Hub
    interests: Interests
    announcements: Announcements
    tiers: Tiers | None = None


class Sources:
    """The feeds and the snapshot hash, from which quotes and values come, and the registry."""

    def __init__(
        self,
        reactor: Any,
        config: Config,
        fanout: Fanout,
        counters: Counters,
        suffix: str,
        feed_changed: Callable[[bool], None],
        measures: Measures | None = None,
    ) -> None:
        """`suffix` tells this process's entries in the registry from those of others of the daemon.

        `feed_changed` is called, after clients are told, with whether the feed is up.
        """
        self._reactor = reactor
        self._config = config
        self._hub = fanout.hub
        self._interests = fanout.interests
        self._announcements = fanout.announcements
        self._counters = counters
        self._node = (config.node or f"{socket.gethostname()}-{config.port}") + suffix
        self._tell_feed_changed = feed_changed
        self._tiers = fanout.tiers
        self._measures = measures
        self.feeds = CombinedFeed(self._feed_changed)
        self.registry: Registry | None = None
        self._stopping = False
        self._demand: OnDemand | None = None
        self._snapshots: SnapshotHash | None = None

    def start(self, addresses: Sequence[RedisAddress]) -> None:
        """Begin to connect to each of `addresses`; interest is told from now on."""
        config = self._config
        channels = self._channels()
        for address in addresses:
            self.feeds.add(
                RedisFeed(
                    self._reactor,
                    address,
                    channels,
                    self._tiers or self._hub,
                    self._counters,
                    self.feeds.source_changed,
                    config.redis_tls,
                    measures=self._measures,
                )
            )
        if config.snapshot_hash is not None:
            self._snapshots = SnapshotHash(
                self._reactor,
                addresses,
                config.snapshot_hash,
                self._hub,
                self._counters,
                tls=config.redis_tls,
            )
            self._hub.values.can_be_learnt = True
            self._interests.listeners.append(self._snapshots)
            self._snapshots.start()
        if config.registry_prefix is not None:
            self.registry = Registry(
                self._reactor,
                config.registry or addresses[0],
                config.registry_prefix,
                self._node,
                self._hub,
                self._counters,
                config.redis_tls,
            )
            self._interests.listeners.append(self.registry)
            self.registry.start()
        self._catch_up()
        self.feeds.start()

    async def stop_feeds(self) -> None:
        """No more quotes."""
        self._stopping = True
        if self._demand is not None:
            # Clients are about to go; no unsubscribe is to be planned for that.
            self._interests.listeners.remove(self._demand)
            self._demand.stop()
        await self.feeds.stop()
        if self._snapshots is not None:
            self._interests.listeners.remove(self._snapshots)
            await self._snapshots.stop()

    async def stop_registry(self) -> None:
        """Once all clients are gone: nothing of this daemon stays in the registry."""
        if self.registry is not None:
            await self.registry.stop()

    # -- within ----------------------------------------------------------------------------------

    def _channels(self) -> ChannelSelection:
        config = self._config
        if config.subscribe == "demand":
            self._demand = OnDemand(
                self._reactor,
                config.channels,
                self.feeds.connections,
                self._forget_value,
                config.ignored_channels,
            )
            self._interests.listeners.append(self._demand)
            return self._demand
        return AllPatterns(config.channels, config.symbol_reader())

    def _forget_value(self, symbol: str) -> None:
        """Forget the value of a symbol that the feed listens to no more."""
        self._hub.values.forget(symbol)
        if self._tiers is not None:
            self._tiers.forget_value(symbol)

    def _catch_up(self) -> None:
        """Tell what clients watch already: they may have come before Redis was there."""
        hubs = [self._hub] if self._tiers is None else [self._hub, *self._tiers.hubs]
        for hub in hubs:
            for topic in hub.watched_topics():
                for at, outbox in enumerate(hub.watchers(topic)):
                    self._interests.watched(outbox.conn, topic.symbol, at == 0)

    def _feed_changed(self, up: bool) -> None:
        if self._stopping:
            # Clients are told goodbye instead.
            return
        self._announcements.feed_changed(up)
        if self._tiers is not None:
            self._tiers.feed_changed(up)
        if up and self._snapshots is not None:
            self._snapshots.refresh(self._hub.watched_topics())
        self._tell_feed_changed(up)
