"""By which names a site says what its nodes are joined by."""

from __future__ import annotations

from pathlib import Path

import pytest

from aaflow.errors import SiteError
from aaflow.scheduling.interface import interface_address, interface_of, mpi_variables


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node without fabrics, until a test makes their devices here."""
    monkeypatch.setattr("aaflow.scheduling.interface.INFINIBAND", f"{tmp_path}/infiniband")
    monkeypatch.setattr("aaflow.scheduling.interface.SLINGSHOT", f"{tmp_path}/cxi")
    return tmp_path


def test_a_network_interface_is_used_by_every_mpi_library_s_tcp(devices: Path) -> None:
    assert interface_of("lo") == "lo"
    assert interface_address("lo") == "127.0.0.1"
    names = ("FI_TCP_IFACE", "OMPI_MCA_btl_tcp_if_include", "UCX_NET_DEVICES")
    assert mpi_variables("lo") == dict.fromkeys(names, "lo")
    with pytest.raises(SiteError, match=r"no network interface 'mlx5_0'; it has .*lo"):
        interface_address("mlx5_0")


@pytest.mark.parametrize(
    ("fabric", "device", "told"),
    [
        ("infiniband", "mlx5_0", {"UCX_NET_DEVICES": "mlx5_0:1"}),
        ("cxi", "cxi0", {"UCX_NET_DEVICES": "lo", "FI_CXI_DEVICE_NAME": "cxi0"}),
    ],
)
def test_a_device_of_a_fabric_is_used_itself_and_by_its_interface(
    devices: Path, fabric: str, device: str, told: dict[str, str]
) -> None:
    (devices / fabric / device / "device" / "net" / "lo").mkdir(parents=True)
    assert interface_address(device) == "127.0.0.1"
    assert mpi_variables(device) == {"FI_TCP_IFACE": "lo", "OMPI_MCA_btl_tcp_if_include": "lo", **told}


def test_a_device_without_an_interface_is_used_by_mpi_alone(devices: Path) -> None:
    (devices / "infiniband" / "mlx5_0").mkdir(parents=True)
    assert mpi_variables("mlx5_0") == {"UCX_NET_DEVICES": "mlx5_0:1"}


def test_where_rdma_devices_are_and_none_is_named_ucx_keeps_them_all(devices: Path) -> None:
    (devices / "infiniband" / "mlx5_0").mkdir(parents=True)
    assert "UCX_NET_DEVICES" not in mpi_variables("lo")
