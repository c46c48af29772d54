"""Which outlets a process uses: the fastest that work here, or those that the environment names.

Must not know: quotes, symbols, who is subscribed, or how outlets send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from twisted.internet.tcp import Connection
from twisted.protocols.tls import BufferingTLSTransport

from pushservice.fanout.shared_frames import SharedFrames
from pushservice.protocol.close_codes import CloseCode
from pushservice.server.outlets.batched import Batch, BatchedOutlet, BatchedTLSOutlet
from pushservice.server.outlets.direct import DirectOutlet, DirectTLSOutlet
from pushservice.server.outlets.portable import PortableOutlet
from pushservice.server.outlets.private_names import missing_names, openssl_functions

#: The values of the environment's QUOTEPUSH_OUTLET.
MODES: Final = ("auto", "portable", "direct", "batched")

#: Makes the outlet of a transport; the second argument begins the closing handshake.
MakeOutlet: TypeAlias = Callable[[Any, Callable[[CloseCode], None]], PortableOutlet]


class Outlets(NamedTuple):
    """What makes the outlet of each connection, and what ends a turn."""

    name: str
    make: MakeOutlet
    end_of_turn: Callable[[SharedFrames], None]


def _end_nothing(_share: SharedFrames) -> None:
    """End a turn of outlets that send at once."""


def _by_kind(plain: MakeOutlet, tls: MakeOutlet) -> MakeOutlet:
    """Makes the outlet for the transport's kind, and the portable one for any other kind."""

    def make(transport: Any, close: Callable[[CloseCode], None]) -> PortableOutlet:
        if isinstance(transport, Connection):
            return plain(transport, close)
        below: Any = getattr(transport, "transport", None)
        if isinstance(transport, BufferingTLSTransport) and isinstance(below, Connection):
            return tls(transport, close)
        return PortableOutlet(transport, close)

    return make


PORTABLE: Final = Outlets("portable", PortableOutlet, _end_nothing)
DIRECT: Final = Outlets("direct", _by_kind(DirectOutlet, DirectTLSOutlet), _end_nothing)


def _batched() -> Outlets | None:
    """Outlets by the C extension, or None where it was not built."""
    functions = openssl_functions()
    try:
        from pushservice.fanout import _fanout
    except ImportError:
        return None
    if functions is None:
        return None
    _fanout.use_openssl(*functions)
    plain, tls = Batch(_fanout.send_plain), Batch(_fanout.send_tls)

    def end_of_turn(share: SharedFrames) -> None:
        plain.send(share)
        tls.send(share)

    make = _by_kind(
        lambda transport, close: BatchedOutlet(transport, close, plain),
        lambda transport, close: BatchedTLSOutlet(transport, close, tls),
    )
    return Outlets("batched", make, end_of_turn)


def choose(mode: str, reactor: Any) -> Outlets:
    """The outlets of `mode`; `auto` is batched where that works, else direct, else portable.

    Raises ValueError for an unknown mode, and for one that does not work here.
    """
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no outlet; there are {', '.join(MODES)}")
    if mode == "portable":
        return PORTABLE
    missing = missing_names(reactor)
    if missing:
        if mode == "auto":
            return PORTABLE
        raise ValueError(f"{mode} outlets need what is not there: {', '.join(missing)}")
    if mode == "direct":
        return DIRECT
    batched = _batched()
    if batched is None and mode == "batched":
        raise ValueError(
            "batched outlets need the C extension pushservice.fanout._fanout, not built here"
        )
    return batched or DIRECT
