"""The daemon's life: ordered start, an ordered stop that says goodbye, and what is said in the log.

Must not know: option names or command lines. It composes the edges around one hub.
"""

from __future__ import annotations

import os
import random
import resource
import secrets
from dataclasses import replace
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet import defer, endpoints
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice import __version__, outlet
from pushservice.admission import GUESTS_BEYOND
from pushservice.announcements import Announcements
from pushservice.closing import CloseCode
from pushservice.config import Config
from pushservice.embedded import EmbeddedRedis, NoRedisServer
from pushservice.hub import Hub
from pushservice.kernel import bound_send_buffer
from pushservice.liveness import Liveness
from pushservice.metrics import Counters
from pushservice.outbox import Outbox
from pushservice.redistls import check_files
from pushservice.redisurl import RedisAddress
from pushservice.sources import Interests, Sources
from pushservice.tls import NeverNone, TLSFactory, development_pair, server_options
from pushservice.web import build_site
from pushservice.websocket import QuoteFactory

#: File descriptors kept for all that is no connection, such as ports, Redis and the log; and for
#: what a burst of accepts brings before anybody can count.
RESERVED_FILES: Final = 64 + GUESTS_BEYOND
#: Milliseconds over which clients are asked to spread their reconnecting.
RECONNECT_SPREAD_MS: Final = 5000


class CannotStart(SystemExit, Exception):
    """The daemon can't do what it was told; ends the process with one line and exit status 1.

    An Exception too, so that twistd cleans up its pidfile, and tells the waiting parent of a
    daemonized start; a SystemExit, so that no traceback hides the line.
    """


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard


