"""Shared-memory files of task groups: what a killed rank leaves in ``/dev/shm``. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aaflow.runtime.processes import own_pids

FOLDER = "/dev/shm"

#: Names that MPI libraries and their transports give (MPICH, UCX, Open MPI, libfabric, PSM), and the semaphores of
#: Python's multiprocessing.
KNOWN_PREFIXES = ("sem.mp-", "mpich_", "ucx_shm_", "vader_segment.", "sm_segment.", "psm2_shm", "psm3_shm", "fi_shm_")

#: The kernel dates a file by its last tick, which is so long ago at most.
_TICK_NS = 10_000_000


@dataclass(frozen=True)
class SharedFile:
    """A file in ``/dev/shm``; the inode tells it from a later one with the same name."""

    path: str
    inode: int


def read_shared_file(record: Mapping[str, Any]) -> SharedFile:
    """The file in a JSON record with ``path`` and ``inode``."""
    return SharedFile(str(record["path"]), int(record["inode"]))


def _mapped_inodes(pid: int) -> set[int] | None:
    """Inodes of the files in ``/dev/shm`` that a process maps; None when it has no memory (any more)."""
    found = None
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            found = set() if found is None else found
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(FOLDER + "/"):
                found.add(int(fields[4]))
    return found


def mapped_by(pid: int) -> set[SharedFile]:
    """The shared-memory files that a process maps and that have a name; empty when there is no process.

    By inode, not by the name in ``/proc/PID/maps``: whoever creates a semaphore maps it under a temporary name, which
    is unlinked when it gets its own.
    """
    inodes = _mapped_inodes(pid)
    found = set()
    if inodes:
        with contextlib.suppress(OSError), os.scandir(FOLDER) as entries:
            found = {SharedFile(entry.path, entry.inode()) for entry in entries if entry.inode() in inodes}
    return found


def is_there(file: SharedFile) -> bool:
    """Whether this very file of this user still exists."""
    try:
        found = os.lstat(file.path)
    except OSError:
        return False
    return found.st_ino == file.inode and found.st_uid == os.geteuid()


def _opened_by(pid: int) -> set[int]:
    """Inodes of the files in ``/dev/shm`` that a process has open."""
    inodes = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                link = f"/proc/{pid}/fd/{name}"
                if os.readlink(link).startswith(FOLDER + "/"):
                    inodes.add(os.stat(link).st_ino)
    return inodes


def known_made_since(time_ns: int) -> set[SharedFile]:
    """This user's files that MPI libraries and multiprocessing made or changed since then, by their names.

    For ranks that were killed inside ``MPI_Init``, before they could register what they map.
    """
    found = set()
    with contextlib.suppress(OSError), os.scandir(FOLDER) as entries:
        for entry in entries:
            if entry.name.startswith(KNOWN_PREFIXES):
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid == os.geteuid() and status.st_ctime_ns >= time_ns - _TICK_NS:
                        found.add(SharedFile(entry.path, status.st_ino))
    return found


def _used_by(pid: int) -> set[int]:
    """Inodes of the files in ``/dev/shm`` that a process maps or has open.

    Open files are looked at first: whoever creates a file has it open until it maps it, so none is missed in between.
    A process that was killed gives its memory back before it closes its files, and uses none of them any more.
    """
    opened = _opened_by(pid)
    mapped = _mapped_inodes(pid)
    return set() if mapped is None else opened | mapped


def remove_unused(files: Iterable[SharedFile]) -> list[SharedFile]:
    """Remove those of ``files`` that are still there and that no living process of this user maps or has open."""
    candidates = {file for file in files if is_there(file)}
    if candidates:
        used = set[int]().union(*(_used_by(pid) for pid in own_pids()))
        candidates = {file for file in candidates if file.inode not in used}
    removed = []
    for file in sorted(candidates, key=lambda file: file.path):
        with contextlib.suppress(OSError):
            os.unlink(file.path)
            removed.append(file)
    return removed
