"""Network interfaces and the fabrics behind them: their addresses, and what tells an MPI library to use one."""

from __future__ import annotations

import contextlib
import os
import socket

import psutil

from aaflow.errors import SiteError

#: Where the kernel lists the devices of fabrics: of InfiniBand and RoCE (``mlx5_0``), of Slingshot (``cxi0``).
INFINIBAND, SLINGSHOT = "/sys/class/infiniband", "/sys/class/cxi"


def interface_address(name: str) -> str:
    """The IP address of an interface of this node, or of the one of a fabric's device, IPv4 before IPv6.

    Raises:
        SiteError: this node has no such interface, or it has no address.
    """
    found, interface = psutil.net_if_addrs(), interface_of(name)
    if interface not in found:
        raise SiteError(f"this node has no network interface {name!r}; it has {', '.join(sorted(found))}")
    for family in (socket.AF_INET, socket.AF_INET6):
        for address in found[interface]:
            if address.family == family:
                return str(address.address)
    raise SiteError(f"network interface {interface!r} of this node has no IP address")


def interface_of(name: str) -> str:
    """The network interface of a fabric's device of this node; any other name as it is."""
    for fabric in (INFINIBAND, SLINGSHOT):
        with contextlib.suppress(OSError):
            return min(os.listdir(f"{fabric}/{name}/device/net"), default=name)
    return name


def mpi_variables(name: str) -> dict[str, str]:
    """The environment variables by which the MPI libraries' transports use a network interface or a fabric's device.

    Where a node has RDMA devices and none of them is named, UCX is left alone: its list of devices would shut them out.
    """
    interface = interface_of(name)
    devices = [fabric for fabric in (INFINIBAND, SLINGSHOT) if os.path.isdir(f"{fabric}/{name}")]
    variables: dict[str, str] = {}
    has_interface = interface != name or not devices
    if has_interface:
        variables |= {"FI_TCP_IFACE": interface, "OMPI_MCA_btl_tcp_if_include": interface}
    if INFINIBAND in devices:
        variables["UCX_NET_DEVICES"] = f"{name}:1"
    elif has_interface and not (os.path.isdir(INFINIBAND) and os.listdir(INFINIBAND)):
        variables["UCX_NET_DEVICES"] = interface
    if SLINGSHOT in devices:
        variables["FI_CXI_DEVICE_NAME"] = name
    return variables
