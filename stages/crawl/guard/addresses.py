"""Which addresses a crawl may connect to: public ones, and what the source allows by name."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from stages.crawl.page import UnreadableError

Address = IPv4Address | IPv6Address

# IANA's special-purpose registries, the narrowest network first, and the clouds' metadata servers,
# some of which have an address that looks like any other.
CLOSED = {
    ip_network(network): name
    for network, name in {
        "169.254.169.254/32": "a cloud's metadata",
        "169.254.170.2/32": "a cloud's metadata",
        "100.100.100.200/32": "a cloud's metadata",
        "168.63.129.16/32": "a cloud's metadata",
        "192.0.0.192/32": "a cloud's metadata",
        "fd00:ec2::/32": "a cloud's metadata",
        "fd20:ce::254/128": "a cloud's metadata",
        "0.0.0.0/8": "this machine",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "a carrier's inner network",
        "127.0.0.0/8": "this machine",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved",
        "192.0.2.0/24": "for documentation",
        "192.88.99.0/24": "a 6to4 relay",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "for benchmarks",
        "198.51.100.0/24": "for documentation",
        "203.0.113.0/24": "for documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        "::/128": "this machine",
        "::1/128": "this machine",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "private",
        "ff00::/8": "multicast",
        "2001:db8::/32": "for documentation",
        "2001::/23": "a tunnel or reserved",  # Teredo's among them
        "2002::/16": "a 6to4 tunnel",
        "3fff::/20": "for documentation",
    }.items()
}
_NEVER_BY_NAME = ("a cloud's metadata", "link-local")
_UNICAST = ip_network("2000::/3")  # nothing else of IPv6 is in public use
_NAT64 = ip_network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


class ForbiddenError(UnreadableError):
    """A host leads inside; nothing was sent to it."""

    def __init__(self, host: str, address: object, why: str) -> None:
        where = f"{address} ({why})"
        said = where if str(address) == host else f"{host} leads to {where}"
        super().__init__("not_public", f"{said}: name it in source.allow_hosts if it may be read")


class ElsewhereError(ForbiddenError):
    """A host is not among the only ones that may be asked; not even its name was looked up."""

    def __init__(self, host: str) -> None:
        UnreadableError.__init__(self, "not_public", f"{host}: a served folder asks nobody else")


@dataclass(frozen=True)
class Allowed:
    """Hosts that may be inside, each at one port or at all of them (None).

    A name allows what it leads to, save metadata and link-local addresses: whoever owns the name
    chooses the address. Those must be named by their address.
    """

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    only: bool = False
    """Whether nothing else may be asked, public or not."""

    @classmethod
    def of(cls, entries: Sequence[str], only: bool = False) -> "Allowed":
        return cls(frozenset(allowance(entry) for entry in entries), only)

    def lets(self, host: str, port: int) -> bool:
        return not self.hosts.isdisjoint({(plain(host), port), (plain(host), None)})


def allowance(entry: str) -> tuple[str, int | None]:
    """Host and port of an entry such as `wiki.local`, `10.0.0.7:8080` or `[fd00::1]:80`.

    Raises ValueError where it is none of these.
    """
    host, port = entry.strip(), None
    if host.startswith("[") and "]" in host:
        host, _, rest = host[1:].partition("]")
        port = rest.removeprefix(":") if rest else None
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    if not host or any(sign in host for sign in "/@[] "):
        raise ValueError(f"{entry!r} is no host")
    number = None if port is None else int(port)
    if number is not None and not 0 < number < 65536:
        raise ValueError(f"{port} is no port")
    return plain(host), number


def plain(host: str) -> str:
    """A host in one spelling."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return str(ip_address(name))
    except ValueError:
        return name


def refusal(address: Address) -> str | None:
    """What is at an address that no request may go to; None where it is public."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        return refusal(IPv4Address(int(address) & 0xFFFFFFFF))  # what the gateway connects to
    for network, name in CLOSED.items():
        if address.version == network.version and address in network:
            return name
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return f"{refusal(address.ipv4_mapped) or 'IPv4'} in IPv6"
        if address not in _UNICAST:
            return "reserved"
        if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
            return "an ISATAP tunnel"
    return None if address.is_global else "reserved"


def check(host: str, addresses: Sequence[Address], port: int, allowed: Allowed) -> None:
    """Raise if one of a host's addresses is inside: whoever owns the name is not to be trusted."""
    for address in addresses:
        why = refusal(address)
        named = plain(host) == str(address) or why not in _NEVER_BY_NAME
        if why is not None and not (named and allowed.lets(host, port)):
            raise ForbiddenError(host, address, why)


def resolve(host: str, port: int, allowed: Allowed) -> list[Address]:
    """The addresses to connect to, and no others; raises ForbiddenError or OSError.

    Any spelling of an address (decimal, octal, hexadecimal) is one here, as it is for the system.
    """
    if allowed.only and not allowed.lets(host, port):
        raise ElsewhereError(host)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or too long
        raise OSError(f"no such host: {host!r}") from error
    addresses = [
        ip_address(row[4][0]) for row in found if row[0] in (socket.AF_INET, socket.AF_INET6)
    ]
    addresses = list(dict.fromkeys(addresses))
    check(host, addresses, port, allowed)
    return addresses
