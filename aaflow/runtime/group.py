"""Starting a task group and waiting for its end.

:func:`run_group` is what a pilot calls on the node that starts the group; it watches the keeper, and the keeper
watches it (see :mod:`aaflow.runtime.keeper` for who notices what). A rank calls :func:`keep_node` before ``MPI_Init``
and :func:`register_rank` after it. Imports are kept small: an engine's worker imports this, and what it needs only
later it imports when the keeper has its order.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from aaflow.errors import RunError
from aaflow.runtime import processes, records

if TYPE_CHECKING:
    from aaflow.runtime.ending import GroupResult
    from aaflow.runtime.forked import ForkedKeeper

#: A launch command, and variables on top of the caller's.
Command = tuple[Sequence[str], Mapping[str, str]]


def run_group(run_folder: str, stage: str, compose: Callable[[], Command], *, fork: bool = False) -> GroupResult:
    """Run the task group of a stage and return when nothing of it is left on this node.

    The launch command runs under a keeper. When the caller dies, the keeper sees the end of its pipe and ends the
    group; when the keeper dies, this function ends the group itself.

    Args:
        run_folder: folder of a run whose driver holds an :class:`aaflow.runtime.lease.RunLease`.
        stage: name of the stage.
        compose: gives the launch command and its variables; called while the keeper starts.
        fork: the keeper is a fork, which starts sooner than a program; see :mod:`aaflow.runtime.forked` for when.

    Raises:
        StageError: the group did not do its work; names the stage, the rank that failed first and the log.
        RunError: the run folder has no run, or its run has ended.
        ValueError: the stage's name can't be part of a file's name, or this process can't fork a keeper.
        Exception: what ``compose`` raises; nothing was started then.
    """
    records.check_stage(stage)
    driver = records.read(records.driver_path(run_folder))
    if driver is None or "ended" in driver:
        raise RunError(f"stage {stage!r}: the run in {run_folder} has ended or never began; start a new one")
    _forget_earlier(run_folder, stage)
    since = time.time_ns()
    keeper: subprocess.Popen[bytes] | ForkedKeeper
    if fork:
        from aaflow.runtime.forked import ForkedKeeper

        keeper = ForkedKeeper(run_folder, stage, str(driver["run"]))
    else:
        keeper = start_keeper(run_folder, stage, "group", run=str(driver["run"]))
    try:
        order = _order(compose)
    except BaseException:
        keeper.kill()  # it waits for its order, and has told nobody of itself
        _close(keeper)
        keeper.wait()
        raise
    try:
        # A keeper that is dead already says so by its exit.
        with contextlib.suppress(BrokenPipeError):
            _tell(keeper, order)
        _import_rest()
        keeper.wait()
    finally:
        # Where the caller is interrupted, the end of the pipe makes the keeper end the group.
        _close(keeper)
        code = keeper.wait()
    from aaflow.runtime.ending import GroupResult, stage_error

    record = records.read(records.group_path(run_folder, stage))
    if record is None:
        result = _after_keeper(run_folder, stage, str(driver["run"]), code, since)
    else:
        result = GroupResult.from_json(record)
    if not result.succeeded:
        raise stage_error(run_folder, result)
    return result


def _import_rest() -> None:
    """Import what the end of a group needs: by then the folder of this package may be gone."""
    for name in ("cleaning", "ending"):
        importlib.import_module(f"aaflow.runtime.{name}")


def _order(compose: Callable[[], Command]) -> str:
    argv, environment = compose()
    return json.dumps({"argv": list(argv), "environment": {**_inherited(), **environment}})


def _inherited() -> dict[str, str]:
    """This process's environment without the engine's own part."""
    inherited = dict(os.environ)
    for name in (processes.ENGINE, processes.GROUP):
        inherited.pop(name, None)
    if (folder := inherited.pop(processes.NODE_TMPDIR, None)) is not None:
        inherited.pop("TMPDIR", None)
        inherited |= {"TMPDIR": folder} if folder else {}
    return inherited


def start_keeper(run_folder: str, stage: str, kind: str, *, run: str) -> subprocess.Popen[bytes]:
    """Start a keeper; its stdin is a pipe whose end tells it that this process died.

    Args:
        run_folder: of the run.
        stage: of the group; ``-`` for an engine.
        kind: ``group``, ``node`` or ``engine``.
        run: id of the run.
    """
    log = records.log_path(run_folder, "engine" if kind == "engine" else stage)
    os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
    marks = (processes.ENGINE, processes.GROUP)
    environment = {name: value for name, value in os.environ.items() if name not in marks}
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "aaflow.runtime.keeper", run_folder, stage, kind],
            env={**environment, processes.RUN: run},
            stdin=subprocess.DEVNULL if kind == "node" else subprocess.PIPE,
            stdout=handle,
            stderr=handle,
            start_new_session=True,
        )
    finally:
        os.close(handle)


def _tell(keeper: subprocess.Popen[bytes] | ForkedKeeper, order: str) -> None:
    assert keeper.stdin is not None
    keeper.stdin.write(order.encode() + b"\n")
    keeper.stdin.flush()


def _close(keeper: subprocess.Popen[bytes] | ForkedKeeper) -> None:
    assert keeper.stdin is not None
    with contextlib.suppress(OSError):
        keeper.stdin.close()


def _forget_earlier(run_folder: str, stage: str) -> None:
    """Remove what an earlier attempt at this stage said about itself."""
    paths = [records.group_path(run_folder, stage)]
    for kind in ("ranks", "errors"):
        paths += records.per_rank_paths(run_folder, kind, stage).values()
    for what in ("keeper", "over"):
        paths += glob.glob(f"{glob.escape(os.path.join(run_folder, 'ranks', stage))}.*.{what}")
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _after_keeper(run_folder: str, stage: str, run: str, code: int, since: int) -> GroupResult:
    """End a group whose keeper is dead, and say so."""
    from aaflow.runtime.cleaning import clean_group
    from aaflow.runtime.ending import GroupResult, keeper_ended

    def find() -> list[processes.Process]:
        return processes.find_marked(processes.GROUP, f"{run}/{stage}")

    left = clean_group(run_folder, stage, find, since=since)
    return GroupResult(stage, reason=keeper_ended(code), left=left)


def register_rank(run_folder: str, stage: str, rank: int) -> None:
    """Say in ``ranks/<stage>.<rank>.json`` what this rank is and which shared memory it maps; after ``MPI_Init``."""
    from aaflow.runtime import sharedfiles

    shared = sorted(sharedfiles.mapped_by(os.getpid()), key=lambda file: file.path)
    record = {**processes.identity(), "rank": rank, "shared": [vars(file) for file in shared]}
    path = os.path.join(run_folder, "ranks", f"{records.check_stage(stage)}.{rank}.json")
    records.write(path, record)


def keep_node(run_folder: str, stage: str) -> bool:
    """Start the group's keeper on this node, unless the launcher's is here or another rank has started one.

    Before ``MPI_Init``, so that somebody removes the shared memory of a rank that is killed inside it.

    Returns:
        Whether the group still lives: False where its keeper ends it, who may not see a rank that comes this late.
    """
    keeper = os.environ.get(processes.KEEPER)
    if keeper is not None and processes.read_node(json.loads(keeper)) != processes.this_node():
        _claim_node(run_folder, stage)
    return not os.path.exists(records.on_node_path(run_folder, stage, "over"))


def _claim_node(run_folder: str, stage: str) -> None:
    since = time.time_ns()
    claim = records.on_node_path(run_folder, records.check_stage(stage), "keeper")
    os.makedirs(os.path.dirname(claim), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError), open(claim, "x", opener=_private, encoding="ascii") as file:
        file.write(str(since))
        file.flush()
        start_keeper(run_folder, stage, "node", run=os.environ[processes.RUN])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
