"""A simple Redis client for tests: sends commands, reads the registry's keys, and subscribes."""

from __future__ import annotations

import socket
from typing import Any, Self

import hiredis


class RedisClient:
    """A blocking connection to the Unix socket of a redis-server; answers come within 10 seconds.

    `prefix` is what the keys of the registry begin with.
    """

    def __init__(self, path: str, prefix: str = "quotepush:") -> None:
        self.prefix = prefix
        self._reader = hiredis.Reader()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, *words: Any) -> Any:
        """Send one command and return its reply; raises an error reply."""
        self._socket.sendall(hiredis.pack_command(words))
        return self._answer()

    def _answer(self) -> Any:
        while (answer := self._reader.gets()) is False:
            received = self._socket.recv(65536)
            assert received, "Redis closed the connection"
            self._reader.feed(received)
        if isinstance(answer, Exception):
            raise answer
        return answer

    # -- keys of the registry -------------------------------------------------------------------

    def keys(self) -> set[str]:
        """All keys with the prefix, which is removed."""
        found = self.ask("KEYS", self.prefix + "*")
        return {key.decode().removeprefix(self.prefix) for key in found}

    def sets(self) -> dict[str, set[str]]:
        """All sets whose keys have the prefix, by key without it."""
        found = {}
        for key in self.keys():
            if self.ask("TYPE", self.prefix + key) == b"set":
                members = self.ask("SMEMBERS", self.prefix + key)
                found[key] = {member.decode() for member in members}
        return found

    def hash(self, key: str) -> dict[str, bytes]:
        """The hash with this key, given without the prefix."""
        flat = self.ask("HGETALL", self.prefix + key)
        return {flat[at].decode(): flat[at + 1] for at in range(0, len(flat), 2)}

    # -- demand ----------------------------------------------------------------------------------

    def listen(self) -> None:
        """Subscribe to the demand channel; other commands are impossible from now on."""
        self.ask("SUBSCRIBE", f"{self.prefix}demand")

    def channel(self) -> str:
        """The channel of the next message, after `ask` subscribed to a pattern."""
        return self._answer()[-2].decode()

    def messages(self) -> list[str]:
        """All messages since the last call, up to those published before this one."""
        self._socket.sendall(hiredis.pack_command(("PING", "all")))
        found = []
        while (answer := self._answer())[0] != b"pong":
            found.append(answer[2].decode())
        return found


def expected_sets(*nodes: tuple[str, dict[str, set[str]]]) -> dict[str, set[str]]:
    """The sets that the registry has to hold, from each node's id and what its clients watch."""
    sets: dict[str, set[str]] = {}
    for node, clients in nodes:
        sets.setdefault("nodes", set()).add(node)
        for client, symbols in clients.items():
            if symbols:
                sets.setdefault(f"node:{node}:clients", set()).add(client)
                sets[f"client:{client}"] = set(symbols)
            for symbol in symbols:
                sets.setdefault("symbols", set()).add(symbol)
                sets.setdefault(f"symbol:{symbol}", set()).add(client)
    return sets
