"""The address of a network interface."""

from __future__ import annotations

import socket

import psutil

from aaflow.errors import SiteError


def interface_address(name: str) -> str:
    """The IP address of an interface of this node, IPv4 before IPv6.

    Raises:
        SiteError: this node has no such interface, or it has no address.
    """
    found = psutil.net_if_addrs()
    if name not in found:
        raise SiteError(f"this node has no network interface {name!r}; it has {', '.join(sorted(found))}")
    for family in (socket.AF_INET, socket.AF_INET6):
        for address in found[name]:
            if address.family == family:
                return str(address.address)
    raise SiteError(f"network interface {name!r} of this node has no IP address")
