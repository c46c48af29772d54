"""A turn posted to many outlets: the same bytes in every way, whole, in order, however slow."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from core_doubles import inflated, make_hub, unframe
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer, protocol, reactor
from twisted.internet.threads import deferToThread
from waiting import read, until

from pushservice.fanout import _fanout
from pushservice.fanout.outbox import Outbox
from pushservice.fanout.shared_frames import SharedFrames
from pushservice.metrics import Counters
from pushservice.protocol import deflate
from pushservice.protocol.codecs import JSON, JSON_SUBPROTOCOL, RAW, Codec, Joint
from pushservice.server.outlets.choice import Outlets, choose
from pushservice.tls.factory import TLSFactory, development_pair, server_options

#: A codec that compresses all it may.
DEFLATED = deflate.codecs(Counters(), 1)[JSON_SUBPROTOCOL]


class Served(protocol.Protocol):
    """The daemon's side of one connection."""

    outbox: Outbox
    lost: object = None
    received = b""

    def connectionMade(self) -> None:
        self.factory.made.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def attach(self, outlets: Outlets, codec: Codec) -> None:
        self.outlet = outlets.make(self.transport, lambda code: None)
        self.outbox = Outbox(codec, self.outlet, make_hub().common, "t-1")
        self.outlet.attach(self.outbox)

    def connectionLost(self, reason: object) -> None:
        self.lost = reason

    def tcp(self) -> Any:
        return self.transport if hasattr(self.transport, "socket") else self.transport.transport


class Wired:
    """A listening port, and connections with both ends at hand."""

    def __init__(self, outlets: Outlets, directory: Any, *, secure: bool) -> None:
        self.outlets = outlets
        factory = protocol.Factory.forProtocol(Served)
        factory.noisy = False
        factory.made = self.made = []
        self.context = None
        if secure:
            pair = development_pair(directory)
            self.context = ssl.create_default_context(cafile=str(pair.certificate))
            factory = TLSFactory(server_options(pair.certificate, pair.key), factory, reactor)
        self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.clients: list[socket.socket] = []

    async def connect(self, codec: Codec = JSON) -> tuple[Served, socket.socket]:
        count = len(self.made)

        def dial() -> socket.socket:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            client.settimeout(20)
            client.connect(("127.0.0.1", self.port.getHost().port))
            if self.context is not None:
                client = self.context.wrap_socket(client, server_hostname="localhost")
            return client

        client = await deferToThread(dial)
        await until(lambda: len(self.made) > count, "the accept")
        served = self.made[-1]
        if self.context is not None:
            await until(lambda: served.transport._handshakeDone, "the TLS handshake")
        served.attach(self.outlets, codec)
        served.tcp().socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.clients.append(client)
        return served, client

    def turn(self, *posts: tuple[Served, list[bytes]]) -> SharedFrames:
        """Post to each and end the turn; returns what was counted."""
        share = SharedFrames()
        for served, pieces in posts:
            served.outlet.post(pieces, served.outbox.codec, share)
        self.outlets.end_of_turn(share)
        assert all(pieces == [] for _, pieces in posts), "a turn that was posted is emptied"
        return share

    async def end(self) -> None:
        for client in self.clients:
            client.close()
        for served in self.made:
            if served.lost is None:
                served.transport.abortConnection()
        await until(lambda: all(served.lost for served in self.made), "the connections' ends")
        await self.port.stopListening()


WAYS = [(mode, secure) for mode in ("portable", "direct", "batched") for secure in (False, True)]


@pytest.fixture(params=WAYS, ids=[f"{mode}-{'tls' if secure else 'tcp'}" for mode, secure in WAYS])
def wired(request, tmp_path):
    mode, secure = request.param
    made = Wired(choose(mode, reactor), tmp_path, secure=secure)
    yield made
    pytest_twisted.blockon(defer.ensureDeferred(made.end()))


