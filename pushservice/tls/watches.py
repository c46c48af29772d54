"""Watches over certificates: those that expire soon are logged, changed files are reported.

Must not know: what is said over TLS, the options that named the files, or what follows when a
watched file changed.

Own code: watchdog and Twisted's inotify do not see symbolic links that are replaced in a directory
above, nor changes on network mounts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from pushservice.tls.certificates import Certificates, wall_clock

#: Days before its end from which a certificate is warned of; common renewal tools begin at 30.
WARN_DAYS: Final = 14
_A_DAY: Final = timedelta(days=1)
#: Names of a certificate that a message lists.
_LISTED: Final = 3


class ExpiryWatch:
    """Logs which certificates expire soon or have expired: at the start and then once a day.

    `now` returns the time, as an aware one.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        certificates: Certificates,
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        self._certificates = certificates
        self._now = now
        self._loop = LoopingCall(self.check)
        self._loop.clock = clock

    def start(self) -> None:
        """Check now, and every day until `stop`."""
        self._loop.start(_A_DAY.total_seconds(), now=True)

    def stop(self) -> None:
        """Check no more; does nothing where it was not started."""
        if self._loop.running:
            self._loop.stop()

    def check(self) -> None:
        """A warning for each pair with 14 days or fewer left, an error for each that has ended."""
        now = self._now()
        for expiry in self._certificates.expiries():
            days = expiry.days(now)
            words = {
                "certificate": str(expiry.certificate),
                "whom": _names(expiry.names),
                "ends": f"{expiry.ends:%Y-%m-%d}",
            }
            if days < 0:
                self.log.error(
                    "the certificate {certificate}{whom} ended on {ends},"
                    " clients refuse it: renew it",
                    **words,
                )
            elif days <= WARN_DAYS:
                left = "less than a day" if days == 0 else "1 day" if days == 1 else f"{days} days"
                self.log.warn(
                    "the certificate {certificate}{whom} ends in {left}, on {ends}: renew it",
                    left=left,
                    **words,
                )


def _names(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = len(names) - _LISTED
    return " for " + ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


#: Differs with each change of a file; a text is the reason why it can't be read.
_Stamp = tuple[int, ...] | str


class FilesWatch:
    """Checks every `every` seconds whether files changed, and calls `changed` once they settled.

    Files have settled when they are the same at the next check, because a certificate and its key
    are not replaced in the same instant. Symbolic links are followed, since certbot and Kubernetes
    replace those. While a file is missing nothing is called; that is logged once. Changes count
    from the construction: a caller that reads the files after it misses none.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        paths: Iterable[Path],
        changed: Callable[[], object],
        every: float = 10.0,
    ) -> None:
        self._paths = tuple(dict.fromkeys(paths))
        self._changed = changed
        self._every = every
        self._seen = self._handled = self._stamps()
        self._logged: set[tuple[Path, str]] = set()
        self._loop = LoopingCall(self._check)
        self._loop.clock = clock

    def start(self) -> None:
        """Check every `every` seconds until `stop`."""
        self._loop.start(self._every, now=False)

    def stop(self) -> None:
        """Check no more; does nothing where it was not started."""
        if self._loop.running:
            self._loop.stop()

    def _stamps(self) -> dict[Path, _Stamp]:
        return {path: _stamp(path) for path in self._paths}

    def _check(self) -> None:
        before, self._seen = self._seen, self._stamps()
        if self._seen != before:
            return
        faults = {(path, stamp) for path, stamp in self._seen.items() if isinstance(stamp, str)}
        for path, reason in sorted(faults - self._logged):
            self.log.warn(
                "can't look at {path}: {reason}; what was read from it before stays in use",
                path=str(path),
                reason=reason,
            )
        self._logged = faults
        if faults or self._seen == self._handled:
            return
        self._handled = self._seen
        # A LoopingCall whose function raises ends for good.
        try:
            self._changed()
        except Exception:  # noqa: BLE001 - logged; the next change is another chance
            self.log.failure("what follows from a changed file failed")


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError as error:
        return error.strerror or type(error).__name__
    # The inode's time too: giving back the right to read a file changes nothing else.
    return (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
    )
