"""Run what is measured in fresh processes: both ends of a channel, the ranks of a shuffle."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from aaflow.scheduling.launch import find_launcher
from measure.channels import BUFFERS
from measure.rows import ROW_BYTES

HERE = Path(__file__).resolve().parent
#: No end and no job takes longer; what does is stuck.
_SECONDS = 600.0
_TIMES = 3


def flow(
    name: str,
    sizes: Sequence[int],
    *,
    computed: bool = False,
    seconds: float,
    least: int,
    cores: Sequence[int],
    pool: int = 65536,
) -> dict[int, Mapping[str, float]]:
    """Send batches through a channel (:data:`measure.flow.CHANNELS`); see :class:`measure.flow.Job`.

    Returns:
        By size in rows: ``rate`` in GB/s, ``batches``, ``bytes`` of their columns, ``seconds``, ``cpu`` seconds of both
        ends.

    Raises:
        RuntimeError: an end failed.
    """
    lines, controls = socket.socketpair(), socket.socketpair()
    for line in lines:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    shared = os.memfd_create("aaflow-bench")
    prefix = "aaflow-bench-"
    with (
        tempfile.TemporaryDirectory(prefix=prefix) as folder,
        tempfile.TemporaryDirectory(prefix=prefix, dir="/dev/shm") as memory,
    ):
        job = {
            "sizes": list(sizes),
            "computed": computed,
            "seconds": seconds,
            "least": least,
            "cores": list(cores),
            "pool": pool,
        }
        job |= {"shared": shared, "folder": folder, "memory": memory}
        try:
            if name == "memcpy":
                size = BUFFERS * int(max(sizes) * ROW_BYTES * 1.1 + 65536)
                os.posix_fallocate(shared, 0, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            ends = [
                _start(name, role, {**job, "line": lines[each].fileno(), "control": controls[each].fileno()})
                for each, role in enumerate(("send", "receive"))
            ]
        finally:
            for each in (*lines, *controls):
                each.close()
            os.close(shared)
        outs = [end.communicate(timeout=_SECONDS) for end in ends]
        for left in Path("/dev/shm").glob(f"{Path(memory).name}?*"):  # iceoryx2 leaves 16 bytes
            left.unlink()
    for end, (_, error) in zip(ends, outs, strict=True):
        if end.returncode:
            raise RuntimeError(f"{name}: an end failed\n{error}")
    found = json.loads(outs[1][0])
    return {int(size): {"rate": each["bytes"] / each["seconds"] / 1e9, **each} for size, each in found.items()}


def shuffle(name: str, ranks: int, size: int) -> dict[str, Any]:
    """Shuffle ``size`` bytes over ranks (:data:`measure.ranks.SHUFFLES`, :mod:`measure.clusters`).

    Returns:
        ``rate`` in GB/s of the second and the third time together, ``seconds`` of each time, and what else was told.

    Raises:
        RuntimeError: it failed.
    """
    count = size // ROW_BYTES // ranks
    if name in ("dask", "ray"):
        argv = [sys.executable, "-m", "measure.clusters", name, str(ranks), str(count), str(_TIMES)]
    else:
        launch = [find_launcher("mpiexec"), "-n", str(ranks), "-bind-to", "none", "-launcher", "fork"]
        argv = [*launch, sys.executable, "-m", "measure.ranks", name, str(count), str(_TIMES)]
    done = subprocess.run(argv, cwd=HERE.parent, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} on {ranks} ranks failed\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"rate": count * ranks * ROW_BYTES / mean(found["seconds"][1:]) / 1e9, **found}


def _start(name: str, role: str, job: Mapping[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "measure.flow", name, role, json.dumps(job)],
        cwd=HERE.parent,
        pass_fds=[job[each] for each in ("line", "control", "shared")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
