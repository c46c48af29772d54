"""What a process needs before it can serve: certificates, outlets, file descriptors, memory.

Must not know: clients, quotes, or which process serves.
"""

from __future__ import annotations

import gc
import os
import resource
from dataclasses import replace
from typing import Any, Final

from twisted.internet.task import Clock
from twisted.logger import Logger

from pushservice.config.config import Config
from pushservice.limits import Limits
from pushservice.redis.tls import check_files
from pushservice.server.connection_limits import PENDING_BURST
from pushservice.server.outlets import choice
from pushservice.service.access import token_authenticator
from pushservice.tls.certificates import Certificates
from pushservice.tls.factory import development_pair
from pushservice.tls.material import Material, read_material

#: File descriptors reserved for everything but connections, such as ports, Redis and the log, and
#: for a burst of connections that are accepted before they can be counted.
RESERVED_FILES: Final = 64 + PENDING_BURST

_log: Final = Logger()


class CannotStart(SystemExit, Exception):
    """The daemon can't do what it was told; ends the process with one line and exit status 1.

    An Exception too, so that twistd cleans up its pidfile, and tells the waiting parent of a
    daemonized start; a SystemExit, so that no traceback hides the line.
    """


def materials(config: Config) -> tuple[Material, ...]:
    """The certificates that `config` names, or the development one, which may be made now.

    Empty where TLS is off. Raises ValueError that names the file that can't be used.
    """
    if config.plain:
        return ()
    if config.cert:
        return tuple(
            read_material(certificate, key, config.client_ca)
            for certificate, key in zip(config.cert, config.key, strict=True)
        )
    pair = development_pair(config.certs)
    if pair.made:
        _log.info(
            "made a development certificate, {certificate}, and its key, {key}: browsers will warn"
            " of it",
            certificate=str(pair.certificate),
            key=str(pair.key),
        )
    return (read_material(pair.certificate, pair.key, config.client_ca),)


def check(config: Config) -> Certificates | None:
    """Check the files that a start with `config` needs: raises ValueError with the reason.

    Returns the certificates that it would serve with; None where TLS is off.
    """
    if config.redis_over_tls:
        check_files(config.redis_tls)
    if config.auth == "token":
        token_authenticator(Clock(), config)
    found = materials(config)
    return Certificates(found) if found else None


def outlets_here(reactor: Any) -> choice.Outlets:
    """The outlets of this process and its children, by the environment. Raises ValueError."""
    try:
        return choice.choose(os.environ.get("QUOTEPUSH_OUTLET") or "auto", reactor)
    except ValueError as error:
        raise ValueError(f"QUOTEPUSH_OUTLET in the environment: {error}") from None


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard


def limits_within_files(config: Config, warn: bool) -> Limits:
    """The limits of `config`, with no more connections than this process may have files.

    `warn` logs it where --max-connections is more than that.
    """
    file_limit = raise_file_limit()
    room = max(2, file_limit - RESERVED_FILES)
    # At most a quarter for handshakes, pages and closes; the rest for clients.
    pending = max(1, min(config.limits.handshakes, room // 4))
    room -= pending
    connections = min(config.max_connections or room, room)
    if warn and config.max_connections and config.max_connections > room:
        _log.warn(
            "--max-connections {asked} is more than the file limit {limit} allows: using {room}",
            asked=config.max_connections,
            limit=file_limit,
            room=room,
        )
    return replace(config.limits, handshakes=pending, connections=connections)


def prepare_memory() -> None:
    """Exempt what exists now from garbage collection; call it once all long-lived objects exist."""
    # Full collections need not walk the modules again and again: they are half of all objects at
    # 5,000 clients, and take two thirds of the time.
    gc.collect()
    gc.freeze()
