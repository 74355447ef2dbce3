"""What MPICH's launcher leaves in ``/tmp`` of several nodes when it is killed. Standard library only.

On a node of its own it is told to write none (:mod:`aaflow.scheduling.launch`).
Its proxy on each node writes the node's topology into a file that ranks read in ``MPI_Init``, and unlinks it at its
own end. Nothing says whose a file is but the time.
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
#: A proxy writes its file when it starts: within so many seconds, on a busy node.
_START_SECONDS = 30.0


def orphans(since: int) -> list[str]:
    """This user's files that proxies made since then (ns), but for those that one that lives may have made."""
    found = [path for path in glob.glob(PATTERN) if _is_ours(path, since)]
    starts = _proxies_starts() if found else []
    return [path for path in found if not any(_may_be_of(start, _changed(path)) for start in starts)]


def _may_be_of(start: float, changed: float) -> bool:
    """Whether a proxy that started then may have written a file then."""
    return start - _CLOCK_SECONDS <= changed <= start + _START_SECONDS


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
    except OSError:  # gone by now
        return math.inf


def _proxies_starts() -> list[float]:
    """When the living proxies of this user started, in seconds since the epoch."""
    proxies = [
        processes.find_process(pid)
        for pid in processes.own_pids()
        if processes.command_name(pid) == _PROXY and processes.has_memory(pid)
    ]
    ticks = os.sysconf("SC_CLK_TCK")
    return [processes.boot_time() + proxy.start / ticks for proxy in proxies if proxy is not None]
