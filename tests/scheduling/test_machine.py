from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from aaflow.scheduling.machine import usable_cores, usable_memory


def machine(tmp_path: Path, mounts: list[str], groups: list[str], files: dict[str, str]) -> Path:
    """A /proc/self whose control groups lie under ``tmp_path``; ``@`` stands for that folder."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text("".join(f"{line.replace('@', str(tmp_path))}\n" for line in mounts))
    (proc / "cgroup").write_text("".join(f"{line}\n" for line in groups))
    return proc


V2 = ["22 1 0:5 / / rw - ext4 /dev/sda rw", "30 22 0:26 / @/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw"]
V1 = [
    "32 31 0:29 / @/cpu rw shared:5 - cgroup cgroup rw,cpu,cpuacct",
    "35 31 0:32 /docker/abc @/mem rw - cgroup cgroup rw,memory",
]


def test_limits_of_version_2_are_the_lowest_on_the_way_up(tmp_path: Path) -> None:
    files = {
        "cg/user/job/cpu.max": "max 100000",
        "cg/user/cpu.max": "150000 100000",
        "cg/user/job/memory.max": "2000000000",
        "cg/user/memory.max": "1000000000",
        "cg/memory.max": "max",
    }
    proc = machine(tmp_path, V2, ["0::/user/job"], files)
    assert len(usable_cores(proc)) == 1
    assert usable_memory(proc) == 1_000_000_000


def test_limits_of_version_1_are_those_of_the_containers_own_group(tmp_path: Path) -> None:
    files = {
        "cpu/docker/abc/cpu.cfs_quota_us": "50000",
        "cpu/docker/abc/cpu.cfs_period_us": "100000",
        "mem/memory.limit_in_bytes": "3000000000",
    }
    groups = ["4:cpuacct,cpu:/docker/abc", "3:memory:/docker/abc", "0::/"]
    proc = machine(tmp_path, V1, groups, files)
    assert len(usable_cores(proc)) == 1, "half a core is still one"
    assert usable_memory(proc) == 3_000_000_000


@pytest.mark.parametrize(
    ("mounts", "groups", "files"),
    [
        ([], [], {}),
        (V2, ["0::/"], {"cg/cpu.max": "max 100000", "cg/memory.max": "max"}),
        (V1, ["4:cpu:/", "3:memory:/"], {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}),
        (V2, ["0::/"], {"cg/cpu.max": "6400000 100000", "cg/memory.max": "9223372036854771712"}),
    ],
)
def test_without_a_limit_it_is_what_the_machine_has(
    tmp_path: Path, mounts: list[str], groups: list[str], files: dict[str, str]
) -> None:
    proc = machine(tmp_path, mounts, groups, files)
    assert set(usable_cores(proc)) == os.sched_getaffinity(0)
    assert usable_memory(proc) == psutil.virtual_memory().total


def test_only_cores_that_the_process_may_run_on_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == (min(allowed),)
    finally:
        os.sched_setaffinity(0, allowed)
