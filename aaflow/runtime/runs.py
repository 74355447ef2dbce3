"""The runs of a folder: which there are, what became of each, and how one is cancelled.

What a run folder says comes first; where its driver can no longer say anything, the node and the batch system do.
"""

from __future__ import annotations

import dataclasses
import getpass
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaflow.errors import InputError, JobEnded, RunCancelled, RunError
from aaflow.runtime import processes, records
from aaflow.runtime.leftovers import find_leftovers, remove
from aaflow.scheduling import batch

#: Seconds for which an answer of a batch system holds.
ANSWER_HOLDS = 5.0
#: Seconds within which a driver that was asked to end its run has done so, and a batch system has ended a job.
CANCEL_SECONDS = 40.0
#: Seconds from the end of a job's processes within which a batch system says why it came, and for which it knows.
EXPLAIN_SECONDS, KNOWN_SECONDS = 15.0, 300.0
OVER = ("done", "failed", "cancelled", "cut short")

_answers: dict[tuple[str, str], tuple[float, batch.Job | None]] = {}


@dataclass(frozen=True)
class RunState:
    """What became of a run.

    Attributes:
        folder: its run folder, whose name is the run's.
        state: ``waiting`` (in a queue, or for its first rank), ``running``, ``done``, ``failed``, ``cancelled`` or
            ``cut short`` (by its walltime, or its driver died and nobody knows why).
        words: what it waits for, runs on or ended with.
        error: class name of the error that it ended with; None where there is none.
        began: when its driver began, in seconds since 1970; None before that.
        seconds: for which its driver has been, or was, at it.
        job: id of its batch job; None where it has none.
        successor: name of the run that goes on with it, or None.
    """

    folder: Path
    state: str
    words: str
    error: str | None = None
    began: float | None = None
    seconds: float | None = None
    job: str | None = None
    successor: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state in OVER

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"run": self.folder.name, **dataclasses.asdict(self), "folder": str(self.folder)}


def tell_end(run_folder: str, error: BaseException | None) -> None:
    """Write into a run folder how its run ended."""
    state = "done" if error is None else "failed"
    if isinstance(error, (RunCancelled, KeyboardInterrupt)):
        state = "cancelled"
    elif isinstance(error, JobEnded) and error.walltime:
        state = "cut short"
    words = "" if error is None else str(error) or "interrupted"
    kind = None if error is None else type(error).__name__
    records.write(f"{run_folder}/ended.json", {"state": state, "words": words, "error": kind, "time": time.time()})


def cancelled(run_folder: str | Path) -> RunCancelled | None:
    """The error of a run that a person cancelled; None where nobody did."""
    asked = records.read(f"{run_folder}/cancel.json")
    return RunCancelled(f"{asked['by']} cancelled the run; run folder: {run_folder}") if asked is not None else None


def find_runs(runs_folder: Path) -> list[Path]:
    """The run folders in a folder, oldest first."""
    return sorted(path.parent for path in runs_folder.glob("*/placement.json")) if runs_folder.is_dir() else []


def find_run(name: str | None, runs_folder: Path) -> Path:
    """A run folder.

    Args:
        name: name or path of one; None for the last run of ``runs_folder``, where a run that goes on with another
            does not count.
        runs_folder: parent of run folders.

    Raises:
        InputError: there is none.
    """
    if name is None:
        heads = [path for path in find_runs(runs_folder) if not (path / "before.json").exists()]
        if not heads:
            raise InputError(f"there is no run in {runs_folder}; --site or --run-folder says where else to look")
        return heads[-1]
    for path in (runs_folder / name, Path(name).absolute()):
        if (path / "placement.json").is_file():
            return path
    raise InputError(f"there is no run {name!r} in {runs_folder}; `aaflow status` lists those that there are")


def chain(folder: Path) -> list[Path]:
    """A run and those that go on with it, in order."""
    runs = [folder]
    while (after := records.read(f"{runs[-1]}/next.json")) and (folder.parent / after["run"]).is_dir():
        runs.append(folder.parent / str(after["run"]))
    return runs


def current(folder: Path) -> RunState:
    """The state of a run; of the run that goes on with it, where it was cut short."""
    states = [look(run) for run in chain(folder)]
    return next((state for state in states if state.state != "cut short"), states[-1])


def look(folder: Path) -> RunState:
    """What became of a run."""
    job = records.read(records.job_path(str(folder))) or {}
    known = RunState(folder, "", "", job=job.get("id"))
    if (after := records.read(f"{folder}/next.json")) is not None:
        known = dataclasses.replace(known, successor=str(after["run"]))
    driver = records.read(records.driver_path(str(folder)))
    if driver is not None:
        known = dataclasses.replace(known, began=driver["began"], seconds=time.time() - driver["began"])
    # A driver that is gone may have told its end just before.
    return _told(known, job) or _alive(known, driver, job) or _told(known, job) or _lost(known, driver, job)


def _told(known: RunState, job: dict[str, Any]) -> RunState | None:
    """How its driver said that the run ended, and what that could not know: why its own job was ended."""
    ended = records.read(f"{known.folder}/ended.json")
    if ended is None:
        return None
    seconds = ended["time"] - known.began if known.began is not None else None
    state, words = str(ended["state"]), str(ended["words"])
    if (unknown := _unexplained(ended, job)) is not None:
        answer = _ask(job["scheduler"], job["id"])
        if answer is not None and answer.state == "ended":
            words = answer.words + words.removeprefix(unknown)
            state = "cut short" if answer.walltime else state
            records.write(f"{known.folder}/ended.json", {**ended, "state": state, "words": words})
    return dataclasses.replace(known, state=state, words=words, error=ended["error"], seconds=seconds)


