"""The small JSON files by which the parts of a run find each other in its run folder. Standard library only.

========================== ===========================================================
driver.json                who owns the run, where its lease answers; by the driver
engine.json                the run whose pilot started an engine of its own
job.json                   the batch job of the run, and whether it carries the driver or the engine; or the process
                           that is to be the driver
keys/                      CURVE keys of the run (0700, files 0600)
groups/STAGE.json          how the task group ended; by its keeper
ranks/STAGE.RANK.json      node, process, shared-memory files; by the rank
ranks/STAGE.HOST.keeper    since when (ns) the group has a keeper on a further node; by the rank that started it
ranks/STAGE.HOST.over      the keeper there ends the group: a rank that comes now goes again; by the keeper
errors/STAGE.RANK.json     what went wrong in a rank; by the rank before it aborts
logs/STAGE.out             stdout and stderr of the group, and what its keeper has to say
========================== ===========================================================
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+-]*")


def check_stage(stage: str) -> str:
    """``stage`` if it can be part of a file's name.

    Raises:
        ValueError: it has characters other than letters, digits and ``_ + -``.
    """
    if not _NAME.fullmatch(stage):
        raise ValueError(f"stage {stage!r}: a name is made of letters, digits and _ + -")
    return stage


def write(path: str, record: Any) -> None:
    """Write JSON to ``path``, whole or not at all; folder 0700, file 0600."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    text = json.dumps(record)  # before there is a file, which stays where this process is killed
    temporary = f"{path}.{os.uname().nodename}.{os.getpid()}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read(path: str) -> dict[str, Any] | None:
    """The JSON object in ``path``; None when it is missing or not one."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def per_rank(run_folder: str, kind: str, stage: str) -> dict[int, dict[str, Any]]:
    """The records of the ranks of a stage, by rank; ``kind`` is ``ranks`` or ``errors``."""
    records = {}
    for rank, path in per_rank_paths(run_folder, kind, stage).items():
        record = read(path)
        if record is not None:
            records[rank] = record
    return records


def per_rank_paths(run_folder: str, kind: str, stage: str) -> dict[int, str]:
    """Paths of the records of the ranks of a stage, in order of ranks."""
    folder = os.path.join(run_folder, kind)
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            head, _, suffix = name.rpartition(".")
            owner, _, rank = head.rpartition(".")
            if suffix == "json" and owner == stage and rank.isdecimal():
                found[int(rank)] = os.path.join(folder, name)
    return dict(sorted(found.items()))


def every(run_folder: str, kind: str) -> list[dict[str, Any]]:
    """The records of all ranks of a run; ``kind`` is ``ranks`` or ``errors``."""
    paths = glob.glob(f"{glob.escape(os.path.join(run_folder, kind))}/*.json")
    return [record for path in sorted(paths) if (record := read(path)) is not None]


def group_path(run_folder: str, stage: str) -> str:
    """Where the keeper writes how the group ended."""
    return os.path.join(run_folder, "groups", f"{stage}.json")


def log_path(run_folder: str, stage: str) -> str:
    """The log of a task group."""
    return os.path.join(run_folder, "logs", f"{stage}.out")


def on_node_path(run_folder: str, stage: str, what: str) -> str:
    """Where parts of a group on this node say something to each other; ``what`` is ``keeper`` or ``over``."""
    return os.path.join(run_folder, "ranks", f"{stage}.{os.uname().nodename}.{what}")


def node_claimed(run_folder: str, stage: str) -> int:
    """When the first rank of a stage came to this node, a further one; ns since the epoch."""
    with open(on_node_path(run_folder, stage, "keeper"), encoding="ascii") as file:
        return int(file.read())


def driver_path(run_folder: str) -> str:
    """Where the driver says who and where it is."""
    return os.path.join(run_folder, "driver.json")


def engine_path(run_folder: str) -> str:
    """Where a run says that it started an engine of its own."""
    return os.path.join(run_folder, "engine.json")


def job_path(run_folder: str) -> str:
    """Where a run says which batch job is its own."""
    return os.path.join(run_folder, "job.json")


def note_driver_process(run_folder: str, identity: Mapping[str, Any]) -> None:
    """Say which process is, or is about to be, the driver of a run: who looks at it knows when none will come."""
    write(job_path(run_folder), {"carries": "driver", "scheduler": "local", **identity})


def note_driver_job(run_folder: str, scheduler: str, job: str) -> None:
    """Say which batch job carries the driver of a run."""
    write(job_path(run_folder), {"carries": "driver", "scheduler": scheduler, "id": job})


def note_engine_job(run_folder: str, scheduler: str, job: str, *, over: bool = False) -> None:
    """Say which batch job carries the engine of a run, so that it goes when the driver does; or that it is over."""
    write(job_path(run_folder), {"carries": "engine", "scheduler": scheduler, "id": job, "over": over})


def engine_job(run_folder: str) -> tuple[str, str] | None:
    """Batch system and id of the job that carries the engine of a run; None where there is none or it is over."""
    job = read(job_path(run_folder))
    if job is None or job["carries"] != "engine" or job["over"]:
        return None
    return str(job["scheduler"]), str(job["id"])


def client_keys_path(run_folder: str) -> str:
    """The keys with which a keeper speaks to the driver."""
    return os.path.join(run_folder, "keys", "keeper.json")
