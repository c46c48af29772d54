"""Hands last values from one worker to another, so that a new worker has them at once.

Must not know: who the workers are, or when one of them needs this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec
from twisted.internet import task
from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from pushservice.fanout.hub import Hub

#: Symbols in one step, between which the reactor serves others: a millisecond or so.
_AT_ONCE: Final = 500

Value = tuple[str, int, bytes]
_decoder: Final = msgspec.msgpack.Decoder(list[Value])


async def dump_values(hub: Hub, descriptor: int) -> int:
    """Write the last values of `hub` to a file, from its beginning; returns how many they are."""
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    values = hub.values.newest_first()
    written = 0

    def write() -> Iterator[None]:
        nonlocal written
        batch: list[Value] = []
        for value in values:
            batch.append(value)
            if len(batch) == _AT_ONCE:
                written += _write(descriptor, batch)
                batch = []
                yield
        written += _write(descriptor, batch)

    await _in_steps(write())
    return written


async def load_values(hub: Hub, descriptor: int) -> int:
    """Give `hub` the values of the file that are newer than its own; returns how many."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    read = 0

    def take() -> Iterator[None]:
        nonlocal read
        at = 0
        while at < size:
            length = int.from_bytes(os.pread(descriptor, 4, at), "big")
            for symbol, t, payload in _decoder.decode(os.pread(descriptor, length, at + 4)):
                read += hub.values.inherit(symbol, t, payload)
            at += 4 + length
            yield

    await _in_steps(take())
    os.ftruncate(descriptor, 0)
    return read


def _write(descriptor: int, batch: list[Value]) -> int:
    data = msgspec.msgpack.encode(batch)
    data = len(data).to_bytes(4, "big") + data
    while data:
        data = data[os.write(descriptor, data) :]
    return len(batch)


def _in_steps(steps: Iterator[None]) -> Deferred[Iterator[None]]:
    return task.cooperate(steps).whenDone()
