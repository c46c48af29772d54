"""Keys of a real terminal, which is as it was afterwards."""

from __future__ import annotations

import asyncio
import os
import pty
import termios

import pytest

from pushservice.cli.keys import keys, keys_in


@pytest.fixture
def terminal():
    """Both ends of a pseudo-terminal: ours, and that of the program."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    for descriptor in (ours, theirs):
        os.close(descriptor)


def press(ours: int, theirs: int, *data: bytes) -> list[str]:
    """The keys that are seen, one after the other."""

    async def main() -> list[str]:
        seen: asyncio.Queue[str] = asyncio.Queue()
        found = []
        with keys(theirs, seen.put_nowait):
            assert not termios.tcgetattr(theirs)[3] & termios.ICANON
            assert termios.tcgetattr(theirs)[3] & termios.ISIG, "Ctrl-C stays a signal"
            for each in data:
                os.write(ours, each)
                found.append(await asyncio.wait_for(seen.get(), 20))
        return found

    return asyncio.run(main())


def test_keys_are_reported_by_name_and_the_terminal_is_restored(terminal):
    before = termios.tcgetattr(terminal[1])
    assert press(*terminal, b"q", b"\x1b[A", b"\x1b[6~", "ä".encode()) == [
        *("q", "up", "page down", "ä")
    ]
    assert termios.tcgetattr(terminal[1]) == before


def test_the_terminal_is_as_it_was_after_an_error_too(terminal):
    async def main() -> None:
        with keys(terminal[1], print):
            raise KeyError("oops")

    before = termios.tcgetattr(terminal[1])
    with pytest.raises(KeyError):
        asyncio.run(main())
    assert termios.tcgetattr(terminal[1]) == before


def test_what_is_no_terminal_is_left_alone():
    async def main() -> None:
        with keys(reading, print):
            assert not asyncio.get_running_loop().remove_reader(reading)

    reading, writing = os.pipe()
    asyncio.run(main())
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"\x1bOB", ["down"]),
        (b"\xff", ["\ufffd"]),
        (b" q", [" ", "q"]),
        (b"\x1b[6~\x1b[6~k", ["page down", "page down", "k"]),
        (b"\x1b[1;5C", ["\x1b[1;5C"]),
        (b"\x1b", ["\x1b"]),
        (b"", []),
    ],
)
def test_bytes_have_names_also_where_several_keys_come_at_once(data, names):
    assert keys_in(data) == names
