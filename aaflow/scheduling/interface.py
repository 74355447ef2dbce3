"""Network interfaces: their addresses, and what tells an MPI library to use one."""

from __future__ import annotations

import os
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


def mpi_variables(name: str) -> dict[str, str]:
    """The environment variables by which the MPI libraries' TCP transports use a network interface.

    Where a node has RDMA devices, UCX is left alone: its list of devices would shut them out.
    """
    variables = {"FI_TCP_IFACE": name, "OMPI_MCA_btl_tcp_if_include": name}
    if not (os.path.isdir("/sys/class/infiniband") and os.listdir("/sys/class/infiniband")):
        variables["UCX_NET_DEVICES"] = name
    return variables
