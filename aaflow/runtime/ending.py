"""How a task group ended, and what a person is told when it ended badly. Standard library only."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aaflow.errors import StageError
from aaflow.runtime import records


@dataclass(frozen=True)
class GroupResult:
    """How a task group ended.

    Attributes:
        stage: its stage.
        exit_code: exit code of the launch command, None when a signal ended it or it never ran.
        signal: the signal that ended the launch command, or None.
        reason: why the keeper ended the group, or None when the launch command ended by itself.
        seconds: from the start of the launch command to its end.
        left: what could not be ended or removed, in words.
    """

    stage: str
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    seconds: float = 0.0
    left: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether every rank did its work."""
        return self.exit_code == 0 and self.reason is None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> GroupResult:
        """The result that :meth:`to_json` gave."""
        return cls(**{**record, "left": tuple(record["left"])})


#: What launchers write when a rank ends badly: Hydra, Open MPI, srun. Groups: pid or rank, host, code or signal.
_HYDRA = re.compile(r"PID (?P<pid>\d+) RUNNING AT (?P<host>\S+)\s+=\s+EXIT CODE: (?P<code>\d+)")
_HYDRA_SIGNAL = re.compile(r"EXIT STRING: .*\(signal (\d+)\)")
_OPENMPI = re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on signal (?P<signal>\d+)")
_SRUN = re.compile(r"srun: error: (?P<host>\S+): tasks? (?P<rank>\d+): (?P<how>[^\n]+)")
#: Lines of Hydra that say nothing.
_NOISE = re.compile(r"^(=+|=\s+.*|This typically refers to.*|Please see the FAQ.*|YOUR APPLICATION TERMINATED.*)$")


def signal_name(number: int) -> str:
    """The name of a signal, e.g. ``SIGKILL``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def keeper_ended(code: int) -> str:
    """Why a group whose keeper is gone must end, by the keeper's exit code or minus its signal."""
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code} before the group did"
    return f"its keeper {how}"


def _tail(path: str, size: int = 16384) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _last_lines(tail: str, count: int = 4) -> str:
    lines = [line.strip() for line in tail.splitlines()]
    return " | ".join([line for line in lines if line and not _NOISE.match(line)][-count:])


def _from_launcher(run_folder: str, stage: str, tail: str) -> tuple[int | None, str] | None:
    """The rank that the launcher blames (None when its pid is in no record) and what became of it."""
    if found := next(reversed(list(_HYDRA.finditer(tail))), None):
        pid, host = int(found["pid"]), found["host"]
        registered = records.per_rank(run_folder, "ranks", stage).items()
        rank = next((rank for rank, record in registered if record.get("pid") == pid), None)
        who = f"rank {rank} (pid {pid} on {host})" if rank is not None else f"a rank (pid {pid} on {host})"
        killed = _HYDRA_SIGNAL.search(tail, found.end())
        if killed and int(killed[1]) == signal.SIGKILL:
            # Hydra ends the peers of a dead rank with SIGKILL and may name one of them.
            return None, f"a rank was killed by SIGKILL ({who}, or the launcher took it for the first)"
        how = f"was killed by {signal_name(int(killed[1]))}" if killed else f"ended with exit code {found['code']}"
        return rank, f"{who} {how} without a word"
    if found := next(reversed(list(_OPENMPI.finditer(tail))), None):
        rank = int(found["rank"])
        return rank, f"rank {rank} on {found['host']} was killed by {signal_name(int(found['signal']))}"
    if found := _SRUN.search(tail):
        rank = int(found["rank"])
        return rank, f"rank {rank} on {found['host']}: {found['how'].strip()}"
    return None


def _first_error(run_folder: str, stage: str) -> dict[str, Any] | None:
    errors = records.per_rank(run_folder, "errors", stage)
    return min(errors.values(), key=lambda error: float(error.get("time", 0.0)), default=None)


def blames_neighbour(run_folder: str, stage: str) -> bool:
    """Whether a group failed because it lost a rank of another stage."""
    error = _first_error(run_folder, stage)
    return error is not None and error.get("type") in ("PeerLost", "EdgeCancelled")


def first_loss(run_folder: str) -> StageError | None:
    """The error of the stage whose rank was lost first; None where nobody lost any.

    For runs of which no group has failed by itself: a rank stands still, or two stages have lost each other. A rank
    that left because it had lost another is not the first, though its own neighbours may have told sooner.
    """
    errors = sorted(records.every(run_folder, "errors"), key=lambda error: float(error.get("time", 0.0)))
    losses = {(error["stage"], error["rank"]): error for error in errors if error.get("lost")}
    if not losses:
        return None
    first = next(iter(losses.values()))
    for _ in losses:  # at most so many steps, should ranks have lost each other in a circle
        first = losses.get(tuple(first["lost"]), first)
    stage, rank = first["lost"]
    said = _first_error(run_folder, stage)
    if said is not None and not said.get("lost") and not blames_neighbour(run_folder, stage):
        return stage_error(run_folder, GroupResult(stage))  # its rank has said why; its keeper has yet to tell
    log = records.log_path(run_folder, stage)
    what = f"stage {stage!r} failed: its rank {rank} is gone or stands still: {first['error']}"
    return StageError(f"{what}; log: {log}", stage=stage, rank=rank, log=log)


def stage_error(run_folder: str, result: GroupResult) -> StageError:
    """The error that says why a group failed: the first error of a rank, else the keeper's or the launcher's word.

    Reads ``errors/<stage>.<rank>.json``, ``ranks/`` and the end of the group's log in the run folder.
    """
    stage, log = result.stage, records.log_path(run_folder, result.stage)
    tail = _tail(log)
    rank: int | None = None
    if error := _first_error(run_folder, stage):
        rank = int(error["rank"])
        where = f" (at {error['where']})" if error.get("where") else ""
        who = " ".join([f"stage {stage!r} failed on rank {rank}", *error.get("notes", [])])
        what = f"{who}: {error.get('type', 'error')}: {error.get('error', '')}{where}"
    elif result.reason is not None:
        what = f"stage {stage!r} was ended: {result.reason}"
    elif blamed := _from_launcher(run_folder, stage, tail):
        rank, how = blamed
        what = f"stage {stage!r} failed: {how}"
    else:
        code = f"ended with exit code {result.exit_code}"
        how = f"was killed by {signal_name(result.signal)}" if result.signal else code
        words = _last_lines(tail)
        what = f"stage {stage!r} failed: its launch command {how}" + (f"; it said: {words}" if words else "")
    left = f"; still there: {', '.join(result.left)} (see `aaflow doctor`)" if result.left else ""
    return StageError(f"{what}; log: {log}{left}", stage=stage, rank=rank, log=log)
