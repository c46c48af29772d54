"""What the kernel says of real connections, and how much it keeps for those that are accepted."""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from waiting import read, until

from pushservice.fanout.interfaces import Progress
from pushservice.server.socket_info import bound_send_buffer, bytes_held, bytes_sent, progress


def listening_on(kind: str, directory: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
    listening.bind(str(directory / "s") if kind == "unix" else ("127.0.0.1", 0))
    listening.listen()
    return listening


@pytest.fixture(params=["tcp", "unix"])
def ends(request, tmp_path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The accepted end of a connection, and the other one, which keeps little."""
    with listening_on(request.param, tmp_path) as listening:
        far = socket.socket(listening.family)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        far.settimeout(20)
        far.connect(listening.getsockname())
        near, _ = listening.accept()
    near.setblocking(False)
    with near, far:
        yield near, far


def fill(near: socket.socket) -> int:
    """Send until the kernel takes no more; returns how much that was."""
    sent = 0
    while True:
        try:
            sent += near.send(b"x" * 1000)
        except BlockingIOError:
            return sent


def unread(far: socket.socket) -> int:
    """Bytes that wait in the kernel for the far end to read them."""
    count = array.array("i", [0])
    fcntl.ioctl(far, termios.FIONREAD, count)
    return count[0]


def seen(near: socket.socket) -> Progress:
    known = progress(near)
    assert known is not None
    return known


@pytest_twisted.ensureDeferred
async def test_what_the_peer_took_grows_and_nothing_is_left_waiting(ends):
    near, far = ends
    before = seen(near)
    assert before.waiting == 0
    near.send(b"x" * 5000)
    read(far, 5000)
    await until(lambda: seen(near).waiting == 0, "the peer's acknowledgement")
    if near.family == socket.AF_INET:
        assert seen(near).taken - before.taken == 5000


@pytest_twisted.ensureDeferred
async def test_a_peer_that_stopped_reading_takes_nothing_until_it_reads_again(ends):
    near, far = ends
    sent = fill(near)
    if near.family == socket.AF_INET:
        # A peer's kernel takes what it has room for, and then nothing more.
        await until(lambda: seen(near).waiting + unread(far) == sent, "the peer's kernel to fill")
    stuck = seen(near)
    assert stuck.waiting > 0
    await until_turned()
    assert seen(near) == stuck
    # A peer's kernel offers its room again only when much of it is free.
    first = min(unread(far), sent // 2)
    read(far, first)
    await until(lambda: seen(near).taken > stuck.taken, "the peer to take more")
    read(far, sent - first)
    await until(lambda: seen(near).waiting == 0, "the peer to take all")


async def until_turned() -> None:
    """Let the reactor turn a few times."""
    turns = iter(range(10))
    await until(lambda: next(turns) == 9, "some turns of the reactor")


@pytest_twisted.ensureDeferred
async def test_what_each_read_of_a_unix_socket_takes_shows(tmp_path):
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        fill(near)
        taken = seen(near).taken
        for _ in range(5):
            far.recv(1000)
            assert seen(near).taken > taken
            taken = seen(near).taken


def test_a_peer_that_is_gone_is_no_fault(ends):
    near, far = ends
    near.send(b"x" * 5000)
    far.close()
    # Whatever is said of it, nothing is raised.
    progress(near)


def test_nothing_is_known_of_a_connection_that_is_closed(ends):
    near, _ = ends
    near.close()
    assert progress(near) is None


def test_nothing_is_known_of_no_connection():
    assert progress(None) is None


def test_nothing_is_known_of_a_socket_that_is_no_stream_connection():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert progress(other) is None


@pytest.mark.parametrize("size", [16_384, 65_536])
def test_accepted_tcp_connections_inherit_how_much_the_kernel_keeps(size, tmp_path):
    with listening_on("tcp", tmp_path) as listening:
        bound_send_buffer(listening, size)
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as near:
            # Linux doubles what it is told.
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * size


def test_what_the_kernel_takes_for_a_peer_that_does_not_read_is_bounded_by_it(tmp_path):
    taken = {}
    for size in (16_384, 131_072):
        with listening_on("tcp", tmp_path) as listening:
            bound_send_buffer(listening, size)
            with socket.socket() as far:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                far.connect(listening.getsockname())
                with listening.accept()[0] as near:
                    near.setblocking(False)
                    taken[size] = fill(near)
    assert taken[16_384] < 100_000
    assert taken[131_072] > 2 * taken[16_384]


def test_it_says_how_many_bytes_were_sent(ends):
    near, far = ends
    if near.family == socket.AF_UNIX:
        assert bytes_sent(near) is None
        return
    assert bytes_sent(near) == 0
    near.send(b"x" * 5000)
    read(far, 5000)
    assert bytes_sent(near) == 5000
    far.close()
    assert bytes_sent(near) == 5000
    near.close()
    assert bytes_sent(near) is None


def test_nobody_knows_how_many_bytes_were_sent_on_what_is_no_stream_connection():
    assert bytes_sent(None) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert bytes_sent(other) is None


def test_what_the_far_end_has_not_taken_is_held_by_the_kernel(ends):
    near, far = ends
    assert bytes_held(near) == 0
    fill(near)
    assert bytes_held(near) == seen(near).waiting > 0
    far.close()
    near.close()
    assert bytes_held(near) == 0
    assert bytes_held(None) == 0
