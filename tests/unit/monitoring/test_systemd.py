"""What systemd is told arrives on its socket, and a systemd that is not there hurts nobody."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pushservice.monitoring.systemd import VARIABLES, Systemd


@pytest.fixture
def path() -> Iterator[str]:
    """Where a Unix socket may be made: pytest's own directories have names too long for one."""
    directory = Path(tempfile.mkdtemp(prefix="quotepush-test-"))
    yield str(directory / "notify")
    shutil.rmtree(directory)


@pytest.fixture
def notified(path: str) -> Iterator[socket.socket]:
    """The socket on which systemd would listen."""
    with closing(bound(path)) as listener:
        yield listener


def bound(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.settimeout(5)
    listener.bind(address)
    return listener


def systemd(address: str, **more: str) -> Systemd:
    return Systemd({"NOTIFY_SOCKET": address} | more, pid=77, monotonic_ns=lambda: 5_000_001_999)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Systemd.ready, b"READY=1"),
        (Systemd.reloading, b"RELOADING=1\nMONOTONIC_USEC=5000001"),
        (Systemd.stopping, b"STOPPING=1"),
        (Systemd.watchdog, b"WATCHDOG=1"),
    ],
)
def test_each_state_is_one_datagram_in_the_words_of_sd_notify(path, notified, method, message):
    assert method(systemd(path)) is True
    assert notified.recv(4096) == message


def test_a_status_is_one_line_whatever_the_text(path, notified):
    assert systemd(path).status("3 workers,\nREADY=1\r\n\t1,234 clients – “fine”\udcff")
    assert notified.recv(4096).decode() == "STATUS=3 workers, READY=1 1,234 clients – “fine”?"


def test_a_socket_in_the_abstract_namespace_is_written_with_an_at_sign():
    name = f"quotepush-test-{os.getpid()}"
    with closing(bound(f"\0{name}")) as listener:
        assert systemd(f"@{name}").ready() is True
        assert listener.recv(4096) == b"READY=1"


def test_the_time_of_a_reload_is_that_of_the_monotonic_clock(path, notified):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Systemd({"NOTIFY_SOCKET": path}).reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    said = notified.recv(4096).decode()
    assert before <= int(said.removeprefix("RELOADING=1\nMONOTONIC_USEC=")) <= after


@pytest.mark.parametrize(
    "address", [None, "", "relative/path", "vsock:2:1234", "@", "/\0", "/" * 200]
)
def test_without_a_socket_that_can_be_used_nothing_is_sent_and_nothing_raises(address):
    quiet = Systemd({} if address is None else {"NOTIFY_SOCKET": address})
    said = (quiet.ready(), quiet.reloading(), quiet.stopping(), quiet.status("x"), quiet.watchdog())
    assert said == (False,) * 5


def test_a_socket_that_nobody_reads_any_more_raises_nothing(path):
    bound(path).close()
    assert systemd(path).ready() is False


def test_a_full_queue_is_not_waited_for(path, notified):
    # The kernel holds some tens to hundreds of datagrams (net.unix.max_dgram_qlen) for a reader.
    filling = threading.Thread(target=lambda: while_true(systemd(path).watchdog), daemon=True)
    filling.start()
    filling.join(20)
    assert not filling.is_alive(), "it waits for room"
    notified.recv(4096)
    assert systemd(path).watchdog() is True


def while_true(call):
    while call():
        continue


def test_no_socket_is_left_open(path, notified):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        systemd(path).status("x")
        systemd("/nowhere").status("x")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 15.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "77"}, 0.75),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_PID": "77"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_the_time_that_systemd_waits_for_this_process(
    variables, interval
):
    assert systemd("/nowhere", **variables).watchdog_interval == interval


def test_the_process_is_this_one_unless_said_otherwise():
    asked = {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    assert Systemd(asked).watchdog_interval == 1.0
    assert Systemd(asked | {"WATCHDOG_PID": str(os.getpid() + 1)}).watchdog_interval is None


def test_the_variables_that_are_not_for_children_are_those_that_are_read():
    class Read(dict):
        def __init__(self):
            super().__init__(WATCHDOG_USEC="1")
            self.names = set()

        def get(self, name, default=None):
            self.names.add(name)
            return super().get(name, default)

    environment = Read()
    Systemd(environment)
    assert environment.names == set(VARIABLES)
