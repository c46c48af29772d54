"""Trusted proxies: which peers they are, and whom they name in X-Forwarded-For."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pushservice.config.from_options import config_from_options
from pushservice.server.proxies import NO_PROXIES, Trusted, address_in, plain


def trusted(*words: str) -> Trusted:
    """Those that options with these words make."""
    return Trusted(config_from_options({"trusted-proxies": map(read, words)}).trusted_proxies)


def read(word: str):
    return word if word == "unix" else ip_network(word)


# -- which peers are trusted -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1",
        "10.255.255.255",
        "192.0.2.7",
        "::ffff:10.0.0.1",
        "::FFFF:a00:1",
        "::ffff:10.0.0.1%eth0",
        "2001:db8::1",
        "2001:0DB8:0:0::1",
        "fe80::1",
        "fe80::1%eth0",
    ],
)
def test_peers_in_the_networks_are_trusted(host):
    assert trusted("10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "fe80::/10").includes(host)


@pytest.mark.parametrize(
    "host",
    [
        "11.0.0.1",
        "192.0.2.8",
        "2001:db9::1",
        "::a00:1",
        "::1",
        None,
        "",
        "unix",
        "localhost",
        "10.0.0.1:80",
        "10.0.0",
        "010.0.0.1",
        "10.0.0.1 ",
        "10.0.0.1%eth0",
        "fe80::1%",
        "[::1]",
        "١٠.0.0.1",
        "\ud800",
        "10.0.0.1/8",
        "1" * 5000,
    ],
)
def test_other_peers_and_what_is_no_address_are_not_trusted(host):
    assert not trusted("10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "fe80::/10").includes(host)


def test_a_peer_without_an_address_is_trusted_with_unix_alone():
    assert trusted("unix").includes(None)
    assert trusted("10.0.0.0/8", "unix").includes(None)
    assert not trusted("0.0.0.0/0", "::/0").includes(None)
    assert not trusted("unix").includes("127.0.0.1")


def test_a_network_of_ipv4_addresses_in_ipv6_form_is_one_of_ipv4():
    some = trusted("::ffff:10.0.0.0/104")
    assert some.includes("10.1.2.3")
    assert some.includes("::ffff:10.1.2.3")
    assert not some.includes("11.1.2.3")


def test_all_of_one_version_is_nobody_of_the_other():
    assert not trusted("::/0").includes("10.0.0.1")
    assert not trusted("::/0").includes("::ffff:10.0.0.1")
    assert not trusted("0.0.0.0/0").includes("2001:db8::1")


@pytest.mark.parametrize("host", [None, "127.0.0.1", "::1", "unix", ""])
def test_without_a_list_nobody_is_trusted(host):
    assert not Trusted().includes(host)
    assert not NO_PROXIES.includes(host)


# -- whom they name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "client"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
        (["203.0.113.9,192.0.2.1 , 10.0.0.2,\t10.0.0.1"], "192.0.2.1"),
        (["203.0.113.9", "192.0.2.1", "10.0.0.2"], "192.0.2.1"),
        (["192.0.2.1, 10.0.0.2", "10.0.0.1"], "192.0.2.1"),
        (["192.0.2.1:5"], "192.0.2.1"),
        (["192.0.2.1:65535, 10.0.0.1:80"], "192.0.2.1"),
        (["[2001:db8::1]:5"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["2001:DB8:0:0::1"], "2001:db8::1"),
        (["2001:db8::1:5"], "2001:db8::1:5"),
        (["fe80::1%eth0"], "fe80::1"),
        (["::ffff:192.0.2.1, ::ffff:10.0.0.1"], "192.0.2.1"),
        (["[::ffff:192.0.2.1]:5"], "192.0.2.1"),
        (["garbage, unknown, , 192.0.2.1, 10.0.0.1"], "192.0.2.1"),
        (["", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_the_rightmost_address_that_is_no_trusted_proxy_is_the_client(values, client):
    assert trusted("10.0.0.0/8").forwarded(values) == client


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["10.0.0.1"],
        ["10.0.0.1, 10.0.0.2:80", "[::ffff:10.0.0.3]:1"],
        ["192.0.2.1, unknown"],
        ["192.0.2.1, unknown, 10.0.0.1"],
        ["192.0.2.1, "],
        ["192.0.2.1,,10.0.0.1"],
        ["192.0.2.1", ""],
        ["192.0.2.1, unix:"],
        ["192.0.2.1 10.0.0.1"],
        ["192.0.2.1:"],
        ["192.0.2.1:x"],
        ["192.0.2.1:-1"],
        ["192.0.2.1:65536"],
        ["192.0.2.1:000080"],
        ["192.0.2.1:٨٠"],
        ["192.0.2.1:80:80"],
        ["[192.0.2.1]:80"],
        ["[2001:db8::1"],
        ["[2001:db8::1]80"],
        ["[2001:db8::1]:"],
        ["[2001:db8::1]:x"],
        ["[[2001:db8::1]]"],
        ["2001:db8::1]:80"],
        ['"192.0.2.1"'],
        ["\x00", "\xff"],
    ],
)
def test_there_is_no_client_where_none_is_named_or_garbage_comes_first(values):
    assert trusted("10.0.0.0/8").forwarded(values) is None


def test_a_client_can_not_invent_an_address_by_sending_the_header_itself():
    some = trusted("10.0.0.0/8")
    for invented in ("203.0.113.9", "10.0.0.9", "203.0.113.9, 10.0.0.9", "unknown", "[", ""):
        assert some.forwarded([invented, "192.0.2.1"]) == "192.0.2.1"
        assert some.forwarded([f"{invented}, 192.0.2.1, 10.0.0.1"]) == "192.0.2.1"


def test_an_address_is_read_plain():
    assert address_in("::ffff:192.0.2.1") == IPv4Address("192.0.2.1")
    assert address_in("fe80::1%eth0") == IPv6Address("fe80::1")
    assert address_in("nobody") is None
    assert plain(IPv6Address("::1")) == IPv6Address("::1")


# -- against a model -------------------------------------------------------------------------------

# Few bits differ, so that networks are hit often.
IPV4 = st.integers(0, 7).map(lambda low: IPv4Address(0x0A000000 + low * 0x00400001))
IPV6 = st.integers(0, 7).map(lambda low: IPv6Address((0x20010DB8 << 96) + low * ((1 << 70) + 1)))
NETWORKS = st.one_of(
    st.builds(
        lambda first, bits: ip_network((first, bits), strict=False), IPV4, st.integers(6, 32)
    ),
    st.builds(
        lambda first, bits: ip_network((first, bits), strict=False), IPV6, st.integers(50, 128)
    ),
    st.just("unix"),
)
PORTS = st.one_of(st.none(), st.integers(0, 65535))


def written_4(address: IPv4Address, port: int | None, mapped: bool):
    host = f"::ffff:{address}" if mapped else str(address)
    if port is None:
        return address, host
    return address, f"[{host}]:{port}" if mapped else f"{host}:{port}"


def written_6(address: IPv6Address, port: int | None, exploded: bool):
    host = address.exploded if exploded else str(address)
    return address, host if port is None else f"[{host}]:{port}"


ENTRIES = st.one_of(
    st.builds(written_4, IPV4, PORTS, st.booleans()),
    st.builds(written_6, IPV6, PORTS, st.booleans()),
    st.sampled_from(["unknown", "", "10.0.0", "[", "10.0.0.1:", "unix:"]).map(
        lambda text: (None, text)
    ),
)
SPACE = st.sampled_from(["", " ", "\t "])


def is_in(address, network) -> bool:
    """Whether the first bits of both are the same."""
    if network == "unix" or address.version != network.version:
        return False
    rest = address.max_prefixlen - network.prefixlen
    return int(address) >> rest == int(network.network_address) >> rest


@settings(deadline=None)
@given(
    st.lists(NETWORKS, max_size=3), st.lists(st.lists(st.tuples(SPACE, ENTRIES, SPACE), min_size=1))
)
def test_the_client_is_whom_a_walk_from_the_right_finds(networks, lines):
    client = None
    for _, (address, _), _ in reversed([entry for line in lines for entry in line]):
        if address is None:
            break
        if not any(is_in(address, network) for network in networks):
            client = str(address)
            break
    values = [
        ",".join(before + text + after for before, (_, text), after in line) for line in lines
    ]
    assert Trusted(networks).forwarded(values) == client


@settings(deadline=None)
@given(st.lists(NETWORKS, max_size=3), st.one_of(IPV4, IPV6))
def test_a_peer_is_trusted_if_its_first_bits_are_a_networks(networks, address):
    expected = any(is_in(address, network) for network in networks)
    assert Trusted(networks).includes(str(address)) is expected
    if address.version == 4:
        assert Trusted(networks).includes(f"::ffff:{address}") is expected


NEAR_ADDRESSES = st.one_of(
    st.text(), st.text("0123456789abcdf.:%[]/,- ", max_size=30), st.text("٠1.:", max_size=12)
)


@settings(deadline=None)
@given(st.lists(NEAR_ADDRESSES, max_size=4))
@example(["%"])
@example(["::%\ud800"])
def test_whatever_stands_there_raises_nothing_and_names_an_address_or_nobody(values):
    some = trusted("10.0.0.0/8", "::/1")
    client = some.forwarded(values)
    if client is not None:
        assert address_in(client) is not None
        assert not some.includes(client)
    for value in values:
        some.includes(value)
