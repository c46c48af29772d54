"""An outlet over real transports, plain and TLS: full, drained, paused, detached, aborted."""

from __future__ import annotations

import array
import fcntl
import socket
import ssl
import struct
import sys
import termios

import pytest
import pytest_twisted
from core_doubles import make_hub
from pushservice.server.outlet import (
    MODES,
    BatchedOutlet,
    BatchedTLSOutlet,
    DirectOutlet,
    DirectTLSOutlet,
    PortableOutlet,
    choose,
    missing_names,
)
from twisted.internet import defer, protocol, reactor
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IPushProducer
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from waiting import read, until
from zope.interface.verify import verifyObject

from pushservice.fanout.interfaces import Progress
from pushservice.fanout.outbox import Outbox
from pushservice.protocol.close_codes import CloseCode
from pushservice.protocol.codecs import JSON
from pushservice.tls.factory import TLSFactory, development_pair, server_options


def waiting(end: socket.socket, which: int) -> int:
    """Bytes in one of the kernel's queues: TIOCOUTQ to be sent, FIONREAD to be read."""
    count = array.array("i", [0])
    fcntl.ioctl(end, which, count)
    return count[0]


class Connection(protocol.Protocol):
    """The daemon's side: an outlet with an outbox that falls behind and catches up."""

    def connectionMade(self) -> None:
        self.received = b""
        self.lost = None
        self.closed_with: list[CloseCode] = []
        self.outlet = self.factory.make(self.transport, self.closed_with.append)
        self.outbox = Outbox(JSON, self.outlet, make_hub().common, "t-1")
        self.factory.made.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason) -> None:
        self.lost = reason

    def socket(self) -> socket.socket:
        """The TCP socket below."""
        transport = self.transport
        while not hasattr(transport, "socket"):
            transport = transport.transport
        return transport.socket

    def unread(self) -> int:
        """Bytes that wait in the kernel for this side to read them."""
        return waiting(self.socket(), termios.FIONREAD)


WAYS = [(kind, mode) for kind in ("tcp", "tls") for mode in ("portable", "direct", "batched")]


@pytest.fixture(params=WAYS, ids="-".join)
def pair(request, tmp_path):
    """A connection with small kernel buffers: the daemon's side, and the client's socket."""
    kind, mode = request.param
    factory = protocol.Factory.forProtocol(Connection)
    factory.made = []
    factory.outlets = choose(mode, reactor)
    factory.make = factory.outlets.make
    listening = factory
    if kind == "tls":
        files = development_pair(tmp_path)
        listening = TLSFactory(server_options(files.certificate, files.key), factory, reactor)
    port = reactor.listenTCP(0, listening, interface="127.0.0.1")

    def dial() -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.settimeout(20)
        client.connect(("127.0.0.1", port.getHost().port))
        if kind == "tls":
            context = ssl.create_default_context(cafile=str(files.certificate))
            client = context.wrap_socket(client, server_hostname="localhost")
        return client

    factory.dial = dial

    async def connect() -> tuple[Connection, socket.socket]:
        client = await deferToThread(dial)
        await until(lambda: factory.made, "the daemon's side")
        ours = factory.made[0]
        ours.socket().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return ours, client

    async def end() -> None:
        client.close()
        if ours.lost is None:
            ours.transport.abortConnection()
        await until(lambda: ours.lost is not None, "the connection's end")
        await port.stopListening()

    ours, client = pytest_twisted.blockon(defer.ensureDeferred(connect()))
    yield ours, client
    pytest_twisted.blockon(defer.ensureDeferred(end()))


async def fill(ours: Connection) -> bytes:
    """Write until the outbox is behind; returns all that was written."""
    written = []
    while not ours.outbox.behind:
        assert len(written) < 10_000, "a transport that is never full"
        written.append(bytes([len(written) % 251]) * 1000)
        ours.outlet.write(written[-1])
        await until_turned()
    return b"".join(written)


async def until_turned(turns: int = 3) -> None:
    """Let the reactor turn a few times."""
    for _ in range(turns):
        turn: defer.Deferred[None] = defer.Deferred()
        reactor.callLater(0, turn.callback, None)
        await turn


