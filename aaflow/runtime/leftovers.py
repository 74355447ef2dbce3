"""What runs left on this node although their driver is gone: for ``aaflow doctor`` and for the next run.

A keeper ends its group within seconds of its driver's death. Something is left only where the keeper died as well, or
where a whole node did. Processes are found by their marks, shared memory by what ranks registered in the run folder, a
batch job by what the run folder says of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from aaflow.runtime import processes, records, sharedfiles
from aaflow.runtime.cleaning import clean_engine, registered_files


@dataclass(frozen=True)
class Leftover:
    """What a dead run left on this node.

    Attributes:
        run_folder: its folder; logs and results stay there.
        run: its id.
        processes: living processes that carry its mark.
        files: registered shared-memory files that still exist.
        job: batch system and id of the job that carried its engine, and may still wait in a queue.
    """

    run_folder: str
    run: str
    processes: tuple[processes.Process, ...]
    files: tuple[sharedfiles.SharedFile, ...]
    job: tuple[str, str] | None = None


def find_leftovers(runs_folder: str) -> list[Leftover]:
    """What dead runs in ``runs_folder`` left on this node; a run whose driver is on another node is left alone."""
    folders: list[str] = []
    with contextlib.suppress(OSError), os.scandir(runs_folder) as entries:
        folders = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    drivers = {folder: records.read(records.driver_path(folder)) for folder in folders}
    over = {folder: str(driver["run"]) for folder, driver in drivers.items() if driver and _is_over(driver)}
    alive = processes.find_by_value(processes.RUN, processes.ENGINE) if over else {}
    looked = (_look(folder, run, alive.get(run, set())) for folder, run in over.items())
    return [leftover for leftover in looked if leftover is not None]


def remove(leftover: Leftover) -> tuple[str, ...]:
    """SIGKILL the processes of a dead run on this node, remove its shared memory, cancel the job of its engine.

    Returns:
        What is left, in words.
    """
    run = leftover.run

    def find() -> list[processes.Process]:
        return list(processes.find_by_value(processes.RUN, processes.ENGINE).get(run, ()))

    files = set(leftover.files)
    for process in find():
        files |= sharedfiles.mapped_by(process.pid)
    left = processes.end_all(find)
    sharedfiles.remove_unused(files)
    clean_engine(leftover.run_folder)
    still = [file.path for file in leftover.files if sharedfiles.is_there(file)]
    job = records.engine_job(leftover.run_folder)
    waiting = [f"batch job {job[1]}"] if job is not None else []
    return (*(f"process {process.pid}" for process in left), *still, *waiting)


def _is_over(driver: Mapping[str, Any]) -> bool:
    """Whether the run gave up or its driver, on this node, is dead."""
    try:
        if processes.read_node(driver) != processes.this_node():
            return False
        return "ended" in driver or not processes.is_alive(processes.read_process(driver))
    except (KeyError, ValueError):
        return False


def _look(run_folder: str, run: str, marked: Collection[processes.Process]) -> Leftover | None:
    files = sorted(
        (file for file in registered_files(run_folder) if sharedfiles.is_there(file)), key=lambda file: file.path
    )
    alive = sorted(marked, key=lambda process: process.pid)
    job = records.engine_job(run_folder)
    return Leftover(run_folder, run, tuple(alive), tuple(files), job) if alive or files or job else None