@pytest_twisted.ensureDeferred
async def test_each_client_gets_its_own_turn_framed_as_its_codec_does(wired):
    first, first_client = await wired.connect()
    second, second_client = await wired.connect()
    raw, raw_client = await wired.connect(RAW)
    pieces = [b'{"a":1}', b'{"b":2}']
    frames = [RAW.quote(b"", 1, 1, b"x"), RAW.quote(b"", 1, 1, b"y" * 300)]
    expected = [JSON.frames(pieces), JSON.frames([b'{"c":3}']), RAW.frames(frames)]
    share = wired.turn((first, pieces[:]), (second, [b'{"c":3}']), (raw, frames[:]))
    assert share.pieces == 5
    assert share.bytes == sum(map(len, expected))
    for client, data in zip((first_client, second_client, raw_client), expected, strict=True):
        assert await deferToThread(read, client, len(data)) == data


@pytest_twisted.ensureDeferred
async def test_equal_turns_reach_everybody_and_the_next_turn_is_another(wired):
    ends = [await wired.connect() for _ in range(3)]
    for round_ in range(3):
        pieces = [b'{"n":%d}' % round_, b'{"same":true}']
        wired.turn(*((served, pieces[:]) for served, _ in ends))
        data = JSON.frames(pieces)
        for _, client in ends:
            assert await deferToThread(read, client, len(data)) == data


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [20_000, 100_000, 1_500_000])
async def test_a_turn_beyond_every_buffer_arrives_whole_and_makes_the_outbox_behind(wired, size):
    served, client = await wired.connect()
    pieces = [b'"' + os.urandom(size // 2).hex().encode() + b'"', b'"%d"' % size]
    data = JSON.frames(pieces)
    wired.turn((served, pieces))
    if size > 1_000_000:
        await until(lambda: served.outbox.behind, "the outbox to be behind")
    assert await deferToThread(read, client, len(data)) == data
    await until(lambda: not served.outbox.behind, "the outbox to flow again")


@pytest_twisted.ensureDeferred
async def test_turns_of_a_reader_that_stops_keep_their_order_and_disturb_nobody(wired):
    slow, slow_client = await wired.connect()
    quick, quick_client = await wired.connect()
    expected = b""
    for number in range(60):
        pieces = [b'"%d %b"' % (number, b"x" * 20_000)]
        expected += JSON.frames(pieces)
        wired.turn((slow, pieces), (quick, [b"%d" % number]))
        turn: defer.Deferred[None] = defer.Deferred()
        reactor.callLater(0, turn.callback, None)
        await turn
    await until(lambda: slow.outbox.behind, "the slow one to be behind")
    quick_data = b"".join(JSON.frames([b"%d" % number]) for number in range(60))
    assert await deferToThread(read, quick_client, len(quick_data)) == quick_data
    assert not quick.outbox.behind
    assert await deferToThread(read, slow_client, len(expected)) == expected
    await until(lambda: not slow.outbox.behind, "the slow one to flow again")


@pytest_twisted.ensureDeferred
async def test_a_client_that_is_gone_loses_its_turn_and_the_others_get_theirs(wired):
    gone, gone_client = await wired.connect()
    other, client = await wired.connect()
    gone_client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    # The descriptor itself, past TLS's goodbye: a reset is what arrives.
    os.close(gone_client.detach())
    data = JSON.frames([b"1"])
    for _ in range(3):
        wired.turn((gone, [b"1"]), (other, [b"1"]))
        assert await deferToThread(read, client, len(data)) == data
    await until(lambda: gone.lost is not None, "the end of the one that is gone")


@pytest_twisted.ensureDeferred
async def test_answers_and_turns_keep_their_order(wired):
    served, client = await wired.connect()
    expected = b""
    for number in range(50):
        answer = JSON.frames([b'"answer %d"' % number])
        served.outlet.write(answer)
        pieces = [b'"turn %d"' % number]
        expected += answer + JSON.frames(pieces)
        wired.turn((served, pieces))
    assert await deferToThread(read, client, len(expected)) == expected


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wired", [way for way in WAYS if way[1]], indirect=True)
async def test_a_key_update_that_the_client_asks_for_is_made_between_turns(wired):
    address = f"127.0.0.1:{wired.port.getHost().port}"
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", address, "-tls1_3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    await until(lambda: wired.made, "the accept")
    served = wired.made[0]
    await until(lambda: served.transport._handshakeDone, "the TLS handshake")
    served.attach(wired.outlets, JSON)
    seen = b""

    async def until_seen(words: bytes) -> None:
        nonlocal seen
        while words not in seen:
            more = await deferToThread(os.read, client.stdout.fileno(), 65536)
            assert more, f"the client ended before {words!r}"
            seen += more

    for number in range(3):
        wired.turn((served, [b'"before %d"' % number]))
        await until_seen(b'"before %d"' % number)
        # K asks for a key update and for one in return; the text after it comes under new keys.
        client.stdin.write(b"K\n")
        client.stdin.flush()
        await until_seen(b"KEYUPDATE")
        client.stdin.write(b"hello %d\n" % number)
        client.stdin.flush()
        await until(lambda number=number: b"hello %d" % number in served.received, "the text")
        wired.turn((served, [b'"after %d"' % number]))
        await until_seen(b'"after %d"' % number)
        seen = b""
    client.stdin.close()
    client.terminate()
    client.wait(10)
    client.stdout.close()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wired", [way for way in WAYS if way[1]], indirect=True)
async def test_a_renegotiation_that_a_client_asks_for_disturbs_nobody_else(wired):
    other, other_client = await wired.connect()
    address = f"127.0.0.1:{wired.port.getHost().port}"
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", address, "-tls1_2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert client.stdin is not None
    await until(lambda: len(wired.made) > 1, "the accept")
    served = wired.made[1]
    await until(lambda: served.transport._handshakeDone, "the TLS handshake")
    served.attach(wired.outlets, JSON)
    # R asks for a renegotiation, which is refused; the client gives up.
    client.stdin.write(b"R\n")
    client.stdin.flush()
    await until(lambda: served.lost or client.poll() is not None, "the refusal")
    data = JSON.frames([b"1"])
    for _ in range(3):
        wired.turn((served, [b"1"]), (other, [b"1"]))
        assert await deferToThread(read, other_client, len(data)) == data
    client.stdin.close()
    client.terminate()
    client.wait(10)
    await until(lambda: served.lost is not None, "the end of the one that asked")


# -- the extension alone ---------------------------------------------------------------------------


def sent_by_extension(turns: list[list[bytes]], joint: Joint) -> list[bytes]:
    """What `send_plain` writes for each turn, read back from socket pairs."""
    pairs = [socket.socketpair() for _ in turns]
    expected = [list(turn) for turn in turns]
    for here, _ in pairs:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ways = [(here.fileno(), joint) for here, _ in pairs]
    frames, pieces, size, unsent = _fanout.send_plain(ways, turns)
    assert all(turn == [] for turn in turns)
    received = []
    for here, there in pairs:
        here.close()
        received.append(b"".join(iter(lambda there=there: there.recv(1 << 20), b"")))
        there.close()
    assert unsent is None
    assert size == sum(map(len, received))
    assert pieces == sum(map(len, expected))
    assert frames == (pieces if joint is Joint.FRAMES else len(expected))
    return received


TURNS = st.lists(st.lists(st.binary(max_size=400), min_size=1, max_size=6), min_size=1, max_size=6)


@given(TURNS)
def test_the_extension_frames_as_the_codec_does(turns):
    expected = [JSON.frames(turn) for turn in turns]
    assert sent_by_extension([list(turn) for turn in turns], Joint.ARRAY) == expected
    raw = [b"".join(turn) for turn in turns]
    assert sent_by_extension([list(turn) for turn in turns], Joint.FRAMES) == raw


#: Pieces of every make: compressed, stored, and what only looks stored.
PIECES = st.one_of(
    st.binary(max_size=400).map(lambda body: DEFLATED.quoting(1)(b'"A"', 1, 1, body)),
    st.binary(max_size=400).map(DEFLATED.event),
    st.binary(max_size=20).map(lambda rest: b"\x00" + rest),
    st.integers(30_000, 70_000).map(lambda size: DEFLATED.event(b"x" * size)),
)


@given(st.lists(st.lists(PIECES, min_size=1, max_size=6), min_size=1, max_size=6))
def test_the_extension_joins_what_is_compressed_as_the_codec_does(turns):
    expected = [DEFLATED.frames(turn) for turn in turns]
    assert sent_by_extension([list(turn) for turn in turns], Joint.DEFLATED) == expected


@pytest.mark.parametrize("size", [0, 119, 120, 121, 65_534, 65_535, 65_536, 200_000])
def test_the_extension_sends_what_is_stored_plain_where_it_can(size):
    piece = DEFLATED.event(b"x" * size)
    [data] = sent_by_extension([[piece]], Joint.DEFLATED)
    assert data == DEFLATED.frames([piece])
    [(first, payload)] = unframe(data)
    assert first == (0x81 if size <= 65_535 else 0xC1)
    text = payload if first == 0x81 else inflated(payload)
    assert text == b"[" + b"x" * size + b"]"


def test_the_same_pieces_joined_in_another_way_are_another_frame():
    piece = DEFLATED.event(b"1")
    here, there = socket.socketpair()
    ways = [(here.fileno(), joint) for joint in Joint]
    _fanout.send_plain(ways, [[piece] for _ in ways])
    expected = [piece, JSON.frames([piece]), JSON.frames([b"1"])]
    assert there.recv(1000) == b"".join(expected)
    here.close()
    there.close()


@pytest.mark.parametrize("joint", [-1, 3, 4])
def test_a_way_to_join_that_there_is_not_is_refused(joint):
    here, there = socket.socketpair()
    turns = [[b"x"]]
    with pytest.raises(ValueError, match="joined"):
        _fanout.send_plain([(here.fileno(), joint)], turns)
    assert turns == [[]]
    here.close()
    there.close()


@pytest.mark.parametrize("size", [0, 1, 123, 124, 125, 65_531, 65_532, 65_533, 65_534, 200_000])
def test_the_extension_uses_the_shortest_length_at_every_edge(size):
    [data] = sent_by_extension([[b"x" * size]], Joint.ARRAY)
    assert data == JSON.frames([b"x" * size])
    assert [payload for _, payload in unframe(data)] == [b"[" + b"x" * size + b"]"]


def test_the_same_pieces_in_another_order_are_another_frame():
    first, second = b"1", b"22"
    turns = [[first, second], [second, first], [first, second], [first]]
    expected = [JSON.frames(turn) for turn in turns]
    assert sent_by_extension(turns, Joint.ARRAY) == expected


def test_what_the_kernel_does_not_take_is_given_back():
    here, there = socket.socketpair()
    here.setblocking(False)
    data = JSON.frames([b"x" * 4_000_000])
    _, _, size, unsent = _fanout.send_plain([(here.fileno(), Joint.ARRAY)], [[b"x" * 4_000_000]])
    assert size == len(data)
    [(index, rest)] = unsent
    assert index == 0
    taken = there.recv(len(data), socket.MSG_WAITALL | socket.MSG_DONTWAIT)
    assert taken + rest == data
    there.close()
    _, _, _, unsent = _fanout.send_plain([(here.fileno(), Joint.ARRAY)], [[b"x"]])
    assert unsent == [(0, None)], "a broken connection is told apart"
    here.close()


@pytest.mark.parametrize(
    ("ways", "turns", "error"),
    [
        ([], [[b"x"]], ValueError),
        ([(1, 1)], [["text"]], TypeError),
        ([(1, 1)], [(b"x",)], TypeError),
        ([(1,)], [[b"x"]], TypeError),
        ([1], [[b"x"]], (TypeError, SystemError)),
        ((), (), TypeError),
    ],
)
def test_wrong_arguments_are_refused(ways: Any, turns: Any, error: type[Exception]):
    choose("batched", reactor)  # it tells the extension where OpenSSL is
    call: Callable[..., object] = _fanout.send_plain
    with pytest.raises(error):
        call(ways, turns)
    with pytest.raises((*error, ValueError) if isinstance(error, tuple) else error):
        _fanout.send_tls(ways, turns)