@pytest_twisted.ensureDeferred
async def test_a_reader_that_stops_makes_the_outbox_behind_and_reading_makes_it_flow(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    assert not ours.outbox.behind
    for _ in range(2):
        written = await fill(ours)
        more = b"after the transport was full"
        ours.outlet.write(more)
        await until_turned(10)
        assert ours.outbox.behind, "nobody has read yet"
        assert await deferToThread(read, client, len(written + more)) == written + more
        await until(lambda: not ours.outbox.behind, "the outbox to flow again")


@pytest_twisted.ensureDeferred
async def test_a_transport_is_full_within_its_buffer_and_the_kernels(pair):
    ours, _ = pair
    ours.outlet.attach(ours.outbox)
    assert len(await fill(ours)) < 1_000_000


@pytest_twisted.ensureDeferred
async def test_little_writes_that_are_read_never_make_it_behind(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    for at in range(200):
        data = b"%d" % at * 1000
        ours.outlet.write(data)
        assert await deferToThread(read, client, len(data)) == data
        assert not ours.outbox.behind


@pytest_twisted.ensureDeferred
async def test_an_outlet_that_was_detached_tells_nobody(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    ours.outlet.detach()
    written = b"x" * 1_000_000
    ours.outlet.write(written)
    await until_turned(10)
    assert not ours.outbox.behind
    assert await deferToThread(read, client, len(written)) == written


@pytest_twisted.ensureDeferred
async def test_draining_after_a_detach_tells_nobody(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    written = await fill(ours)
    ours.outlet.detach()
    ours.outlet.write(b"the last")
    assert await deferToThread(read, client, len(written) + 8) == written + b"the last"
    await until_turned(10)
    assert ours.outbox.behind


@pytest_twisted.ensureDeferred
async def test_what_a_client_sends_waits_while_reading_is_paused(pair):
    ours, client = pair
    for count in (1, 2):
        for _ in range(count):
            ours.outlet.pause_reading()
        client.sendall(b"x")
        await until(ours.unread, "the client's byte")
        await until_turned(10)
        assert len(ours.received) == count - 1
        ours.outlet.resume_reading()
        await until(lambda seen=count: len(ours.received) == seen, "the byte")
        ours.outlet.resume_reading()
    assert ours.received == b"xx"


@pytest_twisted.ensureDeferred
async def test_resuming_what_was_not_paused_changes_nothing(pair):
    ours, client = pair
    ours.outlet.resume_reading()
    ours.outlet.pause_reading()
    client.sendall(b"x")
    await until(ours.unread, "the client's byte")
    await until_turned(10)
    assert ours.received == b""
    ours.outlet.resume_reading()
    await until(lambda: ours.received == b"x", "the byte")


@pytest_twisted.ensureDeferred
async def test_closing_is_left_to_the_protocol_above(pair):
    ours, client = pair
    ours.outlet.close(CloseCode.TOO_SLOW)
    assert ours.closed_with == [CloseCode.TOO_SLOW]
    ours.outlet.write(b"bye")
    assert await deferToThread(read, client, 3) == b"bye", "the transport is still open"


@pytest_twisted.ensureDeferred
async def test_aborting_drops_the_connection_at_once_even_when_it_is_full(pair):
    ours, _ = pair
    ours.outlet.attach(ours.outbox)
    await fill(ours)
    ours.outlet.abort()
    await until(lambda: ours.lost is not None, "the end")
    assert ours.lost.check(ConnectionAborted, ConnectionLost)


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_while_the_transport_is_full_ends_the_connection(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    await fill(ours)
    client.close()
    await until(lambda: ours.lost is not None, "the end")
    assert ours.closed_with == []


@pytest_twisted.ensureDeferred
async def test_an_outlet_whose_connection_is_gone_takes_frames_and_pauses_and_drops_them(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    client.close()
    await until(lambda: ours.lost is not None, "the end")
    ours.outlet.write(b"x")
    ours.outlet.pause_reading()
    ours.outlet.resume_reading()
    assert not ours.outbox.behind


@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_gone_can_still_be_aborted(pair):
    ours, client = pair
    client.close()
    await until(lambda: ours.lost is not None, "the end")
    ours.outlet.abort()


# -- how far the client has come -------------------------------------------------------------------


def progress(ours: Connection) -> Progress:
    known = ours.outlet.progress()
    assert known is not None
    return known


@pytest_twisted.ensureDeferred
async def test_what_the_client_took_grows_and_nothing_is_left_waiting(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    client.sendall(b"x")
    await until(lambda: ours.received, "the handshake to be over on both sides")
    for _ in range(3):
        before = progress(ours).taken
        ours.outlet.write(b"y" * 3000)
        assert await deferToThread(read, client, 3000) == b"y" * 3000
        await until(lambda: progress(ours).waiting == 0, "the acknowledgement")
        # TLS adds little to it.
        assert 3000 <= progress(ours).taken - before < 3300


@pytest_twisted.ensureDeferred
async def test_a_client_that_stopped_reading_takes_nothing_until_it_reads_again(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    written = await fill(ours)
    # What its kernel has room for is taken after all; then nothing more is.
    start = waiting(client, termios.FIONREAD) - progress(ours).taken
    await until(
        lambda: (
            progress(ours).waiting
            and waiting(client, termios.FIONREAD) - progress(ours).taken == start
        ),
        "the client's kernel to have acknowledged what it keeps",
    )
    stuck = progress(ours)
    await until_turned(20)
    assert progress(ours) == stuck
    assert await deferToThread(read, client, len(written)) == written
    await until(lambda: progress(ours).waiting == 0, "the client to have all")
    assert progress(ours).taken > stuck.taken


@pytest_twisted.ensureDeferred
async def test_what_the_client_took_is_not_known_once_the_connection_is_gone(pair):
    ours, client = pair
    client.close()
    await until(lambda: ours.lost is not None, "the end")
    assert ours.outlet.progress() is None


@pytest_twisted.ensureDeferred
async def test_an_outlet_is_a_push_producer(pair):
    ours, _ = pair
    assert verifyObject(IPushProducer, ours.outlet)


# -- direct outlets --------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_each_mode_makes_the_outlet_for_the_transport_it_is_given(pair, request):
    ours, _ = pair
    made = {
        ("tcp", "direct"): DirectOutlet,
        ("tls", "direct"): DirectTLSOutlet,
        ("tcp", "batched"): BatchedOutlet,
        ("tls", "batched"): BatchedTLSOutlet,
    }
    way = request.node.callspec.params["pair"]
    assert type(ours.outlet) is made.get(way, PortableOutlet)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("pair", [way for way in WAYS if way[1] != "portable"], indirect=True)
async def test_a_direct_outlet_has_handed_the_bytes_to_the_kernel_when_it_returns(pair):
    ours, client = pair
    client.sendall(b"x")
    await until(lambda: ours.received, "the handshake to be over on both sides")
    ours.outlet.write(b"now")
    # No turn of the reactor: this blocks it until the client has read.
    assert read(client, 3) == b"now"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("pair", [("tcp", "direct")], indirect=True)
async def test_a_direct_outlet_is_behind_with_the_first_byte_the_kernel_does_not_take(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    written = await fill(ours)
    in_the_kernel = waiting(ours.socket(), termios.TIOCOUTQ) + waiting(client, termios.FIONREAD)
    assert len(written) - in_the_kernel <= 1000, "no more than the last write is held"


@pytest_twisted.ensureDeferred
async def test_what_twisted_holds_is_not_overtaken(pair):
    ours, client = pair
    ours.transport.write(b"first,")
    ours.outlet.write(b"second,")
    ours.transport.write(b"third,")
    ours.outlet.write(b"fourth")
    expected = b"first,second,third,fourth"
    assert await deferToThread(read, client, len(expected)) == expected


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [1, 16_384, 16_385, 98_304, 131_072, 1_000_003])
async def test_a_frame_of_any_size_arrives_whole_and_in_order(pair, size):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    reading = deferToThread(read, client, 2 * size + 1)
    data = bytes(at % 251 for at in range(size))
    ours.outlet.write(data)
    ours.outlet.write(b"|")
    ours.outlet.write(data[::-1])
    assert await reading == data + b"|" + data[::-1]
    await until(lambda: not ours.outbox.behind, "the outbox to flow")


@pytest_twisted.ensureDeferred
async def test_writing_to_a_client_that_reset_its_connection_ends_the_connection(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    for _ in range(3):
        ours.outlet.write(b"x" * 1000)
    await until(lambda: ours.lost is not None, "the end")
    assert ours.closed_with == []


@pytest_twisted.ensureDeferred
async def test_writing_after_our_own_goodbye_harms_no_other_connection(pair):
    ours, client = pair
    other_client = await deferToThread(ours.factory.dial)
    await until(lambda: len(ours.factory.made) == 2, "the other connection")
    other = ours.factory.made[1]
    for each in (client, other_client):
        each.sendall(b"x")
    await until(lambda: ours.received and other.received, "both handshakes to be over")
    ours.transport.loseConnection()
    ours.outlet.write(b"too late")
    # OpenSSL keeps an error until somebody takes it; it must not be taken for the other's.
    other_client.sendall(b"y")
    await until(lambda: other.received == b"xy" or other.lost, "the other's byte")
    other.outlet.write(b"still here")
    assert await deferToThread(read, other_client, 10) == b"still here"
    assert other.lost is None
    other_client.close()
    await until(lambda: other.lost is not None, "the other's end")


def test_all_private_names_are_there_with_these_libraries():
    assert missing_names(reactor) == []
    assert choose("auto", reactor).name == choose("batched", reactor).name == "batched"
    assert choose("direct", reactor).name == "direct"


def test_without_the_extension_auto_is_direct_and_batched_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pushservice.fanout._fanout", None)
    monkeypatch.delattr("pushservice.fanout._fanout", raising=False)
    assert choose("auto", reactor).name == "direct"
    with pytest.raises(ValueError, match=r"batched outlets need the C extension"):
        choose("batched", reactor)


def test_a_missing_private_name_makes_auto_portable_and_direct_an_error(monkeypatch):
    monkeypatch.setattr("pushservice.server.outlet.lib", object())
    assert missing_names(reactor) == ["OpenSSL._util.lib.SSL_write", "OpenSSL._util.lib.BIO_read"]
    assert choose("auto", reactor).make is PortableOutlet
    assert choose("portable", reactor).make is PortableOutlet
    with pytest.raises(ValueError, match=r"direct outlets need what is not there: OpenSSL\._util"):
        choose("direct", reactor)


def test_a_mode_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"^'fast' is no outlet; there are auto, port"):
        choose("fast", reactor)
    assert MODES == ("auto", "portable", "direct", "batched")


def test_a_transport_of_another_kind_gets_a_portable_outlet():
    made = choose("direct", reactor).make(StringTransport(), lambda code: None)
    assert type(made) is PortableOutlet
    assert made.progress() is None, "it has no socket that could be asked"


@pytest_twisted.ensureDeferred
async def test_all_that_waits_for_the_client_is_queued_wherever_it_waits(pair):
    ours, client = pair
    ours.outlet.attach(ours.outbox)
    assert ours.outlet.queued() < 2000, "a ticket of TLS at most"
    written = len(await fill(ours))
    ours.outlet.write(b"x" * 300_000)
    await until_turned(10)
    in_kernel = waiting(ours.socket(), termios.TIOCOUTQ)
    # The far end's kernel has some, and TLS adds some.
    assert 300_000 < ours.outlet.queued() < (written + 300_000) * 1.1
    assert ours.outlet.queued() > in_kernel + 250_000
    await deferToThread(read, client, written + 300_000)
    await until(lambda: ours.outlet.queued() == 0, "the end of the queue")


@pytest_twisted.ensureDeferred
async def test_of_a_transport_that_says_nothing_of_itself_nothing_is_queued():
    assert PortableOutlet(StringTransport(), lambda _: None).queued() == 0
