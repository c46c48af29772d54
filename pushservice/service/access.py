"""Who may connect and what they may see, composed of what a configuration asks for.

Must not know: how tokens are checked, connections, or how quotes flow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pushservice.auth.identity import Authenticator, Done, Refused
from pushservice.auth.origins import Origins
from pushservice.auth.revocation_feed import RevocationFeed
from pushservice.auth.revocations import Kind, Revocations
from pushservice.auth.tickets import TicketAuthenticator
from pushservice.auth.tokens import TokenAuthenticator
from pushservice.config.config import Config
from pushservice.fanout.interfaces import Clock
from pushservice.redis.url import RedisAddress
from pushservice.session.authentication import AccessControl

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub
    from pushservice.server.connections import Connections


def exposure(config: Config) -> Sequence[str]:
    """What to say of a start that lets everybody in from everywhere, and was not told to."""
    if config.auth is not None or config.client_ca is not None:
        return ()
    open_to_all = [text for text in config.endpoints() if not _is_private(text)]
    if not open_to_all:
        return ()
    warning = (
        f"everybody who can reach {', '.join(open_to_all)} may see every quote: nobody is asked who"
        " they are. Say --auth token or --auth redis to ask, --auth none if that is meant, or"
        " listen on --interface 127.0.0.1"
    )
    return (warning,)


def _is_private(endpoint: str) -> bool:
    """Whether only this machine reaches an endpoint."""
    if endpoint.startswith(("unix:", "systemd:")):
        # Reached by whom its file or its socket's unit says.
        return True
    interface = re.search(r"(?<!\\):interface=((?:\\.|[^:\\])*)", endpoint)
    host = "" if interface is None else interface[1].replace("\\", "")
    return host in ("localhost", "::1") or host.startswith("127.")


class _NoTokens:
    """Takes no token: where certificates say who clients are, none may say it otherwise."""

    def verify(self, _token: str, done: Done) -> None:
        """See Authenticator."""
        done(Refused("no tokens are taken here: your certificate says who you are"))


class _TicketsLater:
    """Tickets, once it is known where they are."""

    within: TicketAuthenticator | None = None

    def verify(self, token: str, done: Done) -> None:
        """See Authenticator."""
        if self.within is None:
            done(Refused("nobody can look at it yet: try again", temporary=True))
        else:
            self.within.verify(token, done)


def token_authenticator(clock: Clock, config: Config) -> TokenAuthenticator:
    """What verifies tokens as `config` has it. Raises ValueError for keys that can't be used."""
    return TokenAuthenticator(
        clock,
        config.token_key,
        config.token_jwks,
        config.token_algorithms,
        config.token_audience,
        config.token_issuer,
        config.token_leeway,
    )


class Access:
    """Decides for one process who comes in; its Redis is the first of the feed."""

    def __init__(
        self, reactor: Any, config: Config, hub_for: Callable[[float], Hub | None]
    ) -> None:
        """Raises ValueError for keys that can't be used."""
        self._reactor = reactor
        self._config = config
        self._revocations = Revocations(reactor)
        self._later = _TicketsLater()
        self._tickets: TicketAuthenticator | None = None
        self._feed: RevocationFeed | None = None
        self.access_control: AccessControl | None = None
        authenticator = self._authenticator()
        if authenticator is not None:
            self.access_control = AccessControl(
                reactor,
                authenticator,
                self._revocations,
                config.auth_timeout,
                config.token_leeway,
                hub_for,
            )

    def _authenticator(self) -> Authenticator | None:
        """Whom clients are shown to; None where nobody is asked who they are."""
        config = self._config
        if config.auth == "token":
            return token_authenticator(self._reactor, config)
        if config.auth == "redis":
            return self._later
        return None if config.client_ca is None else _NoTokens()

    def guard(self, connections: Connections) -> None:
        """Have `connections` refuse whom this does not let in."""
        config = self._config
        connections.origins = Origins(config.origins, config.require_origin)
        connections.access_control = self.access_control
        connections.token_in_url = config.token_in_url
        # Where tokens are asked for as well, a certificate alone is not enough.
        asks = config.auth in ("token", "redis")
        connections.by_certificate = config.client_ca is not None and not asks

    def start(self, address: RedisAddress) -> None:
        """Begin to hear of tickets and revocations from this Redis; returns at once."""
        config = self._config
        if self.access_control is None:
            return
        if config.auth == "redis":
            self._tickets = TicketAuthenticator(
                self._reactor, address, config.redis_tls, leeway=config.token_leeway
            )
            self._tickets.start()
            self._later.within = self._tickets
        self._feed = RevocationFeed(
            self._reactor, address, self._revocations, self._revoked, config.redis_tls
        )
        self._feed.start()

    async def stop(self) -> None:
        """Hear no more."""
        if self.access_control is not None:
            self.access_control.stop()
        if self._tickets is not None:
            await self._tickets.stop()
        if self._feed is not None:
            await self._feed.stop()

    def _revoked(self, kind: Kind, name: str, just_now: bool) -> None:
        if self.access_control is not None:
            user, token = (name, None) if kind == "user" else (None, name)
            self.access_control.end_revoked(user, token, just_now=just_now)
