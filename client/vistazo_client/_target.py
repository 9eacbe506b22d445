"""Addresses as callers write them → the targets that grpc takes.

Nothing here is public.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# What may stand before a target, where grpc and not this module decides what it means.
_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")

# These hold a list of addresses themselves.
_LIST_SCHEMES: Final = ("ipv4:", "ipv6:")

_LOCAL_SCHEMES: Final = ("unix:", "unix-abstract:")


@dataclass(frozen=True, slots=True)
class Target:
    """What one channel connects to."""

    uri: str
    """As grpc takes it."""
    authority: str = ""
    """The server's name to send in its place; empty: what grpc makes of `uri`."""
    loopback: bool = False
    """Whether all of it is this machine."""


def parse_addresses(address: str | Iterable[str]) -> tuple[str, ...]:
    """Return the servers that `address` lists: "a:1,b:2", or an iterable of such.

    Raises ValueError for none, and for a URL.
    """
    entries = _split(address) if isinstance(address, str) else [str(each) for each in address]
    stripped = tuple(entry.strip() for entry in entries)
    for entry in stripped or ("",):
        if not entry or entry.startswith(("http://", "https://")):
            raise ValueError(f"expected the server's address as HOST:PORT, got {entry!r}")
    return stripped


def _split(address: str) -> list[str]:
    return [address] if address.startswith(_LIST_SCHEMES) else address.split(",")


def find_targets(addresses: tuple[str, ...], *, tls: bool) -> tuple[Target, ...]:
    """Return the targets that stand for `addresses`: as few as can be.

    Addresses of digits share one, so that grpc itself balances over those that are up. Names have one
    each: only so does grpc look them up again when they change. With TLS all have one each, because a
    certificate is compared with the name of its own target.
    """
    if tls or len(addresses) == 1:
        return tuple(_single(address) for address in addresses)
    groups: dict[str, list[str]] = {"ipv4:": [], "ipv6:": []}
    targets = []
    for address in addresses:
        scheme = _literal_scheme(address)
        if scheme:
            groups[scheme].append(address)
        else:
            targets.append(_single(address))
    for scheme, members in groups.items():
        if members:
            uri = scheme + ",".join(members)
            targets.append(Target(uri, authority=members[0], loopback=all(map(is_loopback, members))))
    return tuple(targets)


def _single(address: str) -> Target:
    return Target(address, loopback=is_loopback(address))


def is_loopback(address: str) -> bool:
    """Return whether `address` is on this machine, and what is sent there leaves it for no one to read."""
    if address.startswith(_LOCAL_SCHEMES):
        return True
    rest = address
    for scheme in _SCHEMES:
        rest = rest.removeprefix(scheme)
    # dns://authority/host:port
    rest = rest.rpartition("/")[2]
    hosts = [_host(each) for each in rest.split(",")]
    return all(host == "localhost" or _is_loopback_ip(host) for host in hosts)


def _literal_scheme(address: str) -> str:
    """Return the scheme for an address of digits with its port; nothing for a name."""
    host = _host(address)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return ""
    if version == 6 and not address.startswith("["):
        return ""
    return f"ipv{version}:" if address.rpartition(":")[2].isdecimal() else ""


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def _is_loopback_ip(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