class Daemon(Service):
    """Everything that runs in one quotepush process."""

    log = Logger()

    def __init__(self, reactor: Any, config: Config) -> None:
        """Raises CannotStart for certificates that can't be used; listens only when started."""
        self.config = config
        self.counters = Counters()
        self.ports: list[IListeningPort] = []
        self._secure: list[bool] = []
        self._reactor = reactor
        self._tls = None if config.plain else self._tls_options()
        self._check_redis_tls()
        file_limit = raise_file_limit()
        # No more than a quarter for those that are no clients, and the rest for clients.
        room = max(2, file_limit - RESERVED_FILES)
        guests = max(1, min(config.limits.handshakes, room // 4))
        room -= guests
        connections = min(config.max_connections or room, room)
        self._limits = replace(config.limits, handshakes=guests, connections=connections)
        if config.max_connections and config.max_connections > room:
            self.log.warn(
                "--max-connections {asked} is more than the file limit {limit} allows:"
                " using {room}",
                asked=config.max_connections,
                limit=file_limit,
                room=room,
            )
        try:
            self._outlets = outlet.choose(os.environ.get("QUOTEPUSH_OUTLET") or "auto", reactor)
        except ValueError as error:
            raise CannotStart(f"quotepush: QUOTEPUSH_OUTLET in the environment: {error}") from None
        interests = Interests()
        self.hub = Hub(
            reactor,
            secrets.token_hex(4),
            self.counters,
            self._client_failed,
            self._outlets.end_of_turn,
            limits=self._limits,
            interest=interests,
        )
        self.announcements = Announcements(self.hub, self._outlets.end_of_turn)
        site = build_site(reactor, self.hub.recent_symbols, self._page_served, config.page)
        self.factory = QuoteFactory(
            reactor,
            self.hub,
            self._limits,
            site,
            self.counters,
            self._outlets.make,
            self.announcements.greet,
        )
        self._embedded = None if config.redis else EmbeddedRedis(reactor)
        self._sources = Sources(
            reactor, config, self.hub, interests, self.announcements, self.counters, config.port
        )
        self._liveness = Liveness(
            self.hub, reactor, self._limits, self.counters, self._client_given_up
        )
        self._heartbeats = LoopingCall(self._beat)
        self._heartbeats.clock = reactor
        self._staleness = LoopingCall(self._look_for_stale)
        self._staleness.clock = reactor

    def _tls_options(self) -> Any:
        config = self.config
        try:
            if config.cert is not None and config.key is not None:
                return server_options(config.cert, config.key)
            pair = development_pair(config.certs)
            if pair.made:
                self.log.info(
                    "made a development certificate, {certificate}, and its key, {key}:"
                    " browsers will warn of it",
                    certificate=str(pair.certificate),
                    key=str(pair.key),
                )
            return server_options(pair.certificate, pair.key)
        except ValueError as error:
            raise CannotStart(f"quotepush: {error}") from None

    def _check_redis_tls(self) -> None:
        if self.config.redis_over_tls:
            try:
                check_files(self.config.redis_tls)
            except ValueError as error:
                raise CannotStart(f"quotepush: {error}") from None

    # -- start -----------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Listen, while the process may still have the rights to."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        for text in self.config.endpoints():
            self._listen(text)

    def _listen(self, text: str) -> None:
        factory: IProtocolFactory = self.factory
        # An ssl: endpoint names certificates of its own.
        secure = text.startswith("ssl:")
        if self._tls is not None and not secure:
            factory = TLSFactory(self._tls, factory, self._reactor)
            secure = True
        if not text.startswith(("tcp:", "tcp6:", "unix:", "systemd:")):
            # Those of Twisted's own that wrap the factory, and plugins, may take no None from it.
            factory = NeverNone(factory)
        outcome: list[IListeningPort | Failure] = []
        try:
            listening = endpoints.serverFromString(self._reactor, text).listen(factory)
        except (ValueError, TypeError, OSError) as error:
            raise CannotStart(f"quotepush: can't listen on {text}: {error}") from None
        listening.addBoth(outcome.append)
        if not outcome:
            raise CannotStart(f"quotepush: {text} does not begin to listen at once; use another")
        result = outcome[0]
        if isinstance(result, Failure):
            raise CannotStart(f"quotepush: can't listen on {text}: {_reason(result)}")
        bound_send_buffer(getattr(result, "socket", None), self._limits.send_buffer)
        self.ports.append(result)
        self.factory.ports.append(result)
        self._secure.append(secure)

    def startService(self) -> None:
        """Serve clients, and begin to connect to Redis; neither waits for the other."""
        super().startService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        for port, secure in zip(self.ports, self._secure, strict=True):
            url = _url(port, "wss" if secure else "ws")
            if self.config.page and "+unix:" not in url:
                page = url.replace("ws", "http", 1)
                self.log.info("{url} is served; the page is at {page}", url=url, page=page)
            else:
                self.log.info("{url} is served", url=url)
        self.log.info(
            "quotepush {version}: at most {connections} clients; {outlets} outlets; epoch {epoch}",
            version=__version__,
            connections=self._limits.connections,
            outlets=self._outlets.name,
            epoch=self.hub.epoch,
        )
        self._heartbeats.start(self._limits.heartbeat_ms / 1000 / self.hub.groups, now=False)
        self._liveness.start()
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
        config = self.config
        addresses = config.redis
        if self._embedded is not None:
            self._embedded.prepare()
            addresses = (RedisAddress(path=self._embedded.socket_path),)
            try:
                await self._embedded.start()
            except NoRedisServer as error:
                # Stopping in the middle of a start is no fault. Else the feed keeps trying, and the
                # server starts again if it ended by itself.
                if self.running:
                    self.log.error("no quotes: {reason}", reason=str(error))
            if not self.running:
                return
            self.log.info(
                "embedded Redis on {path}; publish with: redis-cli -s {path} publish {example}",
                path=addresses[0].path,
                example=_example(config),
            )
        self._sources.start(addresses)

    # -- while it runs ---------------------------------------------------------------------------

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
        except Exception:  # noqa: BLE001 - said, and tried again at the next look
            self.log.failure("looking for stale symbols failed")

    def _client_failed(self, outbox: Outbox, failure: Exception) -> None:
        self.factory.failed(outbox, failure)

    def _client_given_up(self, outbox: Outbox, why: str) -> None:
        self.log.info("{conn} is given up: {why}", conn=outbox.conn, why=why)

    def _page_served(self) -> None:
        self.counters.page_requests += 1

    # -- stop ------------------------------------------------------------------------------------

    def stopService(self) -> defer.Deferred[None]:
        """Accept no more, quiet the feed, say goodbye to clients, then end Redis; in this order."""
        super().stopService()  # type: ignore[no-untyped-call]  # the library's, unannotated
        return defer.Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.factory.draining = True
        ports, self.ports = self.ports, []
        await defer.gatherResults([defer.maybeDeferred(port.stopListening) for port in ports])
        if self._heartbeats.running:
            self._heartbeats.stop()
        self._liveness.stop()
        if self._staleness.running:
            self._staleness.stop()
        await self._sources.stop_feeds()
        self.announcements.dismiss(CloseCode.GOING_AWAY, self._retry_ms)
        await self.factory.drain()
        await self._sources.stop_registry()
        if self._embedded is not None:
            await self._embedded.stop()

    @staticmethod
    def _retry_ms() -> int:
        return random.randrange(RECONNECT_SPREAD_MS)  # noqa: S311 - spreads load, guards nothing


def _reason(failure: Failure) -> str:
    error = failure.value
    if isinstance(error, CannotListenError):
        return f"{error.socketError}" if error.socketError else str(error)
    return failure.getErrorMessage()


def _example(config: Config) -> str:
    """The words after `publish` that bring a quote of AAPL, where the configuration allows one."""
    symbol = "" if config.symbol_field is None else f'"{config.symbol_field}":"AAPL",'
    channel = config.demo_channel("AAPL")
    if channel is None or config.symbol_regex is not None:
        return "CHANNEL PAYLOAD"
    return f"{channel} '{{{symbol}\"last\":189.50}}'"


def _url(port: IListeningPort, scheme: str) -> str:
    """Where `port` is reached, for the log."""
    address: Any = port.getHost()
    name = getattr(address, "name", None)
    if name is not None:
        return f"{scheme}+unix:{name if isinstance(name, str) else name.decode()}"
    # The name that the development certificate is for, where it leads there.
    local = ("0.0.0.0", "::", "127.0.0.1", "::1")  # noqa: S104 - shown, not bound
    host = "localhost" if address.host in local else address.host
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}/"
