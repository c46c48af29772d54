"""A log line for each client that connects, and one when it disconnects; sampled when many do.

Must not know: connections, sockets, or how the numbers that it is given were counted.
"""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger

from pushservice.fanout.interfaces import Clock, DelayedCall
from pushservice.limits import BURST_SECONDS

#: Who ended a connection: the one whose close frame came first; LOST where there was none.
CLIENT: Final = "client"
SERVER: Final = "server"
LOST: Final = "lost"
#: In place of an address, where there is none.
UNIX: Final = "unix"


class ClientLog:
    """Writes the lines, at most `rate` a second over BURST_SECONDS; with a rate of 0 none.

    Lines above that rate are counted. One line tells their number BURST_SECONDS after the first
    that was left out, and again while more are.
    """

    log = Logger()

    __slots__ = (
        "_at",
        "_call",
        "_clock",
        "_left",
        "_left_out_connects",
        "_left_out_disconnects",
        "rate",
    )

    def __init__(self, clock: Clock, rate: int) -> None:
        self.rate = rate
        self._clock = clock
        # A token bucket of lines, as it was at `_at`.
        self._left = float(rate * BURST_SECONDS)
        self._at = clock.seconds()
        # How many lines were left out, and the call that writes these numbers.
        self._left_out_connects = self._left_out_disconnects = 0
        self._call: DelayedCall | None = None

    def connected(
        self, conn: str, address: str | None, subprotocol: str, user: str | None = None
    ) -> None:
        """The connection `conn` became a client; an `address` of None is a Unix socket's."""
        if not self.rate:
            return
        if not self._may_write():
            self._left_out_connects += 1
            return
        self.log.info(
            "{conn} connected from {address} ({subprotocol})"
            if user is None
            else "{conn} connected from {address} as {user} ({subprotocol})",
            conn=conn,
            address=address or UNIX,
            user=user,
            subprotocol=subprotocol,
        )

    def disconnected(
        self,
        conn: str,
        address: str | None,
        subprotocol: str,
        *,
        seconds: float,
        quotes: int,
        merged: int,
        sent: int | None,
        by: str,
        code: int | None,
        user: str | None = None,
    ) -> None:
        """A client disconnected `seconds` after it connected.

        `quotes`: updates handed to it, see Outbox.quotes; `merged`: into later ones; `sent`: bytes
        that the kernel sent on the connection, TLS and the handshake included, None where that is
        unknown; `by`: CLIENT, SERVER or LOST; `code`: of the close frame, None where
        there was none, or one without a code.
        """
        if not self.rate:
            return
        if not self._may_write():
            self._left_out_disconnects += 1
            return
        fields: dict[str, object] = {} if sent is None else {"bytes": sent}
        size = "" if sent is None else ", {bytes} bytes"
        ended = ", lost" if by == LOST else ", closed by {by}"
        if by != LOST:
            ended += " without a code" if code is None else " with {code}"
        # It may have authenticated after its first line.
        who = "" if user is None else " as {user}"
        text = "{conn} disconnected after {seconds} s" + who + ": {quotes} quotes, {merged} merged"
        text += size + ended
        self.log.info(
            text,
            conn=conn,
            address=address or UNIX,
            user=user,
            subprotocol=subprotocol,
            seconds=round(seconds, 1),
            quotes=quotes,
            merged=merged,
            by=by,
            code=code,
            **fields,
        )

    def stop(self) -> None:
        """Log what was left out so far; no call is pending afterwards. May be called twice."""
        if self._call is not None:
            self._call.cancel()
            self._tell()

    def _may_write(self) -> bool:
        """Take a line from the bucket, if there is one; otherwise one is about to be left out."""
        now = self._clock.seconds()
        passed, self._at = max(0.0, now - self._at), now
        self._left = min(float(self.rate * BURST_SECONDS), self._left + passed * self.rate)
        if self._left >= 1:
            self._left -= 1
            return True
        if self._call is None:
            self._call = self._clock.callLater(BURST_SECONDS, self._tell)
        return False

    def _tell(self) -> None:
        self._call = None
        came, self._left_out_connects = self._left_out_connects, 0
        went, self._left_out_disconnects = self._left_out_disconnects, 0
        self.log.info(
            "{came} more connected, {went} more disconnected: their lines are left out",
            came=came,
            went=went,
        )