def _unexplained(ended: Mapping[str, Any], job: Mapping[str, Any]) -> str | None:
    """What a driver said that can't have known why its job was ended, where its batch system may still know."""
    if job.get("carries") != "driver" or job["scheduler"] == "local" or time.time() - ended["time"] > KNOWN_SECONDS:
        return None
    unknown = batch.words_of_an_end(job["scheduler"], job["id"])
    return unknown if str(ended["words"]).startswith(unknown) else None


def explained(folder: Path) -> RunState:
    """What became of a run that is over; its batch system gets some seconds from its end to say why that came."""
    job = records.read(records.job_path(str(folder))) or {}
    while True:
        state = look(folder)
        ended = records.read(f"{folder}/ended.json")
        if ended is None or _unexplained(ended, job) is None or time.time() - ended["time"] > EXPLAIN_SECONDS:
            return state
        time.sleep(1)


def _alive(known: RunState, driver: dict[str, Any] | None, job: dict[str, Any]) -> RunState | None:
    """The state of a run that nothing is known to have ended."""
    if driver is None:
        return _submitted(known, job)
    if processes.has_died(driver):
        return None
    own = job.get("carries") == "driver"
    here = processes.read_node(driver) == processes.this_node()
    if own and not here and (state := _submitted(known, job)) is None:
        return state
    said = str((records.read(f"{known.folder}/status.json") or {}).get("pilot", ""))
    begun = any((known.folder / "ranks").glob("*.json"))
    where = f"its driver runs on {driver['host']} (pid {driver['pid']})"
    if own and "id" in job:
        where += f" in {batch.NAMES[job['scheduler']]} job {job['id']}"
    words = said or where
    return dataclasses.replace(known, state="running" if begun else "waiting", words=words)


def _submitted(known: RunState, job: dict[str, Any]) -> RunState | None:
    """The state of a run whose driver has yet to say that it is there; None where it never will."""
    begins = dataclasses.replace(known, state="waiting", words="its driver begins")
    if not job or job.get("carries") == "engine":
        return begins
    if job["scheduler"] == "local":
        return None if processes.has_died(job) else begins
    answer = _ask(job["scheduler"], job["id"])
    if answer is None:
        asked = f"{batch.NAMES[job['scheduler']]} does not say where job {job['id']} is"
        return dataclasses.replace(known, state="waiting", words=asked)
    if answer.over or answer.state == "ending":
        return None
    return dataclasses.replace(known, state="waiting", words=answer.words)


def _lost(known: RunState, driver: dict[str, Any] | None, job: dict[str, Any]) -> RunState:
    """The state of a run whose driver is gone without a word."""
    log = known.folder / "logs" / "driver.out"
    see = f"; see {log}" if driver is None and log.exists() else ""
    words = f"its driver (pid {driver['pid']} on {driver['host']}) died" if driver is not None else "its driver died"
    state = dataclasses.replace(known, state="cut short", words=words + see, error="RunError", seconds=None)
    if job.get("carries") != "driver" or job["scheduler"] == "local":
        return state
    answer = _ask(job["scheduler"], job["id"])
    if answer is None:
        return state
    end = "cut short" if answer.walltime or answer.state == "forgotten" else "failed"
    return dataclasses.replace(state, state=end, words=answer.words + see, error="JobEnded")


def _ask(scheduler: str, job: str) -> batch.Job | None:
    """What a batch system says of a job, asked every few seconds only."""
    asked, answer = _answers.get((scheduler, job), (-ANSWER_HOLDS, None))
    if time.monotonic() - asked > ANSWER_HOLDS:
        answer = batch.ask(scheduler, job)
        _answers[scheduler, job] = (time.monotonic(), answer)
    return answer


def cancel(folder: Path) -> list[RunState]:
    """End a run and those that go on with it, wherever they are: in a queue, at work, or dead with leftovers here.

    Returns:
        The states of those that were not over yet, as they are now.

    Raises:
        RunError: its driver does not end it, and its batch system doesn't either.
    """
    by = f"{getpass.getuser()} on {processes.this_node().host}"
    # The last one first: else it would begin with the end of the one before.
    open_runs = [run for run in reversed(chain(folder)) if not look(run).over]
    for run in open_runs:
        records.write(f"{run}/cancel.json", {"by": by})
        if not (run / "driver.json").exists() and _cancel_job(run):
            tell_end(str(run), RunCancelled(f"{by} cancelled the run before it began"))
    if not _wait_for_end(open_runs):
        for run in open_runs:
            _cancel_job(run)
        if not _wait_for_end(open_runs):
            words = "; ".join(f"run {run}: {look(run).words}" for run in open_runs if not look(run).over)
            raise RunError(f"not ended {2 * CANCEL_SECONDS:g} s after it was asked to: {words}")
    for leftover in find_leftovers(str(folder.parent)):
        if Path(leftover.run_folder) in chain(folder):
            remove(leftover)
    return [look(run) for run in reversed(open_runs) if run.is_dir()]


def _cancel_job(run: Path) -> bool:
    """Cancel the batch job of a run; whether there was one that the batch system could cancel."""
    job = records.read(records.job_path(str(run)))
    return job is not None and job["scheduler"] != "local" and batch.cancel(job["scheduler"], job["id"])


def _wait_for_end(runs: list[Path]) -> bool:
    """Wait for the end of runs, of which one that was to go on with another may vanish; whether it came."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while any(run.is_dir() and not look(run).over for run in runs):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
