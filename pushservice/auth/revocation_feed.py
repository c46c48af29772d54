"""Revocations from Redis: those in a hash first, then the messages of a channel.

Must not know: connections of clients, tokens, or what follows from a revocation. Messages are lost
without a connection, so a program that revokes writes to the hash too; it is read at each connect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec
import txredisapi
from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.auth.identity import is_name
from pushservice.auth.revocations import KINDS, Kind, Revocations
from pushservice.fanout.interfaces import DelayedCall
from pushservice.redis.link import RedisLink, command_link
from pushservice.redis.url import RedisAddress, RedisTLS

#: Entries of the hash that one command asks for, about.
_PAGE: Final = 1000
#: Bytes of a message; a longer one is ignored.
_MOST_BYTES: Final = 65_536
#: Seconds in which Redis has to answer, and seconds before the next attempt.
PATIENCE: Final = 2.0
RETRY_AFTER: Final = 1.0
#: Seconds between two pings, which detect a Redis that hangs and a dead link.
PING_EVERY: Final = 5.0
#: Seconds between two log lines about one fault.
_LOG_EVERY: Final = 60.0


def revoke_channel(prefix: str = "quotepush:") -> str:
    """The channel for `{"user":"..."}` and `{"token":"..."}`."""
    return f"{prefix}revoke"


def revoked_hash(prefix: str = "quotepush:") -> str:
    """The key of the hash: `user:<name>` or `token:<id>` to seconds since the epoch."""
    return f"{prefix}revoked"


class RevocationFeed:
    """Passes revocations of one Redis on to `revocations`, for as long as it runs.

    `revoked` is called with a kind, a name, and whether it was revoked just now: with True for each
    message, with False for each new entry of the hash, which may be old. There are two connections,
    because one in subscribe mode takes no other commands. Raises ValueError as RedisLink does.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        revocations: Revocations,
        revoked: Callable[[Kind, str, bool], None],
        tls: RedisTLS | None = None,
        *,
        prefix: str = "quotepush:",
    ) -> None:
        #: True while no revocation can have been missed
        self.current = False
        self._clock = reactor
        self._revocations = revocations
        self._tell = revoked
        self._channel = revoke_channel(prefix)
        self._hash = revoked_hash(prefix)
        self._stopped = False
        # How often either connection changed: a read that spans a change is repeated.
        self._changes = 0
        self._reading = False
        self._retry: DelayedCall | None = None
        self._ping: DelayedCall | None = None
        self._logged_at: dict[str, float] = {}
        subscriber = type("Subscriber", (_Subscriber,), {"feed": self})
        self._listener = RedisLink(
            "revocation messages",
            reactor,
            address,
            subscriber,
            self._listen,
            self._changed,
            tls=tls,
        )
        self._reader = command_link("revocation hash", reactor, address, self._changed, tls=tls)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._listener.start()
        self._reader.start()

    async def stop(self) -> None:
        """Disconnect for good. May be called twice."""
        self._stopped = True
        self._cancel_calls()
        await self._listener.stop()
        await self._reader.stop()

    # -- the connections -------------------------------------------------------------------------

    @defer.inlineCallbacks
    def _listen(self, connection: Any) -> Any:
        # A Redis that still loads its data accepts subscriptions, but refuses a ping.
        yield connection.ping()
        yield connection.subscribe([self._channel])

    def _changed(self, _up: bool) -> None:
        self._changes += 1
        self.current = False
        self._cancel_calls()
        if not self._stopped and self._listener.up is not None:
            self._ping = self._clock.callLater(PING_EVERY, self._check_alive)
        self._read_soon()

    def _cancel_calls(self) -> None:
        for call in (self._retry, self._ping):
            if call is not None:
                call.cancel()
        self._retry = self._ping = None

    def _check_alive(self) -> None:
        """Ping; without an answer, reconnect."""
        self._ping = None
        connection = self._listener.up
        if connection is None:
            return
        patience = self._clock.callLater(PATIENCE, self._silent)

        def answered(_answer: object) -> None:
            if patience.active():
                patience.cancel()
            if connection is self._listener.up and self._ping is None and not self._stopped:
                self._ping = self._clock.callLater(PING_EVERY, self._check_alive)

        connection.ping().addBoth(answered)

    def _silent(self) -> None:
        self.log.warn("Redis has said nothing for {seconds:.1f} s", seconds=PATIENCE)
        self._listener.abort()

    # -- the hash --------------------------------------------------------------------------------

    def _read_soon(self) -> None:
        """Read the hash after subscribing: revocations during the read come as messages."""
        self._retry = None
        connection = self._reader.up
        if self._listener.up is None or connection is None or self._reading or self._stopped:
            return
        self._reading = True
        reading = defer.Deferred.fromCoroutine(self._read(connection, self._changes))
        reading.addErrback(self._not_read).addCallback(self._was_read)

    async def _read(self, connection: Any, changes: int) -> float | None:
        """Apply all entries; returns the seconds until it has to be repeated, or None."""
        cursor = b"0"
        unreadable = 0
        while True:
            patience = self._clock.callLater(PATIENCE, self._reader.abort)
            try:
                cursor, page = await connection.execute_command(
                    "HSCAN", self._hash, cursor, "COUNT", _PAGE
                )
            finally:
                if patience.active():
                    patience.cancel()
            for field, value in zip(page[::2], page[1::2], strict=True):
                entry = _entry(field, value)
                if entry is None:
                    unreadable += 1
                else:
                    self._take(*entry)
            if cursor == b"0":
                break
        if unreadable:
            self._log_rarely("{count} entries of {hash} are ignored: they are none", unreadable)
        if changes != self._changes:
            return 0.0
        self.current = True
        return None

    def _not_read(self, failure: Failure) -> float:
        if failure.check(txredisapi.RedisError):
            self._log_rarely(
                "what was revoked before can't be read in {hash}: {reason}; trying again",
                reason=failure.getErrorMessage(),
            )
        else:
            self.log.failure("what was revoked before can't be read", failure)
        return RETRY_AFTER

    def _was_read(self, again: float | None) -> None:
        self._reading = False
        if again is not None and not self._stopped and self._retry is None:
            self._retry = self._clock.callLater(again, self._read_soon)

    # -- messages --------------------------------------------------------------------------------

    def received(self, payload: bytes) -> None:
        """One message of the channel."""
        entry = _message(payload)
        if entry is None:
            self._log_rarely(
                "a message on {channel} revokes nothing: it is neither"
                ' {{"user":"..."}} nor {{"token":"..."}}'
            )
            return
        self.log.info("revoked: {kind} {name}", kind=entry[0], name=entry[1])
        self._take(*entry, None)

    def _take(self, kind: Kind, name: str, at: float | None) -> None:
        just_now = at is None
        if self._revocations.revoke(kind, name, at) or just_now:
            try:
                self._tell(kind, name, just_now)
            except Exception:  # noqa: BLE001 - the next one has to be revoked too
                self.log.failure("nothing followed from a revocation")

    def _log_rarely(self, format: str, count: int = 1, **values: object) -> None:
        now = self._clock.seconds()
        if now - self._logged_at.get(format, -_LOG_EVERY) >= _LOG_EVERY:
            self._logged_at[format] = now
            self.log.warn(format, count=count, channel=self._channel, hash=self._hash, **values)


class _Subscriber(txredisapi.SubscriberProtocol):
    """One connection in subscribe mode."""

    feed: RevocationFeed

    def messageReceived(self, pattern: object, channel: bytes, message: bytes) -> None:
        self.feed.received(message)


def _message(payload: bytes) -> tuple[Kind, str] | None:
    """What a message revokes; None where it is malformed."""
    try:
        found = msgspec.json.decode(payload) if len(payload) <= _MOST_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    named: list[tuple[Kind, Any]] = [(kind, found[kind]) for kind in KINDS if kind in found]
    if len(named) != 1 or not is_name(named[0][1]):
        return None
    return named[0]


def _entry(field: bytes, value: bytes) -> tuple[Kind, str, float] | None:
    """What an entry of the hash revokes; None where it is malformed."""
    try:
        head, _, name = field.decode().partition(":")
    except UnicodeDecodeError:
        return None
    for kind in KINDS:
        if head == kind and is_name(name):
            return kind, name, _moment(value)
    return None


def _moment(value: bytes) -> float:
    """Seconds since the epoch; infinity, which is the safe choice, where the value is no time."""
    try:
        at = float(value)
    except ValueError:
        return math.inf
    return at if at >= 0 else math.inf
