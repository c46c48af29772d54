"""One process that serves clients, composed around one hub: its start, heartbeats, drain and stop.

Must not know: option names or command lines, signals, or other processes beyond the setup that it
is given.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from pushservice import __version__
from pushservice.config.config import Config
from pushservice.fanout.announcements import Announcements
from pushservice.fanout.delayed import CombinedInterest, Tiers
from pushservice.fanout.goodbye import Goodbye
from pushservice.fanout.hub import Hub, TurnHooks
from pushservice.fanout.liveness import Liveness
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.tape import Tape
from pushservice.metrics import Counters, Measures
from pushservice.monitoring.client_queries import ClientQueries
from pushservice.monitoring.status import ProcessStatus
from pushservice.protocol import deflate
from pushservice.protocol.close_codes import CloseCode
from pushservice.redis.url import RedisAddress
from pushservice.server.balance import Balance
from pushservice.server.client_log import ClientLog
from pushservice.server.connections import Connections, Services
from pushservice.server.factory import QuoteFactory
from pushservice.server.ports import CannotListen, Ports
from pushservice.server.proxies import Trusted
from pushservice.service.access import Access
from pushservice.service.development import Development
from pushservice.service.listeners import Listeners
from pushservice.service.sources import Fanout, Interests, Sources
from pushservice.service.startup import CannotStart, check, limits_within_files, outlets_here
from pushservice.service.worker_setup import WorkerSetup
from pushservice.tls.certificates import Certificates
from pushservice.tls.material import Material
from pushservice.web import build_site

#: Milliseconds over which clients are asked to spread their reconnects: when the daemon ends, and
#: when a worker drains over some time while others serve.
RECONNECT_SPREAD_MS: Final = 5000
MOVE_SPREAD_MS: Final = 250
#: The part of the drain timeout over which clients are told goodbye; the rest is for answers.
_SAID_WITHIN: Final = 2 / 3


class Daemon(Service):
    """Everything that serves clients in one quotepush process.

    Without a `setup` it listens on the endpoints of its configuration. With one, it accepts on the
    sockets of the setup once `serve` is called.
    """

    log = Logger()

    def __init__(self, reactor: Any, config: Config, setup: WorkerSetup | None = None) -> None:
        """Raises CannotStart for certificates that can't be used; listens only when started."""
        self.config = config
        self.counters = Counters()
        measures = Measures(time.perf_counter)
        self.ports = Ports()
        #: called with whether the feed is up, each time that changes
        self.feed_changed: Callable[[bool], None] = lambda _up: None
        self._reactor = reactor
        self._setup = setup
        self._leaving = self._left = self._aborting = False
        self._waiting: list[defer.Deferred[None]] = []
        self._goodbye: Goodbye | None = None
        try:
            if setup is None:
                self.certificates = check(config)
            else:
                self.certificates = Certificates(setup.materials) if setup.materials else None
            self._outlets = outlets_here(reactor)
        except ValueError as error:
            raise CannotStart(f"quotepush: {error}") from None
        self._limits = limits_within_files(config, warn=setup is None)
        interests = Interests()
        together = CombinedInterest(interests)
        self.hub = Hub(
            reactor,
            secrets.token_hex(4),
            self.counters,
            TurnHooks(self._client_failed, self._outlets.end_of_turn, measures=measures),
            limits=self._limits,
            interest=together if config.delays else interests,
        )
        self._tiers = None
        if config.delays:
            self._tiers = Tiers(
                reactor,
                self.hub,
                Tape(config.delay_buffer),
                config.delays,
                together,
                self._outlets.end_of_turn,
            )
        self.announcements = Announcements(self.hub, self._outlets.end_of_turn)
        self._trusted = Trusted(config.trusted_proxies)
        self._client_log = ClientLog(reactor, config.client_log_rate)
        self.connections = self._make_connections()
        self.factory = QuoteFactory(self.connections)
        self._listeners = Listeners(
            reactor, config, self.factory, self.certificates, self._trusted, self.ports
        )
        try:
            self._access = Access(reactor, config, self._hub_for)
        except ValueError as error:
            raise CannotStart(f"quotepush: {error}") from None
        self._access.guard(self.connections)
        self._development = Development(reactor, config, self.counters) if setup is None else None
        self._sources = Sources(
            reactor,
            config,
            Fanout(self.hub, interests, self.announcements, self._tiers),
            self.counters,
            "" if setup is None else setup.registry_suffix,
            self._feed_changed,
            measures,
        )
        self._process_status = ProcessStatus(
            reactor,
            self.hub,
            self.connections,
            self.counters,
            measures,
            self._tiers,
            0 if setup is None else setup.number,
        )
        self._liveness = Liveness(
            self.hub, reactor, self._limits, self.counters, self._client_given_up
        )
        self._heartbeats = LoopingCall(self._beat)
        self._heartbeats.clock = reactor
        self._staleness = LoopingCall(self._look_for_stale)
        self._staleness.clock = reactor

    def _make_connections(self) -> Connections:
        config, setup = self.config, self._setup
        services = Services(
            build_site(self._reactor, self._shown_symbols, self._page_served, config.page),
            self._outlets.make,
            self.announcements.greet,
            deflate.codecs(self.counters) if config.compression == "auto" else {},
            self._client_log,
        )
        connections = Connections(
            self._reactor,
            self.hub,
            self._limits,
            self.counters,
            services,
            ports=self.ports,
            trusted=self._trusted,
        )
        if setup is not None:
            connections.balance = Balance(self._reactor, setup.counts, setup.entry, self.ports)
            connections.most_together = config.max_connections
        return connections

    # -- start -----------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Listen, while the process may still have the rights to."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        if self._setup is None:
            try:
                self._listeners.listen()
            except CannotListen as error:
                raise CannotStart(f"quotepush: {error}") from None

    def startService(self) -> None:
        """Serve clients, and begin to connect to Redis; neither waits for the other.

        With a setup, clients are served once `serve` is called.
        """
        super().startService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self.log.info(
            "quotepush {version}: at most {connections} clients; {outlets} outlets; epoch {epoch}",
            version=__version__,
            connections=self._limits.connections,
            outlets=self._outlets.name,
            epoch=self.hub.epoch,
        )
        self._listeners.log_served()
        self._heartbeats.start(self._limits.heartbeat_ms / 1000 / self.hub.groups, now=False)
        self._liveness.start()
        self._process_status.start()
        limits_of_quiet = [
            limit
            for limit in (self.config.stale_after, self.config.feed_stale_after)
            if limit is not None
        ]
        if limits_of_quiet:
            self._staleness.start(min(1.0, min(limits_of_quiet) / 4), now=False)
        # Once the reactor runs, a signal stops the service in order; before, it would end the
        # process and leave a redis-server's directory behind.
        self._reactor.callWhenRunning(self._begin_feed)

    def _begin_feed(self) -> None:
        if self.running:
            defer.Deferred.fromCoroutine(self._start_feed())

    async def _start_feed(self) -> None:
        if self._setup is not None:
            private = self._setup.redis_socket
            self._begin_with((RedisAddress(path=private),) if private else self.config.redis)
        elif self._development is not None:
            await self._development.start()
            if self.running:
                self._begin_with(self._development.addresses())

    def _begin_with(self, addresses: Sequence[RedisAddress]) -> None:
        self._sources.start(addresses)
        self._access.start(addresses[0])

    def serve(self) -> None:
        """Accept connections on the sockets of the setup; only with one."""
        assert self._setup is not None, "without a setup it listens when it is started"
        self._listeners.adopt(self._setup.sockets)
        assert self.connections.balance is not None, "it comes with the setup"
        self.connections.balance.serve()

    # -- while it runs ---------------------------------------------------------------------------

    @property
    def feed_up(self) -> bool:
        """Whether quotes come in."""
        return bool(self.announcements.feed_up)

    def status(self) -> dict[str, Any]:
        """How it stands, as JSON."""
        registry = self._sources.registry
        return {
            "draining": self._leaving,
            "feed": "up" if self.feed_up else "down",
            "registry_lag": None if registry is None else registry.lag(),
        } | self._process_status.status()

    @property
    def client_queries(self) -> ClientQueries:
        """Answers about single clients and symbols."""
        return self._process_status.client_queries

    def replace_certificates(self, found: Sequence[Material]) -> bool:
        """New connections get these; whether anything changed. Raises ValueError, and keeps all."""
        return self.certificates is not None and self.certificates.replace(found)

    def _beat(self) -> None:
        # A LoopingCall whose function raises ends for good, and heartbeats must not.
        try:
            self.announcements.beat()
        except Exception:  # noqa: BLE001 - said, and tried again at the next beat
            self.log.failure("heartbeats failed")

    def _look_for_stale(self) -> None:
        config = self.config
        try:
            self.announcements.look_for_stale(
                None if config.stale_after is None else config.stale_after * 1000,
                None if config.feed_stale_after is None else config.feed_stale_after * 1000,
            )
            if self._tiers is not None and config.stale_after is not None:
                self._tiers.look_for_stale(config.stale_after * 1000)
        except Exception:  # noqa: BLE001 - said, and tried again at the next look
            self.log.failure("looking for stale symbols failed")

    def _hub_for(self, delay_s: float) -> Hub | None:
        """The hub whose quotes are late by that much at least; None where there is none."""
        if self._tiers is not None:
            return self._tiers.tier_for(delay_s)
        return None if delay_s else self.hub

    def _feed_changed(self, up: bool) -> None:
        self.feed_changed(up)

    def _client_failed(self, outbox: Outbox, failure: Exception) -> None:
        self.connections.failed(outbox, failure)

    def _client_given_up(self, outbox: Outbox, why: str) -> None:
        self.log.info("{conn} is given up: {why}", conn=outbox.conn, why=why)

    def _shown_symbols(self, limit: int) -> list[str]:
        """What the page may tell anybody: which symbols there are is for who may see them."""
        return [] if self._access.access_control is not None else self.hub.recent_symbols(limit)

    def _page_served(self) -> None:
        self.counters.page_requests += 1

    # -- stop ------------------------------------------------------------------------------------

    def stopService(self) -> defer.Deferred[None]:
        """Leave, if that has not begun, and wait until it is done."""
        super().stopService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        return self.leave(CloseCode.GOING_AWAY)

    def leave(self, code: CloseCode) -> defer.Deferred[None]:
        """Accept no more, say goodbye to clients, quiet the feed, then end Redis; in this order.

        With RESTARTING, other processes serve on: clients, new ones too, are sent away over the
        drain time. Else all are sent away at once, and new ones are refused. Fires when all is
        done, after the drain time at the latest. May be called again, with a Deferred for each.
        """
        done: defer.Deferred[None] = defer.Deferred()
        self._waiting.append(done)
        if not self._leaving:
            self._leaving = True
            defer.Deferred.fromCoroutine(self._leave(code)).addErrback(
                lambda failure: self.log.failure("leaving in order failed", failure)
            ).addCallback(self._has_left)
        elif self._left:
            self._has_left(None)
        return done

    def _has_left(self, _result: object) -> None:
        self._left = True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def abort(self) -> None:
        """Whoever is still there while leaving is dropped now; nothing where that is over."""
        self._aborting = self._leaving
        if self._goodbye is not None:
            self._goodbye.hurry()
            self.connections.abort()

    async def _leave(self, code: CloseCode) -> None:
        moving = code is CloseCode.RESTARTING
        timeout = self.config.drain_timeout
        self.connections.draining = not moving
        if self.connections.balance is not None:
            self.connections.balance.leave()
        await self.ports.close()
        seconds = timeout * _SAID_WITHIN if moving else 0
        spread = MOVE_SPREAD_MS if moving else RECONNECT_SPREAD_MS
        goodbye = self._goodbye = Goodbye(
            self._reactor, self.hub, self.announcements, code, seconds, lambda: _jitter(spread)
        )
        deadline: IDelayedCall = self._reactor.callLater(timeout, self.abort)
        goodbye.start()
        if self._aborting:
            # It was told while the ports closed.
            self.abort()
        await self.connections.drain()
        if deadline.active():
            deadline.cancel()
        goodbye.stop()
        self._goodbye = None
        await self._stop_the_rest()

    async def _stop_the_rest(self) -> None:
        """All clients are gone."""
        if self._heartbeats.running:
            self._heartbeats.stop()
        self._liveness.stop()
        self._process_status.stop()
        if self._staleness.running:
            self._staleness.stop()
        if self._development is not None:
            await self._development.stop_market()
        await self._access.stop()
        await self._sources.stop_feeds()
        if self._tiers is not None:
            self._tiers.stop()
        self._client_log.stop()
        await self._sources.stop_registry()
        if self._development is not None:
            await self._development.stop()


def _jitter(spread_ms: int) -> int:
    return random.randrange(spread_ms)  # noqa: S311 - spreads load, guards nothing
