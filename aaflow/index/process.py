"""Who a process is, such that another process can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _machine() -> str:
    """The boot of this machine and the namespace that its process ids count in: equal means comparable pids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc(5), field 22 of stat); None for one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def identity() -> dict[str, Any]:
    """This process, as JSON values."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def lives(who: Mapping[str, Any]) -> bool | None:
    """Whether the process with this :func:`identity` lives; None where this machine can't know."""
    if who["machine"] != _machine():
        return None
    return bool(_started(who["pid"]) == who["started"])
