"""Which proxies are trusted, and which client address they name for a connection.

Must not know: sockets, requests, or how many connections an address may have. Addresses are text;
a text that is no address is not an error: it stands for no client.

Own code: ipaddress parses; which address of a header to believe depends on the trusted proxies, and
twisted.web believes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from pushservice.config.coercers import UNIX, Network

#: The IPv6 form of all IPv4 addresses (RFC 4291, section 2.5.5.2).
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_MAX_PORT: Final = 65535


class Trusted:
    """The proxies that are trusted when they name a client's address."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, networks: Iterable[Network | str] = ()) -> None:
        """`networks` as `coercers.network` makes them: networks, or `unix`; none trusts nobody."""
        named = list(networks)
        self._unix = UNIX in named
        self._networks = tuple(_plain_network(each) for each in named if not isinstance(each, str))

    def includes(self, host: str | None) -> bool:
        """Whether the peer at `host` is a trusted proxy; None is one on a Unix socket.

        IPv4 addresses in IPv6 form are IPv4. A text that is no address is not trusted.
        """
        if host is None:
            return self._unix
        if not self._networks:
            return False
        address = address_in(host)
        return address is not None and self._has(address)

    def forwarded(self, values: Sequence[str]) -> str | None:
        """The client's address by the values of a request's X-Forwarded-For headers, in order.

        Each proxy adds the address of its own peer on the right, so the right-most one that is no
        trusted proxy is the client; the client may have invented whatever stands left of it.
        None where there is none, or where something that is no address is met first.
        """
        for value in reversed(values):
            for entry in reversed(value.split(",")):
                address = address_in(_without_port(entry.strip(" \t")))
                if address is None:
                    return None
                if not self._has(address):
                    return str(address)
        return None

    def _has(self, address: IPv4Address | IPv6Address) -> bool:
        # An address of one version is in no network of the other.
        return any(address in network for network in self._networks)


#: No proxy is trusted.
NO_PROXIES: Final = Trusted()


def address_in(text: str) -> IPv4Address | IPv6Address | None:
    """The address that `text` is: without a scope, and IPv4 where it is IPv4 in IPv6 form.

    None where it is no address.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return plain(address)


def plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """`address` without its scope, and as IPv4 where it is IPv4 in IPv6 form."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address if address.scope_id is None else IPv6Address(int(address))


def _plain_network(network: Network) -> Network:
    """`network` as IPv4 where it is one of IPv4 addresses in IPv6 form."""
    if isinstance(network, IPv4Network) or not network.subnet_of(_MAPPED):
        return network
    first = plain(network.network_address)
    return IPv4Network(f"{first}/{network.prefixlen - _MAPPED.prefixlen}")


def _without_port(entry: str) -> str:
    """The host of `1.2.3.4:5` or `[::1]:5`; any other entry as it is."""
    if entry.startswith("["):
        host, bracket, port = entry[1:].partition("]")
        # Brackets hold IPv6 addresses alone (RFC 3986, section 3.2.2).
        fits = bracket and ":" in host and (not port or (port[0] == ":" and _is_port(port[1:])))
        return host if fits else entry
    host, colon, port = entry.partition(":")
    return host if colon and "." in host and _is_port(port) else entry


def _is_port(text: str) -> bool:
    fits = text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_PORT))
    return fits and int(text) <= _MAX_PORT
