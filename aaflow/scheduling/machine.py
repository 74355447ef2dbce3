"""What this machine lets a process use: cores and memory, within the limits of its control groups (v1 and v2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

PROC = Path("/proc/self")


def usable_cores(proc: Path = PROC) -> tuple[int, ...]:
    """Core ids that this process may run on, no more than its CPU quota pays for (at least one).

    Args:
        proc: the folder to read control groups from.
    """
    cores = sorted(os.sched_getaffinity(0))
    quotas = [quota for group in _groups("cpu", proc) if (quota := _cpu_quota(group)) is not None]
    return tuple(cores[: max(1, int(min([*quotas, len(cores)])))])


def usable_memory(proc: Path = PROC) -> int:
    """Bytes of main memory that this process may use: the machine's, or the lowest limit set on it.

    Args:
        proc: the folder to read control groups from.
    """
    limits = [limit for group in _groups("memory", proc) if (limit := _memory_limit(group)) is not None]
    return min([*limits, int(psutil.virtual_memory().total)])


def _cpu_quota(group: Path) -> float | None:
    """Cores' worth of time that a control group grants, None for no limit."""
    words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def _memory_limit(group: Path) -> int | None:
    words = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
    return int(words[0]) if words and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


@dataclass(frozen=True)
class _Mount:
    root: str
    point: str
    controllers: frozenset[str]  # of version 1; empty for version 2


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """The folders of the control groups that bind this process, from its own up to the outermost that can be seen."""
    own = [line.split(":", 2) for line in _lines(proc / "cgroup")]
    for mount in _mounts(proc):
        if mount.controllers and controller not in mount.controllers:
            continue
        for _, controllers, path in own:
            if controllers if not mount.controllers else controller not in controllers.split(","):
                continue
            # A container often sees its own group as the root of the mount.
            inside = PurePosixPath(path)
            relative = inside.relative_to(mount.root) if inside.is_relative_to(mount.root) else PurePosixPath(path[1:])
            folder = Path(mount.point) / relative
            yield from (group for group in (folder, *folder.parents) if group.is_relative_to(mount.point))


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in _lines(proc / "mountinfo"):
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), right.split()[:3]
        if kind == "cgroup2":
            yield _Mount(fields[3], fields[4], frozenset())
        elif kind == "cgroup":
            yield _Mount(fields[3], fields[4], frozenset(options.split(",")))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
