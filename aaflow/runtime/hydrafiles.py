"""What MPICH's launcher leaves in ``/tmp`` when it is killed. Standard library only.

Its proxy on each node writes the node's topology into a file that ranks read in ``MPI_Init``, and unlinks it at its
own end.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os

from aaflow.runtime import processes

PATTERN = "/tmp/hydra_hwloc_xmlfile_*"
_PROXY = "hydra_pmi_proxy"
#: The kernel tells the time of boot in whole seconds.
_CLOCK_SECONDS = 2.0


def orphans(since: int) -> list[str]:
    """This user's files that proxies made since then (ns), but for those that one that lives may have made."""
    found = [path for path in glob.glob(PATTERN) if _is_ours(path, since)]
    oldest = _oldest_proxy() if found else None
    return [path for path in found if oldest is None or _changed(path) < oldest - _CLOCK_SECONDS]


def remove_orphans(since: int) -> None:
    """Remove :func:`orphans`."""
    for path in orphans(since):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _is_ours(path: str, since: int) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_uid == os.geteuid() and status.st_ctime_ns >= since


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_ctime
    except OSError:  # gone by now: not to be touched
        return math.inf


def _oldest_proxy() -> float | None:
    """When the oldest living proxy of this user started, in seconds since the epoch."""
    starts = [
        process.start
        for pid in processes.own_pids()
        if processes.command_name(pid) == _PROXY and (process := processes.find_process(pid)) is not None
    ]
    return processes.boot_time() + min(starts) / os.sysconf("SC_CLK_TCK") if starts else None
