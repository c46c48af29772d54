"""One line in the log for each client that comes, one when it goes; sampled when many do.

Must not know: connections, sockets, or how what it is told was counted.
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

    What is over is counted, and told in one line BURST_SECONDS after the first that was left out,
    and so on while it lasts.
    """

    log = Logger()

    __slots__ = ("_at", "_call", "_came", "_clock", "_left", "_went", "rate")

    def __init__(self, clock: Clock, rate: int) -> None:
        self.rate = rate
        self._clock = clock
        # A bucket of lines that may be written, as it was at a moment.
        self._left = float(rate * BURST_SECONDS)
        self._at = clock.seconds()
        # Whose lines were left out, and the call that will tell.
        self._came = self._went = 0
        self._call: DelayedCall | None = None

    def came(
        self, conn: str, address: str | None, subprotocol: str, user: str | None = None
    ) -> None:
        """The connection `conn` became a client; an `address` of None is a Unix socket's."""
        if not self.rate:
            return
        if not self._may_write():
            self._came += 1
            return
        self.log.info(
            "{conn} came from {address} ({subprotocol})"
            if user is None
            else "{conn} came from {address} as {user} ({subprotocol})",
            conn=conn,
            address=address or UNIX,
            user=user,
            subprotocol=subprotocol,
        )

    def went(
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
        """A client is gone, `seconds` after it came.

        `quotes`: updates handed to it, see Outbox.quotes; `merged`: into later ones; `sent`: bytes
        of the connection that the kernel sent, those of TLS and of the handshake included, None
        where nobody knows; `by`: CLIENT, SERVER or LOST; `code`: of the close frame, None where
        there was none, or one without a code.
        """
        if not self.rate:
            return
        if not self._may_write():
            self._went += 1
            return
        fields: dict[str, object] = {} if sent is None else {"bytes": sent}
        size = "" if sent is None else ", {bytes} bytes"
        ended = ", lost" if by == LOST else ", closed by {by}"
        if by != LOST:
            ended += " without a code" if code is None else " with {code}"
        # It may have told who it is after its first line.
        who = "" if user is None else " as {user}"
        went = "{conn} went after {seconds} s" + who + ": {quotes} quotes, {merged} merged"
        went += size + ended
        self.log.info(
            went,
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
        """Tell what was left out so far; no call is pending afterwards. May be called twice."""
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
        came, self._came = self._came, 0
        went, self._went = self._went, 0
        self.log.info(
            "and {came} came, {went} went, whose lines were left out", came=came, went=went
        )
