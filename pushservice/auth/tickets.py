"""Tickets: opaque strings whose identity and rights are stored in Redis, some for one use.

Must not know: JSON Web Tokens, connections, or what the client of a ticket does.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import msgspec
import txredisapi
from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushservice.auth.identity import RIGHTS_CLAIMS, Claims, Done, Identity, Refused, check_time
from pushservice.fanout.interfaces import Clock
from pushservice.redis.link import command_link
from pushservice.redis.url import RedisAddress, RedisTLS

#: characters of a ticket, which are visible ASCII
LEAST_TICKET: Final = 16
MOST_TICKET: Final = 512
#: bytes of a ticket's value in Redis
MOST_VALUE: Final = 16_384
#: seconds in which Redis has to answer
PATIENCE: Final = 2.0
#: the keys that a ticket's object may have
FIELDS: Final = ("user", "id", "exp", "iat", "once", *RIGHTS_CLAIMS)
_FORM: Final = re.compile(rf"[!-~]{{{LEAST_TICKET},{MOST_TICKET}}}")
#: Seconds between two log lines about one fault.
_LOG_EVERY: Final = 60.0

#: KEYS: that of a ticket. Returns its value, and 1 if it was for one use and is now deleted, else
#: 0; nil where there is none. Of two clients at once, one gets it: scripts run one after another.
#: An unreadable value stays, and the caller refuses it.
_TAKE: Final = """
local value = redis.call('GET', KEYS[1])
if not value then
    return false
end
local readable, ticket = pcall(cjson.decode, value)
if readable and type(ticket) == 'table' and ticket.once ~= false then
    redis.call('DEL', KEYS[1])
    return {value, 1}
end
return {value, 0}
"""


def ticket_key(ticket: str, prefix: str = "quotepush:") -> str:
    """The key in Redis for a ticket; the ticket can't be found from it."""
    return f"{prefix}ticket:{hashlib.sha256(ticket.encode()).hexdigest()}"


class TicketAuthenticator:
    """Looks tickets up in one Redis, over a connection of its own.

    The value at `ticket_key` is a JSON object: `user`, `id`, `exp` and `iat` in seconds since
    the epoch, `once`, true unless it says false, and claims as in `Rights.from_claims`. Where Redis
    does not answer in PATIENCE seconds, the refusal is temporary; a ticket for one use may be gone
    then. `clock` tells whether a ticket is over, and is the reactor unless given. Raises ValueError
    as RedisLink does.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        tls: RedisTLS | None = None,
        clock: Clock | None = None,
        *,
        prefix: str = "quotepush:",
        leeway: float = 0.0,
    ) -> None:
        self._reactor = reactor
        self._clock: Clock = reactor if clock is None else clock
        self._prefix = prefix
        self._leeway = leeway
        self._logged_at: dict[str, float] = {}
        self._link = command_link("tickets", reactor, address, lambda _up: None, tls=tls)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._link.start()

    async def stop(self) -> None:
        """Disconnect; tickets under way are refused. May be called twice."""
        await self._link.stop()

    @property
    def up(self) -> bool:
        """Whether Redis is connected."""
        return self._link.up is not None

    def verify(self, token: str, done: Done) -> None:
        """See Authenticator."""
        connection = self._link.up
        if _FORM.fullmatch(token) is None:
            done(
                Refused(
                    f"the ticket is none: it has {LEAST_TICKET} to {MOST_TICKET} characters of"
                    " ASCII, and no space"
                )
            )
        elif connection is None:
            done(_try_again())
        else:
            looking = defer.Deferred.fromCoroutine(self._look_up(connection, token))
            looking.addErrback(self._failed)
            # An exception of `done` is logged, and stops nothing else.
            looking.addCallback(done)
            looking.addErrback(lambda failure: self.log.failure("a verdict was not taken", failure))

    async def _look_up(self, connection: Any, ticket: str) -> Identity:
        # After a timeout the answer may still come, and would be taken for the next command's: so
        # the connection is dropped.
        patience = self._reactor.callLater(PATIENCE, self._link.abort)
        try:
            key = ticket_key(ticket, self._prefix)
            answer = await connection.execute_command("EVAL", _TAKE, 1, key)
        finally:
            if patience.active():
                patience.cancel()
        if answer is None:
            raise Refused("the ticket is not known: it is over, or was used")
        value, taken = answer
        claims = _claims_in(value)
        if claims is None:
            self._log_rarely("a ticket in Redis is no JSON object; this is said once a minute")
            raise Refused("the ticket can't be read on the server")
        identity = _identity(claims, taken=taken == 1)
        check_time(self._clock.seconds(), self._leeway, expires=identity.expires_at)
        return identity

    def _failed(self, failure: Failure) -> Refused:
        if isinstance(failure.value, Refused):
            return failure.value
        if failure.check(txredisapi.RedisError):
            self._log_rarely(
                "a ticket was not looked up: {reason}; this is said once a minute",
                reason=failure.getErrorMessage(),
            )
        else:
            self.log.failure("a ticket was not looked up", failure)
        return _try_again()

    def _log_rarely(self, format: str, **values: object) -> None:
        now = self._reactor.seconds()
        if now - self._logged_at.get(format, -_LOG_EVERY) >= _LOG_EVERY:
            self._logged_at[format] = now
            self.log.warn(format, **values)


def _claims_in(value: bytes) -> Claims | None:
    """The JSON object that `value` is; None for all else."""
    try:
        found = msgspec.json.decode(value) if len(value) <= MOST_VALUE else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _identity(claims: Claims, *, taken: bool) -> Identity:
    for name in claims:
        if name not in FIELDS:
            # A misspelt key could give more rights than was meant.
            raise Refused(f"the ticket holds what is none of {', '.join(FIELDS)}")
    once = claims.get("once", True)
    if not isinstance(once, bool):
        raise Refused("the claim once is neither true nor false")
    if once and not taken:
        # Redis could not read it, so it was not deleted, and could be used again and again.
        raise Refused("the ticket can't be read on the server")
    return Identity.from_claims(claims, user="user", token_id="id")  # noqa: S106 - a claim's name


def _try_again() -> Refused:
    return Refused("tickets can't be looked up for the moment: try again", temporary=True)
