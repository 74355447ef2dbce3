"""What MPICH's launcher leaves in ``/tmp`` when it is killed. Standard library only.

Its proxy on each node writes the node's topology into a file that ranks read in ``MPI_Init``, and unlinks it at its
own end.
"""

from __future__ import annotations

import contextlib
import glob
import os

from aaflow.runtime import processes

PATTERN = "/tmp/hydra_hwloc_xmlfile_*"
_PROXY = "hydra_pmi_proxy"
#: The kernel tells the time of boot in whole seconds.
_CLOCK_SECONDS = 2.0


def remove_made_since(time_ns: int) -> None:
    """Remove this user's files that proxies made since then, unless one that lives may have made them."""
    found = [path for path in glob.glob(PATTERN) if _is_ours(path, time_ns)]
    oldest = _oldest_proxy() if found else None
    for path in found:
        with contextlib.suppress(OSError):
            if oldest is None or os.lstat(path).st_ctime < oldest - _CLOCK_SECONDS:
                os.unlink(path)


def _is_ours(path: str, time_ns: int) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_uid == os.geteuid() and status.st_ctime_ns >= time_ns


def _oldest_proxy() -> float | None:
    """When the oldest living proxy of this user started, in seconds since the epoch."""
    starts = [
        process.start
        for pid in processes.own_pids()
        if processes.command_name(pid) == _PROXY and (process := processes.find_process(pid)) is not None
    ]
    return processes.boot_time() + min(starts) / os.sysconf("SC_CLK_TCK") if starts else None
