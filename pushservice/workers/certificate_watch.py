"""Watches the certificates in use: how long they are valid, and whether their files change.

Must not know: who uses certificates, or how they are renewed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pushservice.config.config import Config
from pushservice.tls.certificates import Certificates
from pushservice.tls.watches import ExpiryWatch, FilesWatch


class CertificateWatch:
    """The watches of one set of certificates at a time."""

    def __init__(self, reactor: Any, renew: Callable[[], None]) -> None:
        """`renew` is called when the files have changed."""
        self._reactor = reactor
        self._renew = renew
        self._expiry: ExpiryWatch | None = None
        self._files: FilesWatch | None = None

    def start(self, certificates: Certificates | None, config: Config) -> None:
        """Watch `certificates`, if there are any, and no others."""
        self.stop()
        if certificates is None:
            return
        self._expiry = ExpiryWatch(self._reactor, certificates)
        self._expiry.start()
        if config.cert_watch:
            self._files = FilesWatch(self._reactor, config.certificate_files, self._renew)
            self._files.start()
            # The files may have changed since they were read.
            self._renew()

    def stop(self) -> None:
        """Watch nothing. May be called twice."""
        for watch in (self._expiry, self._files):
            if watch is not None:
                watch.stop()
        self._expiry = self._files = None

    def check_expiry(self) -> None:
        """Look now at how long the certificates are valid."""
        if self._expiry is not None:
            self._expiry.check()
