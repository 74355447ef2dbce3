"""What became of a run is read from its folder; where its driver can't say, the node and the batch system do."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aaflow.errors import InputError, JobEnded, RunCancelled, StageError
from aaflow.runtime import processes, records, runs


@pytest.fixture
def dead() -> dict[str, Any]:
    """The identity of a process of this node that has ended."""
    process = subprocess.Popen(["sleep", "60"])
    found = processes.find_process(process.pid)
    assert found is not None
    process.kill()
    process.wait()
    return processes.identity(found)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a ``scontrol`` that answers with fields of a job, and a ``scancel`` that writes down what it cancels."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def answers(said: str) -> Path:
        runs._answers.clear()
        for name, body in {"scontrol": f"echo '{said}'", "scancel": f'echo "$@" >>{folder}/cancelled'}.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o700)
        return folder / "cancelled"

    return answers


def make(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "placement.json").write_text("{}")
    for name, record in files.items():
        records.write(f"{folder}/{name}.json", record)
    return folder


def driver(identity: dict[str, Any]) -> dict[str, Any]:
    return {**identity, "run": "1", "began": time.time() - 60}


JOB = {"carries": "driver", "scheduler": "slurm", "id": "7"}
ELSEWHERE = {"host": "node0", "boot": "another", "namespace": "another", "pid": 12, "start": 3}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "done"),
        (StageError("stage 'load' failed", stage="load"), "failed"),
        (JobEnded("Slurm job 7 was cancelled", job="7", walltime=False), "failed"),
        (JobEnded("Slurm job 7 reached its walltime", job="7", walltime=True), "cut short"),
        (RunCancelled("ada cancelled the run"), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
    ],
)
def test_a_run_that_told_its_end(tmp_path: Path, error: BaseException | None, state: str) -> None:
    run = make(tmp_path / "1", driver=driver(processes.identity()))
    runs.tell_end(str(run), error)
    found = runs.look(run)
    assert found.state == state
    assert found.over
    assert found.error == (None if error is None else type(error).__name__)
    assert 55 < (found.seconds or 0) < 65


def test_a_driver_on_this_node_is_looked_at(tmp_path: Path, dead: dict[str, Any]) -> None:
    alive = make(tmp_path / "1", driver=driver(processes.identity()))
    assert runs.look(alive).state == "waiting"
    records.write(f"{alive}/status.json", {"pilot": "Slurm job 8 waits in partition batch (Priority)"})
    assert runs.look(alive).words == "Slurm job 8 waits in partition batch (Priority)"
    records.write(f"{alive}/ranks/load.0.json", {"rank": 0})
    assert runs.look(alive).state == "running"
    killed = runs.look(make(tmp_path / "2", driver=driver(dead)))
    assert (killed.state, killed.words) == (
        "cut short",
        f"its driver (pid {dead['pid']} on {dead['host']}) died",
    )


def test_of_a_detached_run_the_batch_system_is_asked(tmp_path: Path, slurm: Callable[..., Path]) -> None:
    waiting = make(tmp_path / "1", job=JOB)
    slurm("JobId=7 JobState=PENDING Reason=Resources Partition=batch")
    found = runs.look(waiting)
    assert (found.state, found.words, found.job) == ("waiting", "Slurm job 7 waits in partition batch (Resources)", "7")

    began = make(tmp_path / "2", job=JOB, driver=driver(ELSEWHERE))
    records.write(f"{began}/ranks/load.0.json", {"rank": 0})
    slurm("JobId=7 JobState=RUNNING NodeList=node[0-3]")
    found = runs.look(began)
    assert (found.state, found.words) == ("running", "its driver runs on node0 (pid 12) in Slurm job 7")

    slurm("JobId=7 JobState=TIMEOUT TimeLimit=00:01:00")
    for run in (waiting, began):
        found = runs.look(run)
        assert (found.state, found.words) == ("cut short", "Slurm job 7 reached its walltime of 00:01:00")
        assert found.error == "JobEnded"


def test_a_job_that_ended_otherwise_than_by_its_walltime_has_failed(tmp_path: Path, slurm: Callable[..., Path]) -> None:
    slurm("JobId=7 JobState=FAILED Reason=NonZeroExitCode ExitCode=1:0")
    began = make(tmp_path / "1", job=JOB, driver=driver(ELSEWHERE))
    assert runs.look(began).state == "failed"
    unready = make(tmp_path / "2", job=JOB)
    (unready / "logs").mkdir()
    (unready / "logs" / "driver.out").write_text("module: command not found\n")
    found = runs.look(unready)
    assert found.state == "failed"
    assert found.words == f"Slurm job 7 ended (FAILED, exit code 1:0); see {unready}/logs/driver.out"


def test_why_its_job_was_ended_is_asked_where_the_driver_could_not_know(
    tmp_path: Path, slurm: Callable[..., Path]
) -> None:
    run = make(tmp_path / "1", job=JOB, driver=driver(ELSEWHERE))
    runs.tell_end(str(run), JobEnded("Slurm job 7 was ended; a rerun goes on from it", job="7", walltime=False))
    slurm("JobId=7 JobState=COMPLETING Reason=None")
    assert (runs.look(run).state, runs.look(run).words) == ("failed", "Slurm job 7 was ended; a rerun goes on from it")
    slurm("JobId=7 JobState=CANCELLED Reason=None")
    explained = ("failed", "Slurm job 7 was cancelled; a rerun goes on from it")
    assert (runs.look(run).state, runs.look(run).words) == explained
    slurm("")  # it has forgotten the job
    assert (runs.explained(run).state, runs.look(run).words) == explained


def test_a_walltime_that_only_the_batch_system_knew_cut_the_run_short(
    tmp_path: Path, slurm: Callable[..., Path]
) -> None:
    run = make(tmp_path / "1", job=JOB, driver=driver(ELSEWHERE))
    runs.tell_end(str(run), JobEnded("Slurm job 7 was ended; a rerun goes on from it", job="7", walltime=False))
    slurm("JobId=7 JobState=TIMEOUT TimeLimit=00:01:00")
    found = runs.explained(run)
    assert found.state == "cut short"
    assert found.words == "Slurm job 7 reached its walltime of 00:01:00; a rerun goes on from it"


def test_a_run_whose_driver_died_before_it_began_waits_for_nothing(tmp_path: Path, dead: dict[str, Any]) -> None:
    run = make(tmp_path / "1")
    records.note_driver_process(str(run), processes.identity())
    assert (runs.look(run).state, runs.look(run).words) == ("waiting", "its driver begins")
    records.note_driver_process(str(run), dead)
    assert (runs.look(run).state, runs.look(run).words) == ("cut short", "its driver died")


def test_a_run_is_found_by_name_by_path_or_as_the_last_that_a_person_began(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run in"):
        runs.find_run(None, tmp_path / "missing")
    first = make(tmp_path / "1")
    second = make(tmp_path / "2", next={"run": "3"})
    third = make(tmp_path / "3", before={"run": "2"})
    (tmp_path / "notes").mkdir()
    assert runs.find_runs(tmp_path) == [first, second, third]
    assert runs.find_run(None, tmp_path) == second
    assert runs.find_run("1", tmp_path) == first
    assert runs.find_run(str(third), tmp_path / "elsewhere") == third
    with pytest.raises(InputError, match=r"there is no run '9' in .*; `aaflow status` lists those that there are"):
        runs.find_run("9", tmp_path)


def test_a_run_that_was_cut_short_is_where_it_goes_on(tmp_path: Path, slurm: Callable[..., Path]) -> None:
    slurm("JobId=7 JobState=PENDING Reason=Dependency Partition=batch")
    first = make(tmp_path / "1", driver=driver(ELSEWHERE), next={"run": "2"})
    second = make(tmp_path / "2", job=JOB, before={"run": "1"})
    assert runs.current(first).folder == first
    runs.tell_end(str(first), JobEnded("it reached its walltime", job="6", walltime=True))
    assert runs.current(first).folder == second
    assert runs.current(first).state == "waiting"


def test_a_waiting_job_is_cancelled_and_so_is_the_one_after_it(tmp_path: Path, slurm: Callable[..., Path]) -> None:
    cancelled = slurm("JobId=7 JobState=PENDING Reason=Priority Partition=batch")
    first = make(tmp_path / "1", job=JOB, next={"run": "2"})
    make(tmp_path / "2", job={**JOB, "id": "8"}, before={"run": "1"})
    assert [state.state for state in runs.cancel(first)] == ["cancelled", "cancelled"]
    assert cancelled.read_text().split() == ["8", "7"]
    assert runs.cancel(first) == []


def test_a_run_whose_driver_died_is_over_and_its_job_leaves_the_queue(
    tmp_path: Path, dead: dict[str, Any], slurm: Callable[..., Path]
) -> None:
    cancelled = slurm("JobId=9 JobState=PENDING Reason=Priority Partition=batch")
    run = make(tmp_path / "1", driver=driver(dead))
    records.write(records.engine_path(str(run)), {"run": "1", "temporary": str(tmp_path / "tmp"), "since": 0})
    records.note_engine_job(str(run), "slurm", "9")
    assert runs.cancel(run) == []
    assert cancelled.read_text().split() == ["9"]
    assert records.engine_job(str(run)) is None
