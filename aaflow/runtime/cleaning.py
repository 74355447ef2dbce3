"""Ending what is left of a task group on this node and removing what it left behind. Standard library only."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from aaflow.runtime import hydrafiles, processes, records, sharedfiles


def registered_files(run_folder: str, stage: str | None = None) -> set[sharedfiles.SharedFile]:
    """The shared-memory files that the ranks of a stage (of every stage) registered on this node."""
    found, here = set(), processes.this_node()
    ranks = (
        records.every(run_folder, "ranks") if stage is None else records.per_rank(run_folder, "ranks", stage).values()
    )
    for record in ranks:
        with contextlib.suppress(KeyError, ValueError):
            if processes.read_node(record) == here:
                found |= {sharedfiles.read_shared_file(file) for file in record["shared"]}
    return found


def clean_group(
    run_folder: str,
    stage: str,
    find: Callable[[], list[processes.Process]],
    *,
    since: int | None = None,
    seconds: float = processes.END_SECONDS,
) -> tuple[str, ...]:
    """SIGKILL what is left of a group, remove the shared memory and half-written records of its dead ranks.

    Args:
        run_folder: of the run.
        stage: of the group.
        find: the living processes of the group on this node.
        since: start of the group (ns) when it ended badly: files of ranks that were killed before they could
            register go too, by their names.
        seconds: how long to go on when processes don't die.

    Returns:
        What is left, in words.
    """
    alive = find()
    files = registered_files(run_folder, stage)
    for process in alive:
        files |= sharedfiles.mapped_by(process.pid)
    left = processes.end_all(find, seconds=seconds) if alive or since is not None else []
    if since is not None:
        files |= sharedfiles.known_made_since(since)
    sharedfiles.remove_unused(files)
    # Of whichever group: while this one's launcher lived, another that ended badly had to leave them.
    hydrafiles.remove_orphans(_began(run_folder))
    for folder in ("ranks", "errors"):
        for path in glob.glob(f"{glob.escape(os.path.join(run_folder, folder, stage))}.*.tmp"):
            with contextlib.suppress(OSError):
                os.unlink(path)
    return tuple(f"process {process.pid}" for process in left)


def _began(run_folder: str) -> int:
    """When a run began, in ns since the epoch."""
    driver = records.read(records.driver_path(run_folder))
    return round(driver["began"] * 1e9) if driver is not None else time.time_ns()


def cancel_engine_job(run_folder: str) -> bool:
    """Cancel the batch job that carries the engine of a dead run; whether none is left."""
    job = records.engine_job(run_folder)
    if job is None:
        return True
    from aaflow.scheduling import batch

    if not batch.cancel(*job):
        found = batch.ask(*job)
        if found is None or not found.over:
            return False
    records.note_engine_job(run_folder, *job, over=True)
    return True


def clean_engine(run_folder: str) -> None:
    """SIGKILL what is left of the engine that this run's pilot started here, remove its shared memory and its TMPDIR.

    An engine outlives a driver that was killed; its own tracker of semaphores dies with it. Its batch job, which may
    still wait in a queue, is cancelled.
    """
    engine = records.read(records.engine_path(run_folder))
    if engine is None:
        return
    _end_engine(engine)
    shutil.rmtree(engine["temporary"], ignore_errors=True)
    cancel_engine_job(run_folder)


def clean_engine_job(engine: Mapping[str, Any] | None) -> None:
    """The same for what an engine, by its record, has on the node of its batch job, as that ends."""
    if engine is not None:
        _end_engine(engine)
    if processes.NODE_TMPDIR in os.environ:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


def _end_engine(engine: Mapping[str, Any]) -> None:
    """SIGKILL what is left of an engine on this node and remove its shared memory."""
    files: set[sharedfiles.SharedFile] = set()
    for process in processes.find_marked(processes.ENGINE, str(engine["run"])):
        files |= sharedfiles.mapped_by(process.pid)
    processes.end_marked(processes.ENGINE, str(engine["run"]))
    sharedfiles.remove_unused(files | sharedfiles.known_made_since(engine["since"]))
    hydrafiles.remove_orphans(engine["since"])
