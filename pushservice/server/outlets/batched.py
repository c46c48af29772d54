"""Outlets whose turns leave together: one call of a C extension frames, encrypts and sends them.

Must not know: quotes, symbols, or who is subscribed, or whether the extension was built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from typing import Protocol as Structure

from pushservice.fanout.shared_frames import SharedFrames
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import Codec
from pushservice.server.outlets.direct import DirectOutlet, DirectTLSOutlet
from pushservice.server.outlets.private_names import address_of

if TYPE_CHECKING:
    from pushservice.fanout.outbox import Outbox


class _Batched(Structure):
    """An outlet that posts to a batch."""

    def unsent(self, *rest: Any) -> None:
        """What it posted was not sent whole."""


class Batch:
    """What a turn has posted to outlets of one kind, until `send` hands it over in one call.

    `send_all` takes the targets (descriptors, flags and OpenSSL's objects) and the turns, empties
    the turns, and returns counts of frames, pieces and bytes, and what was not sent: see _fanout.c.
    """

    __slots__ = ("_send_all", "outlets", "targets", "turns")

    def __init__(self, send_all: Callable[..., tuple[int, int, int, Any]]) -> None:
        self._send_all = send_all
        self.outlets: list[_Batched] = []
        self.targets: list[tuple[int, ...]] = []
        self.turns: list[list[bytes]] = []

    def send(self, share: SharedFrames) -> None:
        """Send all that was posted; outlets hear only of what the kernel did not take."""
        if not self.turns:
            return
        outlets = self.outlets
        targets, turns = self.targets, self.turns
        self.outlets, self.targets, self.turns = [], [], []
        frames, pieces, size, unsent = self._send_all(targets, turns)
        share.frames += frames
        share.pieces += pieces
        share.bytes += size
        if unsent is not None:
            for at, *rest in unsent:
                outlets[at].unsent(*rest)


class BatchedOutlet(DirectOutlet):
    """A direct outlet whose turns are framed and sent together with those of all others."""

    __slots__ = ("_batch", "_target")

    def __init__(self, transport: Any, close: Callable[[CloseCode], None], batch: Batch) -> None:
        super().__init__(transport, close)
        self._batch = batch
        self._target: tuple[int, int] = (-1, 0)

    def attach(self, outbox: Outbox) -> None:
        super().attach(outbox)
        self._target = (self._tcp.fileno(), outbox.codec.joins)

    def post(self, pieces: list[bytes], codec: Codec, share: SharedFrames) -> None:
        tcp = self._tcp
        if tcp.dataBuffer or tcp._tempDataBuffer:
            super().post(pieces, codec, share)
            return
        batch = self._batch
        batch.outlets.append(self)
        batch.targets.append(self._target)
        batch.turns.append(pieces)

    def unsent(self, rest: bytes | None) -> None:
        """The kernel did not take `rest`; None where the connection is broken."""
        if rest is None:
            self._transport.abortConnection()
        else:
            self._tcp.write(rest)
            self._wait_for_drain()


class BatchedTLSOutlet(DirectTLSOutlet):
    """The same under TLS: a turn is framed, encrypted and sent in one call."""

    __slots__ = ("_batch", "_target")

    def __init__(self, transport: Any, close: Callable[[CloseCode], None], batch: Batch) -> None:
        super().__init__(transport, close)
        self._batch = batch
        self._target: tuple[int, int, int, int] = (0, 0, -1, 0)

    def attach(self, outbox: Outbox) -> None:
        super().attach(outbox)
        joins = outbox.codec.joins
        self._target = (address_of(self._ssl), address_of(self._bio), self._tcp.fileno(), joins)

    def post(self, pieces: list[bytes], codec: Codec, share: SharedFrames) -> None:
        tls, tcp = self._tls, self._tcp
        if (
            tcp.dataBuffer
            or tcp._tempDataBuffer
            or self._aggregated
            or tls._appSendBuffer
            or tls._lostTLSConnection
        ):
            super().post(pieces, codec, share)
            return
        batch = self._batch
        batch.outlets.append(self)
        batch.targets.append(self._target)
        batch.turns.append(pieces)

    def unsent(self, ciphertext: bytes | None, plain: bytes) -> None:
        """Not taken: by the kernel `ciphertext`, None where it is broken; by OpenSSL `plain`."""
        if ciphertext is None:
            self._transport.abortConnection()
            return
        if ciphertext:
            self._tcp.write(ciphertext)
            self._wait_for_drain()
        if plain:
            self._tls.write(plain)
