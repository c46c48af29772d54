"""Token renewal: when the token function is called and why, and which tokens were refused.

Must not know: links, what the server says beyond its refusals, or I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pushservice.client.actions import AskToken
from pushservice.client.options import Options, Why
from pushservice.client.timers import Timers

#: Connections in a row that end over a refused token before it is given up.
REFUSALS: Final = 3


class TokenRenewal:
    """Calls the token function, one call at a time, and keeps what it gave until it is shown."""

    def __init__(
        self,
        options: Options,
        timers: Timers,
        delay: Callable[[int], float],
        ask: Callable[[AskToken], None],
    ) -> None:
        """`delay` gives the seconds before an attempt, by its number from 0 on."""
        self._options = options
        self._timers = timers
        self._delay = delay
        self._ask_for = ask
        #: why the next token is asked for
        self.why: Why = "connect"
        #: connections in a row that ended over a refused token
        self.refusals = 0
        #: whether the last token of this link was refused
        self.refused_here = False
        #: what the server found wrong with the last token
        self.fault = ""
        self._awaited = 0  # the number of the call that is awaited; 0 for none
        self._calls = 0
        self._attempt = 0
        self._kept = ""  # a token that came while there was no connection to show it on

    @property
    def kept(self) -> bool:
        """Whether there is a token that was not shown yet."""
        return bool(self._kept)

    @property
    def may_renew(self) -> bool:
        """Whether another token can be asked for after a refusal."""
        return callable(self._options.token) and self.refusals < REFUSALS

    def begin_link(self) -> None:
        """A new link: nothing was refused on it."""
        self.refused_here = False
        self.fault = ""
        if self.why == "expiring":
            self.why = "connect"

    def refused(self) -> None:
        """The link ended over a refused token."""
        self.why = "refused"
        self.refusals += 1

    def keep(self, token: str) -> None:
        """Show `token` on the next link."""
        self._kept = token

    def take(self) -> str:
        """The token to show at once: the fixed one, or the one that was kept; empty for none."""
        token = self._options.token
        offer = token if isinstance(token, str) else self._kept
        self._kept = ""
        return offer

    def seek(self, seconds: float = 0.0) -> None:
        """Call the token function after so many seconds, unless its answer is awaited already."""
        if self._awaited:
            return
        self._timers.cancel("token")
        if seconds > 0:
            self._timers.set("token", seconds, self._ask)
        else:
            self._ask()

    def seek_again(self) -> None:
        """Call it once more, later after each failure in a row."""
        self.seek(self._delay(self._attempt))
        self._attempt += 1

    def answered(self, number: int) -> bool:
        """Whether the call of this number is the one that is awaited; it no longer is then."""
        if number != self._awaited:
            return False
        self._awaited = 0
        return True

    def forget(self) -> None:
        """Await no token, and keep none."""
        self._timers.cancel("token")
        self._awaited = 0
        self._attempt = 0
        self._kept = ""

    def _ask(self) -> None:
        self._calls += 1
        self._awaited = self._calls
        self._ask_for(AskToken(self._awaited, self.why))
