"""The client for Twisted: QuoteService, which calls a callback with each event.

Must not know: the protocol, or when to connect: the conversation decides, this carries it out.

Callbacks are called while the reactor waits: with slow ones the socket is not read, and the daemon
merges the quotes, so that memory stays bounded.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any, TypeVar, Unpack

from twisted.application.service import Service
from twisted.internet import defer
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.client.actions import Answer, AskToken, Command, Connect, Hangup, Send
from pushservice.client.conversation import Conversation
from pushservice.client.events import Event, Gap, Quote, QuoteError, State
from pushservice.client.options import Options, Settings
from pushservice.client.subscriptions import check_symbols
from pushservice.client.twisted_connection import Link, autobahn_factory
from pushservice.client.twisted_tls import Trust

_E = TypeVar("_E")
Callback = Callable[[_E], Any]


class QuoteService(Service):
    """Live quotes: subscribe, and each event is given to `on_event` and to the callbacks of `on`.

    It connects when it is started, and connects again whenever the link is lost, with the
    subscriptions it had; each `State` tells how it stands. `reactor` is Twisted's, or what provides
    IReactorTime beside connections by name; a callback may be a coroutine function. What a callback
    raises is logged, and the link lives on.

    Raises ValueError where an option can't be right (see Options), and OSError where the file named
    by `ca` can't be read.
    """

    _log = Logger("pushservice.client")

    def __init__(
        self,
        reactor: Any,
        url: str,
        on_event: Callback[Event] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._options = options = Options(url, **settings)
        self._core = Conversation(options, random.random)
        self._endpoint: IStreamClientEndpoint = HostnameEndpoint(
            reactor, options.host, options.port
        )
        if options.secure:
            self._endpoint = wrapClientTLS(Trust(options), self._endpoint, reactor)
        self._factory = autobahn_factory(options, reactor)
        self._callbacks: dict[type[Any], list[_Callback]] = {}
        if on_event is not None:
            self._callbacks[object] = [_Callback(on_event)]
        self._link: Link | None = None
        self._links: set[Link] = set()
        self._stopping: list[defer.Deferred[None]] = []
        self._asking: defer.Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._armed: float | None = None
        self._turning = False

    # -- what a program does -----------------------------------------------------------------------

    @property
    def state(self) -> str:
        """How the connection stands, as in the last `State`."""
        return self._core.state

    @property
    def symbols(self) -> list[str]:
        """What is subscribed, or is to be once there is a connection."""
        return self._core.wanted

    def on(self, kind: type[_E], callback: Callback[_E]) -> Callable[[], None]:
        """Call `callback` with each event of `kind`; returns what ends that."""
        callbacks = self._callbacks.setdefault(kind, [])
        registered = _Callback(callback)
        callbacks.append(registered)

        def stop() -> None:
            if registered in callbacks:
                callbacks.remove(registered)

        return stop

    def subscribe(self, *symbols: str) -> defer.Deferred[dict[str, QuoteError]]:
        """Subscribe, over all connections to come; fires once the server has answered.

        It waits for a connection as long as there is none, before the service is started too. Gives
        the errors of the symbols that were refused, by symbol; fails with QuoteError if all were,
        or if the connection was closed for good. A refused symbol is asked for again with each new
        connection or token, until it is unsubscribed.
        """
        check_symbols(symbols)
        return self._ask(lambda now, done: self._core.subscribe(now, list(symbols), done))

    def unsubscribe(self, *symbols: str) -> defer.Deferred[None]:
        """Unsubscribe, or all where none is named; no quote of them comes from now on."""
        check_symbols(symbols)
        return self._ask(
            lambda now, done: self._core.unsubscribe(now, list(symbols) or None, done)
        ).addCallback(lambda _: None)

    def ping(self) -> defer.Deferred[float]:
        """The round trip to the daemon in seconds; fails with QuoteError without a connection."""
        return self._ask(self._core.ping)

    def served(self) -> defer.Deferred[list[str]]:
        """What the server has this connection subscribed to; fails with QuoteError as `ping`."""
        return self._ask(self._core.served)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._core.open(self._clock.seconds())
        self._turn()

    def stopService(self) -> defer.Deferred[None]:
        """Close the connection; fires when it is gone. It may be started again."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        if self._asking is not None:
            self._asking.cancel()
        self._core.close(self._clock.seconds())
        stopped: defer.Deferred[None] = defer.Deferred()
        self._stopping.append(stopped)
        self._turn()
        return stopped

    # -- the conversation's commands ---------------------------------------------------------------

    def _ask(self, request: Callable[[float, Callable[[Any], None]], None]) -> defer.Deferred[Any]:
        answer: defer.Deferred[Any] = defer.Deferred()

        def done(outcome: object) -> None:
            if not answer.called:
                answer.callback(Failure(outcome) if isinstance(outcome, QuoteError) else outcome)

        request(self._clock.seconds(), done)
        self._turn()
        return answer

    def _turn(self) -> None:
        """Carry out what the conversation asks for, until it asks for nothing more."""
        if self._turning:
            return  # a callback made a request: the turn that called it goes on
        self._turning = True
        try:
            while True:
                commands, events = self._core.take_commands(), self._core.take_events()
                if not commands and not events:
                    break
                answers = [command for command in commands if isinstance(command, Answer)]
                for command in commands:
                    self._carry_out(command)
                for event in events:
                    self._tell(event)
                for answer in answers:
                    answer.done(answer.outcome)
        finally:
            self._turning = False
        self._arm()
        self._tell_stopped()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Send(text):
                if self._link is not None:
                    self._link.say(text)
            case Answer():
                pass  # delivered after the events
            case Connect():
                self._link = Link(self)
                self._links.add(self._link)
                self._link.open(self._endpoint, self._factory)
            case Hangup(politely):
                link, self._link = self._link, None
                if link is not None:
                    link.hang_up(politely=politely)
            case AskToken(number, why):
                self._ask_token(number, why)

    def _tell(self, event: Event) -> None:
        if isinstance(event, State):
            self._log.info(
                "{place}: {state}{reason}",
                place=self._options.place,
                state=event.name,
                reason=f": {event.reason} ({event.code})" if event.code is not None else "",
            )
        elif not self.running:
            return  # a callback stopped the service in the middle of a message
        elif isinstance(event, Quote | Gap) and not self._core.wants(event.symbol):
            return  # or unsubscribed it
        for kind in (type(event), object):
            callbacks = self._callbacks.get(kind, [])
            for registered in tuple(callbacks):
                if registered not in callbacks:
                    continue  # one before it ended it
                try:
                    result = registered.callback(event)
                    if inspect.iscoroutine(result):
                        result = defer.Deferred.fromCoroutine(result)
                    if isinstance(result, defer.Deferred):
                        result.addErrback(self._report)
                except Exception:  # noqa: BLE001 - it is the user's, and the link lives on
                    self._report(Failure())

    def _report(self, failure: Failure) -> None:
        self._log.failure("a callback failed", failure)

    def _arm(self) -> None:
        deadline = self._core.deadline
        if deadline == self._armed:
            return
        self._armed = deadline
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            wait = max(0.0, deadline - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._tick)

    def _tick(self) -> None:
        self._timer = None
        deadline, self._armed = self._armed, None
        now = self._clock.seconds()
        self._core.tick(now if deadline is None else max(now, deadline))
        self._turn()

    # -- what links tell ---------------------------------------------------------------------------

    def heard(self, link: Link, message: bytes) -> None:
        """A message came."""
        if link is self._link:
            self._core.received(self._clock.seconds(), message)
            self._turn()

    def ended(self, link: Link, tell: Callable[[Conversation, float], None]) -> None:
        """A connection is gone, or was never made; `tell` says how."""
        self._links.discard(link)
        if link is self._link:
            self._link = None
            tell(self._core, self._clock.seconds())
            self._turn()
        self._tell_stopped()

    def _tell_stopped(self) -> None:
        if not self._links and not self._turning:
            stopping, self._stopping = self._stopping, []
            for stopped in stopping:
                stopped.callback(None)

    @property
    def clock(self) -> IReactorTime:
        """What links take their time-outs from."""
        return self._clock

    @property
    def place(self) -> str:
        """The address, for people."""
        return self._options.place

    # -- tokens ------------------------------------------------------------------------------------

    def _ask_token(self, number: int, why: str) -> None:
        ask: Any = self._options.token

        async def token() -> Any:
            given = ask(why)
            if isinstance(given, defer.Deferred) or inspect.isawaitable(given):
                given = await given
            if not isinstance(given, str) or not given:
                raise TypeError("the token function gave no token")
            return given

        def failed(failure: Failure) -> None:
            if not failure.check(defer.CancelledError):
                self._log.failure("no token from the token function; it is called again", failure)

        def came(given: str | None) -> None:
            self._asking = None
            self._core.token_came(self._clock.seconds(), number, given)
            self._turn()

        self._asking = defer.Deferred.fromCoroutine(token())
        self._asking.addErrback(failed).addCallback(came)


class _Callback:
    """A callback as it was given once; the same function may be given again."""

    def __init__(self, callback: Callback[Any]) -> None:
        self.callback = callback
