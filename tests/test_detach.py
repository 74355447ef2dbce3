"""Detached runs, as the driver in a batch job sees them. The batch system's commands are scripts of the test's own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import aaflow
from aaflow import detach
from aaflow.errors import JobEnded, StageError
from aaflow.runtime import runs
from aaflow.scheduling.sitefile import load_site

REFUSES = "echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1"


@pytest.fixture
def placement(tmp_path: Path) -> aaflow.Placement:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("some text")
    workflow = aaflow.Workflow()
    workflow.load(tmp_path / "docs").transform().embed("hash", dimension=8).upsert(tmp_path / "index", partitions=4)
    site = replace(load_site("local"), scheduler="slurm", provider={"walltime": "00:10:00"})
    return aaflow.place(aaflow.compile(workflow, site=site, ranks=1), site)


def command(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o700)


@pytest.fixture
def first(placement: aaflow.Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder of a run until done whose job, 7, has just begun here; another one is refused."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    command(tmp_path / "bin", "sbatch", "echo 7")
    command(tmp_path / "bin", "scontrol", "echo 'JobId=7 JobState=RUNNING NodeList=node0'")
    folder = detach.detach(placement, "local", run_folder=tmp_path / "runs", until_done=True)
    command(tmp_path / "bin", "sbatch", REFUSES)
    command(tmp_path / "bin", "scancel", f"touch {tmp_path}/cancelled")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return folder.path


def carried_out(monkeypatch: pytest.MonkeyPatch, end: Any) -> list[Path]:
    """Have the work of a run end in this way; gives the run folders in which it was done."""
    done: list[Path] = []

    def carry_out(placement: aaflow.Placement, pilot: object, folder: Any) -> Any:
        done.append(folder.path)
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(detach, "carry_out", carry_out)
    return done


def test_a_job_whose_successor_is_refused_does_its_own_work(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = carried_out(monkeypatch, "a result")
    assert detach.drive(first) == "a result"  # type: ignore[comparison-overlap]
    assert done == [first]
    assert "no job goes on with run " + first.name + ": sbatch refused the job: " in capsys.readouterr().err
    assert [state.state for state in map(runs.look, runs.find_runs(tmp_path / "runs"))] == ["done"]
    assert runs.chain(first) == [first]
    assert not (tmp_path / "cancelled").exists()


def test_where_that_was_not_enough_it_says_why_nothing_goes_on(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried_out(monkeypatch, JobEnded("Slurm job 7 reached its walltime of 00:10:00", job="7", walltime=True))
    with pytest.raises(JobEnded):
        detach.drive(first)
    assert runs.look(first).state == "cut short"
    last = runs.current(first)
    assert (last.state, last.error) == ("failed", "JobRefused")
    assert last.words.startswith(f"no job goes on with run {first.name}: sbatch refused the job: sbatch: error: Assoc")


def test_a_run_that_fails_by_itself_leaves_no_other_behind(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_out(monkeypatch, StageError("stage 'load' failed", stage="load"))
    with pytest.raises(StageError):
        detach.drive(first)
    assert [state.state for state in map(runs.look, runs.find_runs(tmp_path / "runs"))] == ["failed"]


def test_a_job_that_is_ended_while_it_submits_the_next_ends(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = carried_out(monkeypatch, "a result")

    def ended(*_: object, **__: object) -> None:
        raise JobEnded("Slurm job 7 was ended", job="7", walltime=False)

    monkeypatch.setattr(detach.batch, "submit", ended)
    with pytest.raises(JobEnded):
        detach.drive(first)
    assert done == []
