"""Reads keys at a terminal, and restores the terminal afterwards.

Must not know: what a key does. Own code: a table of eight sequences; prompt_toolkit or textual
would take over the whole terminal.
"""

from __future__ import annotations

import asyncio
import os
import re
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: the sequences of keys that are not characters
_NAMES: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1b[F": "end",
}
#: a key's sequence (ECMA-48, 5.4), or a character
_KEY: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)


def keys_in(data: bytes) -> list[str]:
    """The names of keys: `up`, `down`, `page up`, ... or the character itself."""
    return [_NAMES.get(each, each) for each in _KEY.findall(data.decode("utf-8", "replace"))]


@contextmanager
def keys(descriptor: int, pressed: Callable[[str], None]) -> Iterator[None]:
    """Within the block, in a running event loop, `pressed` is called with the name of each key.

    Ctrl-C stays a signal. Where `descriptor` is no terminal nothing is read.
    """
    if not os.isatty(descriptor):
        yield
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            data = os.read(descriptor, 64)
        except OSError:
            data = b""
        if not data:
            # The other end is closed: no key will come any more.
            loop.remove_reader(descriptor)
        for key in keys_in(data):
            pressed(key)

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSADRAIN)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
