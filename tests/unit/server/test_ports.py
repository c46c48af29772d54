"""Listening ports: opened, taken over, held for several reasons, and closed."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.protocol import Factory
from waiting import until

from pushservice.server.ports import CannotListen, Listening, Ports, address_text, listen, shared
from pushservice.server.ports import stop_listening as stop

LOOPBACK = "tcp:0:interface=127.0.0.1"


class Accepting(Factory):
    """Counts who came, and closes each at once."""

    noisy = False

    def __init__(self) -> None:
        self.came = 0

    def buildProtocol(self, addr: object) -> None:
        self.came += 1


def knock(where: Callable[[], socket.socket]) -> None:
    """Connect, and go."""
    where().close()


def tcp(port: object) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection(("127.0.0.1", port.getHost().port))


def unix(path: object) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        return client

    return connect


# -- opening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nonsense:1", "tcp:port=x", "tcp:0:colour=red", ""])
def test_words_that_are_no_endpoint_are_named(text):
    with pytest.raises(CannotListen, match="can't listen on") as caught:
        listen(reactor, text, Accepting())
    assert text in str(caught.value)


def test_a_busy_port_is_named_with_the_reason():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        with pytest.raises(CannotListen) as caught:
            listen(reactor, text, Accepting())
    assert str(caught.value).startswith(f"can't listen on {text}: ")
    assert "Address already in use" in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_what_is_listened_on_can_be_told_to_people(tmp_path):
    port = listen(reactor, LOOPBACK, Accepting())
    number = port.getHost().port
    assert address_text(port, "wss") == f"wss://localhost:{number}/"
    await stop(port)
    port = listen(reactor, f"unix:{tmp_path}/s", Accepting())
    assert address_text(port, "ws") == f"ws+unix:{tmp_path}/s"
    await stop(port)


class At:
    """A port at an address."""

    def __init__(self, host: str) -> None:
        self.host, self.port = host, 80

    def getHost(self) -> At:
        return self


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("0.0.0.0", "ws://localhost:80/"),
        ("::1", "ws://localhost:80/"),
        ("192.0.2.1", "ws://192.0.2.1:80/"),
        ("2001:db8::1", "ws://[2001:db8::1]:80/"),
    ],
)
def test_an_address_is_told_as_clients_write_it(host, told):
    assert address_text(At(host), "ws") == told


@pytest_twisted.ensureDeferred
async def test_a_fault_at_closing_is_said_and_no_more():
    class Broken:
        def stopListening(self) -> None:
            raise FileNotFoundError("somebody was here")

    await stop(Broken())


# -- holding ---------------------------------------------------------------------------------------


class Port:
    """A listening port: whether it accepts; it complains of what changes nothing."""

    connected = True
    accepting = True

    def stopReading(self) -> None:
        assert self.accepting, "stopped twice"
        assert self.connected, "there is no socket"
        self.accepting = False

    def startReading(self) -> None:
        assert not self.accepting, "started twice"
        assert self.connected, "there is no socket"
        self.accepting = True


def test_a_port_is_held_until_the_last_reason_is_gone():
    ports, port = Ports(), Port()
    ports.add(port)
    ports.hold("crowded")
    ports.hold("balance")
    ports.hold("balance")
    assert not port.accepting
    ports.release("balance")
    assert not port.accepting
    ports.release("balance")
    assert not port.accepting
    ports.release("crowded")
    assert port.accepting
    ports.release("crowded")


def test_a_port_that_comes_while_others_are_held_is_held_too():
    ports, first, second = Ports(), Port(), Port()
    ports.add(first)
    ports.hold("crowded")
    ports.add(second)
    assert not second.accepting
    ports.release("crowded")
    assert first.accepting
    assert second.accepting


@pytest.mark.parametrize("gone", ["before", "while held"])
def test_a_port_whose_socket_is_gone_is_neither_held_nor_released(gone):
    ports, alive, dead = Ports(), Port(), Port()
    ports.add(alive)
    ports.add(dead)
    dead.connected = gone == "while held"
    ports.hold("crowded")
    dead.connected = False
    ports.release("crowded")
    assert alive.accepting


@pytest_twisted.ensureDeferred
async def test_who_comes_while_a_port_is_held_is_accepted_after_it():
    ports, accepting = Ports(), Accepting()
    port = listen(reactor, LOOPBACK, accepting)
    ports.add(port)
    ports.hold("crowded")
    knock(tcp(port))
    turns: list[int] = []
    reactor.callLater(0.02, turns.append, 1)
    await until(lambda: turns, "some turns")
    assert accepting.came == 0
    ports.release("crowded")
    await until(lambda: accepting.came == 1, "who waited")
    where = ("127.0.0.1", port.getHost().port)
    await ports.close()
    with pytest.raises(ConnectionRefusedError):
        knock(lambda: socket.create_connection(where))


# -- taking over -----------------------------------------------------------------------------------


def dup(listening: Listening) -> Listening:
    """As a process gets it: a descriptor of its own."""
    return listening._replace(descriptor=os.dup(listening.descriptor))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_socket_that_is_taken_over_accepts_and_stays_open_elsewhere_after_it(
    tmp_path, kind
):
    text = LOOPBACK if kind == "tcp" else f"unix:{tmp_path}/s"
    theirs, ours = Accepting(), Accepting()
    origin = listen(reactor, text, theirs)
    origin.stopReading()
    where = tcp(origin) if kind == "tcp" else unix(tmp_path / "s")
    for _ in range(2):
        ports, given = Ports(), dup(shared(text, origin))
        assert given.family == origin.socket.family
        before = ours.came
        ports.adopt(reactor, given, ours)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(given.descriptor)
        knock(where)
        await until(lambda before=before: ours.came == before + 1, "a client")
        assert ports[0].getHost() == origin.getHost()
        descriptor = ports[0].fileno()
        await ports.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    knock(where)
    origin.startReading()
    await until(lambda: theirs.came == 1, "who came between two that accept")
    await stop(origin)
    assert not (tmp_path / "s").exists(), "where it was opened its name is removed"


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_that_is_taken_over_keeps_its_rights_and_its_queue(tmp_path):
    path = tmp_path / "s"
    origin = listen(reactor, f"unix:{path}:mode=600:backlog=90", Accepting())
    origin.stopReading()
    ports, accepting = Ports(), Accepting()
    ports.adopt(reactor, dup(shared("unix", origin)), accepting)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ports.hold("nobody is accepted")
    for _ in range(80):
        # One too many for the queue is told so at once.
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(str(path))
        client.close()
    ports.release("nobody is accepted")
    await until(lambda: accepting.came == 80, "all of them")
    await ports.close()
    assert path.exists()
    await stop(origin)


@pytest_twisted.ensureDeferred
async def test_a_socket_that_waits_is_taken_over_as_one_that_does_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getblocking()
        ports, accepting = Ports(), Accepting()
        given = Listening("tcp:1", os.dup(server.fileno()), server.family)
        ports.adopt(reactor, given, accepting)
        assert not os.get_blocking(server.fileno()), "else a lost race for a client stops it all"
        knock(tcp(ports[0]))
        await until(lambda: accepting.came == 1, "a client")
        await ports.close()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_socket_that_is_shut_down_elsewhere_can_still_be_released_and_closed(
    tmp_path, kind
):
    text = LOOPBACK if kind == "tcp" else f"unix:{tmp_path}/s"
    origin = listen(reactor, text, Accepting())
    origin.stopReading()
    ports = Ports()
    ports.adopt(reactor, dup(shared(text, origin)), Accepting())
    await stop(origin)
    turns: list[int] = []
    reactor.callLater(0.02, turns.append, 1)
    await until(lambda: turns, "what the reactor makes of it")
    ports.hold("balance")
    ports.release("balance")
    await ports.close()
    await ports.close()


@pytest_twisted.ensureDeferred
async def test_ports_that_are_closed_are_neither_held_nor_released_any_more():
    ports = Ports()
    port = listen(reactor, LOOPBACK, Accepting())
    ports.add(port)
    ports.hold("crowded")
    await ports.close()
    ports.release("crowded")
    ports.hold("balance")
    ports.release("balance")
    with pytest.raises(IndexError):
        ports[0]
    await defer.maybeDeferred(port.stopListening)
