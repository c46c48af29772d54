"""The registry's connection to Redis: sends commands in batches and limits how long answers take.

Must not know: what is written, or when.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import txredisapi
from twisted.internet import defer
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from pushservice.metrics import Counters
from pushservice.redis.link import command_link
from pushservice.redis.url import RedisAddress, RedisTLS

#: Seconds in which Redis has to answer.
_ANSWER_TIMEOUT: Final = 5.0
#: What Redis says around the reason when it refuses something within a script; its versions differ.
_SCRIPT_NOISE: Final = re.compile(
    r"^ERR Error running script .*@user_script: \d+: -?| script: \w{40}, on @user_script:\d+\.$"
)

Command = list[Any]


class NotAnswered(Exception):
    """Redis did not answer in time."""


#: What `execute` raises when Redis is gone, silent, or refuses a command.
REDIS_FAULTS: Final = (
    txredisapi.RedisError,
    NotAnswered,
    defer.TimeoutError,
    defer.CancelledError,
)


class RegistryConnection:
    """A connection to Redis that is kept up, for commands and for scripts on keys of one prefix."""

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        prefix: str,
        counters: Counters,
        changed: Callable[[bool], None],
        tls: RedisTLS | None = None,
    ) -> None:
        """`changed` is called with True and False as the connection comes and goes.

        Raises ValueError as RedisLink does.
        """
        self.prefix = prefix
        #: How many connections there have been. Scripts are told: one that was sent over an earlier
        #: connection, and that Redis reads late, must do nothing.
        self.session = 0
        self._clock: IReactorTime = reactor
        self._counters = counters
        self._changed = changed
        self._link = command_link("registry", reactor, address, self._link_changed, tls=tls)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._link.start()

    async def stop(self) -> None:
        """Disconnect and connect no more."""
        await self._link.stop()

    @property
    def up(self) -> bool:
        """Whether there is a connection."""
        return self._link.up is not None

    def _link_changed(self, up: bool) -> None:
        if up:
            self.session += 1
        self._changed(up)

    def script(self, script: str, *words: Any) -> Command:
        """The command that runs `script` with the prefix and `words` as its arguments."""
        return ["EVAL", script, 0, self.prefix, *words]

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one go and wait for all answers. Raises one of REDIS_FAULTS."""
        connection = self._link.up
        if connection is None:
            raise txredisapi.ConnectionError("Redis is gone")
        timed_out: list[bool] = []

        def give_up() -> None:
            timed_out.append(True)
            self._link.abort()

        timeout = self._clock.callLater(_ANSWER_TIMEOUT, give_up)
        try:
            sent = [connection.execute_command(*command) for command in commands]
            answers = await defer.DeferredList(sent, consumeErrors=True)
        finally:
            if timeout.active():
                timeout.cancel()
        for succeeded, answer in answers:
            if not succeeded:
                self._counters.registry_failures += 1
                if timed_out:
                    raise NotAnswered(f"no answer in {_ANSWER_TIMEOUT:.0f} seconds")
                answer.raiseException()
        return [answer for _, answer in answers]


def fault_text(failure: Failure) -> str:
    """What Redis says is wrong, without the words that its scripting puts around it."""
    return _SCRIPT_NOISE.sub("", failure.getErrorMessage())
