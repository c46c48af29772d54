"""Entries of dead nodes in the registry: found and removed.

Must not know: who watches what, or how connections to Redis come and go.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from twisted.logger import Logger

from pushservice.registry import scripts
from pushservice.registry.connection import RegistryConnection

#: Symbols and clients that one script removes.
_BATCH: Final = 200


class NodeSweeper:
    """Removes from the registry what nodes left that died, or that are this one's earlier lives."""

    log = Logger()

    def __init__(self, redis: RegistryConnection, name: str, node: str) -> None:
        """`name` is this daemon's through all its lives, `node` names its life now."""
        self._redis = redis
        self._name = name
        self._node = node

    async def sweep_dead(self) -> None:
        """Remove what nodes left whose heartbeat has expired."""
        [dead] = await self._redis.execute([self._redis.script(scripts.DEAD)])
        for node in dead:
            await self.sweep(node.decode(), force=False)

    async def sweep_earlier_lives(self) -> None:
        """Remove what this daemon left when it was killed, or ended without its own sweep."""
        [nodes] = await self._redis.execute([["SMEMBERS", f"{self._redis.prefix}nodes"]])
        for node in map(bytes.decode, nodes):
            if node != self._node and node.rpartition(".")[0] == self._name:
                await self.sweep(node, force=await self._has_ended(node))

    async def sweep(self, node: str, *, force: bool) -> None:
        """Remove what `node` left; of one that has a heartbeat, only with `force`."""
        left = 1
        while left > 0:
            script = self._redis.script(scripts.SWEEP, node, _BATCH, int(force))
            [left] = await self._redis.execute([script])
        if left == 0 and node != self._node:
            self.log.info("swept what {node} left in the registry", node=node)

    async def _has_ended(self, node: str) -> bool:
        """Whether the process of `node` ran on this host and is there no more."""
        key = f"{self._redis.prefix}node:{node}"
        [[host, pid]] = await self._redis.execute([["HMGET", key, "host", "pid"]])
        return pid is not None and host == socket.gethostname().encode() and not _runs(int(pid))


def _runs(pid: int) -> bool:
    """Whether a process `pid` is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
