"""Detached runs: the driver is the batch job itself; on a site without a batch system, a process in the background.

:func:`detach` makes the run folder and submits what calls :func:`drive` there. A run until done is a chain of jobs:
each, when it starts, submits the next, which waits for its end however that comes; for a job that is killed at its
walltime can't do anything any more. The next job finds what its run committed, and what ended it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from aaflow.driver import RunResult, carry_out, prepare, told_end
from aaflow.errors import AaflowError, JobEnded, JobRefused, PilotError, RunError, StageError
from aaflow.launchorder import import_folders
from aaflow.pilot import find_pilot
from aaflow.runtime import processes, records
from aaflow.runtime.progress import committed_units, require_progress, require_units
from aaflow.runtime.runfolder import RunFolder
from aaflow.runtime.runs import cancelled, look, tell_end
from aaflow.scheduling import batch
from aaflow.scheduling.placement import Placement
from aaflow.scheduling.site import Site

#: A job that is asked to end this near to its walltime, in seconds, has reached it.
NEAR_SECONDS = 5
#: Seconds that a batch system may take to say why it ends a job: it kills what is left soon after.
WHY_SECONDS = 5.0


def detach(
    placement: Placement,
    pilot: str | None = None,
    *,
    run_folder: str | Path | None = None,
    until_done: bool = False,
) -> RunFolder:
    """Run a placement without this process.

    Args:
        placement: what runs where.
        pilot: name of a pilot; by default that of the site.
        run_folder: parent of the run folder; by default that of the site.
        until_done: go on in a new job where one reached its walltime, as long as each commits something new.

    Returns:
        The run folder, in which ``job.json`` says what carries the driver.

    Raises:
        InputError: there is no pilot of this name, or ``until_done`` goes with no workflow without an index.
        PilotError: the batch system refused the job.
    """
    name = pilot or placement.site.pilot
    find_pilot(name)
    if until_done:
        require_units(placement.plan)
    folder = prepare(placement, run_folder)
    _submit(placement, folder, name, until_done=until_done)
    return folder


def drive(path: Path) -> RunResult:
    """Be the driver of a detached run, inside its job or in the background.

    Raises:
        JobEnded: the batch system ends the job.
        RunError: the run before this one, which it would go on with, has ended by itself or made no progress.
        InputError, StageError, PilotError, IndexLocked: see :func:`aaflow.run`.
    """
    folder, placement = RunFolder(path), Placement.load(path)
    order = folder.read_json("order.json") or {}
    job = batch.own_job() if placement.site.scheduler != "local" else None
    if job is not None:
        records.note_driver_job(str(path), *job)
    with told_end(folder):
        if (unwanted := cancelled(path)) is not None:
            raise unwanted
        _require_cut_short(placement, folder)
        folder.write_json("order.json", {**order, "units": committed_units(placement.plan)})
        within = dataclasses.replace(placement, site=inside(placement.site))
        with _ended_by_batch_system(folder, job, placement.site), _followed(placement, folder, job, order):
            return carry_out(within, find_pilot(order["pilot"])(), folder)


def inside(site: Site) -> Site:
    """A site as it is seen from inside one of its jobs: the nodes are there, and set up."""
    return dataclasses.replace(site, scheduler="local", provider={})


def _submit(placement: Placement, folder: RunFolder, pilot: str, *, until_done: bool, after: str | None = None) -> None:
    """Give a prepared run to its batch system, or start its driver in the background.

    Raises:
        PilotError: the batch system refused the job.
    """
    folder.write_json("order.json", {"pilot": pilot, "until_done": until_done})
    command = [sys.executable, "-m", "aaflow.cli.main", "drive", str(folder.path)]
    paths = os.pathsep.join(import_folders())
    environment = {"PYTHONPATH": paths} if paths else {}
    log, site = folder.logs / "driver.out", placement.site
    if site.scheduler == "local":
        _start_in_background(folder, command, environment, log)
        return
    script = folder.path / "job.sh"
    text = batch.job_script(
        site, name=f"aaflow-{folder.path.name}" if site.scheduler == "slurm" else "aaflow", log=str(log),
        folder=os.getcwd(), environment=environment, command=command,
    )  # fmt: skip
    script.write_text(text, encoding="utf-8", errors="surrogateescape")
    script.chmod(0o700)
    try:
        job = batch.submit(site.scheduler, script, after=after)
    except BaseException as error:
        tell_end(str(folder.path), error)
        raise
    # The job, which may have begun by now, says the same.
    records.note_driver_job(str(folder.path), site.scheduler, job)


def _start_in_background(folder: RunFolder, command: list[str], environment: dict[str, str], log: Path) -> None:
    with log.open("ab") as output:
        driver = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    process = processes.find_process(driver.pid) or processes.Process(driver.pid, 0)  # it is over already
    identity = processes.identity(process)
    records.note_driver_process(str(folder.path), identity)


def _require_cut_short(placement: Placement, folder: RunFolder) -> None:
    """Refuse to go on with a run that ended otherwise than by its walltime, or had committed nothing.

    Raises:
        RunError: it did; says how it ended.
    """
    if (link := folder.read_json("before.json")) is None:
        return
    before = RunFolder(folder.path.parent / link["run"])
    state = look(before.path)
    if state.over and state.state != "cut short":
        raise RunError(f"run {before.path.name} is not gone on with: it is {state.state} {state.words}".rstrip())
    # This job began with the end of the one before, whatever a batch system that is slow to answer says of that.
    words = state.words if state.over else f"job {state.job} is over"
    if not (before.path / "ended.json").exists():  # it was killed before it could say anything
        tell_end(str(before.path), JobEnded(words, job=state.job or "", walltime=True))
    began_with = (before.read_json("order.json") or {}).get("units", 0)
    require_progress(placement.plan, began_with, f"run {before.path.name}: {words}")


def _job_of(folder: RunFolder) -> tuple[str, str]:
    job = records.read(records.job_path(str(folder.path))) or {}
    return str(job["scheduler"]), str(job["id"])


@contextlib.contextmanager
def _followed(
    placement: Placement, folder: RunFolder, job: tuple[str, str] | None, order: dict[str, object]
) -> Iterator[None]:
    """While a run until done is at work, the next one waits for the end of its job; it goes if it is not needed.

    A batch system may refuse that job: it takes one of a user, or none from a compute node. Then this one does its work
    all the same, and the next run has failed, which says why where this one is cut short.
    """
    if job is None or not order["until_done"]:
        yield
        return
    following, refused = prepare(placement, folder.path.parent, before=folder), False
    try:
        _submit(placement, following, str(order["pilot"]), until_done=True, after=job[1])
    except JobRefused as error:
        refused = True
        words = f"no job goes on with run {folder.path.name}: {error}"
        tell_end(str(following.path), JobRefused(words))
        print(f"aaflow: {words}", file=sys.stderr, flush=True)
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, JobEnded) and error.walltime):
            _drop(folder, following, refused=refused)
        raise
    _drop(folder, following, refused=refused)


def _drop(folder: RunFolder, following: RunFolder, *, refused: bool) -> None:
    """Cancel the job that would have gone on with a run; where that fails it finds out by itself."""
    if not refused and (following.path / "ended.json").exists():  # whoever cancelled this run has cancelled that one
        return
    if refused or batch.cancel(*_job_of(following)):
        (folder.path / "next.json").unlink(missing_ok=True)
        shutil.rmtree(following.path, ignore_errors=True)


@contextlib.contextmanager
def _ended_by_batch_system(folder: RunFolder, job: tuple[str, str] | None, site: Site) -> Iterator[None]:
    """Let SIGTERM, by which a batch system ends a job, say what ended it; at once, for SIGKILL follows soon."""
    if job is None:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        error = _why_ended(job, site, folder)
        tell_end(str(folder.path), error)
        raise error

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (StageError, PilotError) as error:
        # The steps of a job that is ended may fail before its first process is told.
        found = batch.ask(*job) if not isinstance(error, JobEnded) else None
        if found is not None and found.state in ("ending", "ended"):
            raise _why_ended(job, site, folder) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _why_ended(job: tuple[str, str], site: Site, folder: RunFolder) -> AaflowError:
    """The error of a job that gets SIGTERM: what a person or the batch system says, else its age."""
    if (unwanted := cancelled(folder.path)) is not None:
        return unwanted
    found = batch.ask(*job, seconds=WHY_SECONDS)
    rest = f"; what was committed counts, and a rerun goes on from it; run folder: {folder.path}"
    if found is not None and found.state == "ended":
        return JobEnded(found.words + rest, job=job[1], walltime=found.walltime)
    walltime = str(site.provider.get("walltime", ""))
    age = time.time() - float(os.environ.get(batch.BEGAN, "inf"))
    if walltime and age > batch.seconds_of(walltime) - NEAR_SECONDS:
        words = f"{batch.NAMES[job[0]]} job {job[1]} reached its walltime of {walltime}"
        return JobEnded(words + rest, job=job[1], walltime=True)
    return JobEnded(batch.words_of_an_end(*job) + rest, job=job[1], walltime=False)
