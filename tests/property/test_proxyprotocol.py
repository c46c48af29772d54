"""The PROXY protocol against a writer of its own, random pieces and random bytes."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from pushservice.server.proxies import Trusted
from pushservice.server.proxy_protocol import (
    MAX_V2_LENGTH,
    BadHeader,
    Header,
    HeaderParser,
    NoHeader,
    ProxyHeaderFactory,
    Source,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PORTS = st.integers(0, 65535)
ENDS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4), PORTS, PORTS),
    st.tuples(
        st.ip_addresses(v=6).filter(lambda source: source.ipv4_mapped is None),
        st.ip_addresses(v=6),
        PORTS,
        PORTS,
    ),
)
#: where to cut what is sent
CUTS = st.lists(st.integers(0, 300), max_size=8)


def version_1(source, destination, source_port: int, port: int) -> bytes:
    return f"PROXY TCP{source.version} {source} {destination} {source_port} {port}\r\n".encode()


def version_2(source, destination, source_port: int, port: int, more: bytes = b"") -> bytes:
    family = {4: 0x11, 6: 0x21}[source.version]
    block = source.packed + destination.packed + struct.pack("!HH", source_port, port) + more
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(block)) + block


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cuts), len(data)]
    return [data[first:last] for first, last in pairwise(at)]


def told(data: bytes, cuts: list[int]) -> Any:
    """What a parser says of `data` that comes in pieces, with all that came later in its rest."""
    parser = HeaderParser()
    parts = pieces(data, cuts)
    for number, part in enumerate(parts):
        outcome = parser.feed(part)
        if isinstance(outcome, Header):
            return Header(outcome.source, outcome.rest + b"".join(parts[number + 1 :]))
        if isinstance(outcome, NoHeader):
            return NoHeader(outcome.rest + b"".join(parts[number + 1 :]))
        if outcome is not None:
            return outcome
    return None


@given(ENDS, st.binary(max_size=20), CUTS)
def test_version_1_says_what_was_written_in_whatever_pieces_it_comes(ends, rest, cuts):
    expected = Header(Source(str(ends[0]), ends[2]), rest)
    assert told(version_1(*ends) + rest, cuts) == expected


@given(ENDS, st.binary(max_size=100), st.binary(max_size=20), CUTS)
def test_version_2_says_what_was_written_in_whatever_pieces_it_comes(ends, more, rest, cuts):
    expected = Header(Source(str(ends[0]), ends[2]), rest)
    assert told(version_2(*ends, more) + rest, cuts) == expected


@given(st.ip_addresses(v=4), PORTS, st.booleans())
def test_ipv4_in_ipv6_form_is_ipv4_in_both_versions(source, port, first):
    mapped = IPv6Address(f"::ffff:{source}")
    data = (version_1 if first else version_2)(mapped, IPv6Address("::1"), port, 443)
    assert told(data, []) == Header(Source(str(source), port), b"")


@given(ENDS, st.booleans(), st.data())
def test_a_header_that_is_cut_short_is_waited_for(ends, first, data):
    header = (version_1 if first else version_2)(*ends)
    assert told(header[: data.draw(st.integers(0, len(header) - 1))], []) is None


NEAR_HEADERS = st.one_of(
    st.binary(max_size=200),
    st.builds(bytes.__add__, st.just(b"PROXY "), st.binary(max_size=150)),
    st.builds(
        lambda words, end: b"PROXY " + b" ".join(words) + end,
        st.lists(
            st.sampled_from(
                [b"TCP4", b"TCP6", b"UNKNOWN", b"1.2.3.4", b"::1", b"0", b"65535", b"65536", b""]
            ),
            max_size=7,
        ),
        st.sampled_from([b"\r\n", b"\n", b"\r", b"", b"\r\n\r\n"]),
    ),
    st.builds(
        lambda command, family, length, block: (
            SIGNATURE + struct.pack("!BBH", command, family, length) + block
        ),
        st.sampled_from([0x20, 0x21, 0x22, 0x11, 0x00]),
        st.one_of(st.sampled_from([0x00, 0x11, 0x21, 0x31]), st.integers(0, 255)),
        st.one_of(st.integers(0, 300), st.integers(0, 65535)),
        st.binary(max_size=300),
    ),
    # A header with one byte changed.
    st.builds(
        lambda data, at, byte: data[:at] + bytes([byte]) + data[at + 1 :],
        st.one_of(ENDS.map(lambda ends: version_1(*ends)), ENDS.map(lambda ends: version_2(*ends))),
        st.integers(0, 50),
        st.integers(0, 255),
    ),
)


@given(NEAR_HEADERS, CUTS)
def test_the_same_is_said_of_any_bytes_whatever_their_pieces_and_none_is_lost(data, cuts):
    outcome = told(data, cuts)
    assert outcome == told(data, [])
    if isinstance(outcome, NoHeader):
        assert outcome.rest == data
    elif isinstance(outcome, Header):
        assert data.endswith(outcome.rest)
        assert len(data) - len(outcome.rest) <= len(SIGNATURE) + 4 + MAX_V2_LENGTH
        if outcome.source is not None:
            host, port = outcome.source
            assert str((IPv6Address if ":" in host else IPv4Address)(host)) == host
            assert 0 <= port <= 65535
    else:
        assert outcome is None or (isinstance(outcome, BadHeader) and outcome.reason)


class Wire(StringTransport):
    """A transport that is aborted once and for all."""

    aborted = False
    protocol: Any

    def abortConnection(self) -> None:
        assert not self.aborted
        self.aborted = True


class Within(Protocol):
    """Keeps what it is sent."""

    data = b""

    def dataReceived(self, data: bytes) -> None:
        self.data += data


@given(NEAR_HEADERS, CUTS, st.booleans())
def test_a_connection_is_handed_over_once_or_aborted_once_or_still_waited_for(data, cuts, late):
    clock = Clock()
    made: list[Within] = []

    def build(_addr: object) -> Within:
        made.append(Within())
        return made[-1]

    within = Factory()
    within.buildProtocol = build
    trusted = Trusted([ip_network("127.0.0.1")])
    peer = address.IPv4Address("TCP", "127.0.0.1", 40000)
    transport = Wire(peerAddress=peer)
    transport.protocol = ProxyHeaderFactory(within, trusted, clock, 3).buildProtocol(peer)
    transport.protocol.makeConnection(transport)
    for part in pieces(data, cuts):
        transport.protocol.dataReceived(part)
    expected = told(data, [])
    if isinstance(expected, BadHeader):
        assert transport.aborted
        assert made == []
    elif expected is not None:
        [only] = made
        assert transport.protocol is only
        assert only.data == expected.rest
        source = getattr(expected, "source", None)
        assert transport.getPeer().host == (source.host if source else "127.0.0.1")
    else:
        assert made == []
        if late:
            clock.advance(3)
            assert transport.aborted
    transport.protocol.connectionLost(Failure(ConnectionDone()))
    assert clock.getDelayedCalls() == []
