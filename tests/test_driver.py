from __future__ import annotations

import json
import sys
from concurrent.futures import Future
from pathlib import Path

import pyarrow as pa
import pytest

import aaflow
from aaflow import driver
from aaflow.errors import IndexLocked, InputError, JobEnded, PilotError, RunError, StageError, VectorIndexError
from aaflow.index import IndexSpec, Writer, open_index
from aaflow.launchorder import allocated_nodes, import_folders
from aaflow.pilot import LocalPilot, find_pilot
from aaflow.runtime.progress import expected_units


class Engine:
    """An engine of the test's own: what it is asked, and how its tasks end."""

    name = "test"

    def __init__(self, failure: BaseException | None = None, dies: bool = False, job: JobEnded | None = None) -> None:
        self.failure, self.dies, self.job = failure, dies, job
        self.asked: list[str] = []

    def start(self, placement: aaflow.Placement, lease: object) -> None:
        self.asked.append("start")

    def submit(self, stage: str, run_folder: str) -> Future[str]:
        self.asked.append(stage)
        future: Future[str] = Future()
        if self.failure is not None:
            future.set_exception(self.failure)
        elif not self.dies:
            future.set_result("{}")
        return future

    def check(self, *, anew: bool = False) -> None:
        if self.dies:
            raise PilotError("the engine died")
        if anew and self.job is not None:
            raise self.job

    def status(self) -> str:
        return ""

    def close(self) -> None:
        self.asked.append("close")


@pytest.fixture
def placement(tmp_path: Path) -> aaflow.Placement:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("some text")
    workflow = aaflow.Workflow()
    workflow.load(tmp_path / "docs").transform().embed("hash", dimension=8).upsert(tmp_path / "index", partitions=4)
    return aaflow.place(aaflow.compile(workflow, site="local", ranks=1, fuse=False), "local")


def test_stages_are_submitted_in_order_and_the_engine_is_closed(placement: aaflow.Placement, tmp_path: Path) -> None:
    engine = Engine(StageError("stage 'load' failed", stage="load"))
    with pytest.raises(StageError, match="stage 'load' failed"):
        aaflow.run(placement, engine, run_folder=tmp_path / "runs")
    assert engine.asked == ["start", "load", "transform", "embed", "upsert", "close"]
    with open_index(tmp_path / "index") as index:
        assert index.info().generation == 0
    with Writer.acquire(tmp_path / "index", owner="the next run"):
        pass


def test_an_engine_that_dies_ends_the_run(placement: aaflow.Placement, tmp_path: Path) -> None:
    engine = Engine(dies=True)
    with pytest.raises(PilotError, match="the engine died"):
        aaflow.run(placement, engine, run_folder=tmp_path / "runs")
    assert engine.asked[-1] == "close"


@pytest.mark.parametrize("failure", [StageError("a rank died", stage="load"), RuntimeError("the workers are missing")])
def test_a_failure_is_blamed_on_the_batch_job_that_ended(
    placement: aaflow.Placement, tmp_path: Path, failure: Exception
) -> None:
    engine = Engine(failure, job=JobEnded("job 7 reached its walltime", job="7", walltime=True))
    with pytest.raises(JobEnded, match=r"job 7 reached its walltime before stage 'load'.* was done") as raised:
        aaflow.run(placement, engine, run_folder=tmp_path / "runs")
    assert raised.value.walltime


def test_groups_that_committed_nothing_publish_nothing(placement: aaflow.Placement, tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match="units of the run are not committed"):
        aaflow.run(placement, Engine(), run_folder=tmp_path / "runs")


def test_an_index_that_is_being_written_is_refused(placement: aaflow.Placement, tmp_path: Path) -> None:
    index = placement.plan.index
    assert index is not None
    engine = Engine()
    with (
        Writer.acquire(tmp_path / "index", IndexSpec.from_json(index["spec"]), owner="somebody else"),
        pytest.raises(IndexLocked, match="somebody else"),
    ):
        aaflow.run(placement, engine, run_folder=tmp_path / "runs")
    assert engine.asked == []


def test_the_run_folder_has_placement_plan_and_launch_orders(placement: aaflow.Placement, tmp_path: Path) -> None:
    with pytest.raises(StageError):
        aaflow.run(placement, Engine(StageError("x", stage="load")), run_folder=tmp_path / "runs")
    [folder] = (tmp_path / "runs").iterdir()
    assert aaflow.Placement.load(folder) == placement
    orders = {path.stem: json.loads(path.read_text()) for path in (folder / "launch").iterdir()}
    assert set(orders) == {"load", "transform", "embed", "upsert"}
    assert [slot["cores"] for slot in orders["load"]["slots"]] == [list(placement.slots["load"][0].cores)]


def test_an_ingestion_has_no_output(tmp_path: Path, placement: aaflow.Placement) -> None:
    (tmp_path / "output").mkdir()
    result = driver.RunResult(tmp_path, placement, 0.0, None, pa.table({}), {})
    with pytest.raises(RunError, match="its workflow ends in an index"):
        result.output()


def test_the_expected_units_are_those_of_the_listing(placement: aaflow.Placement) -> None:
    [unit] = expected_units(placement.plan)
    assert unit == (0, placement.plan.tables["listing"]["partition"][0].as_py())


def test_pilots_are_found_by_name() -> None:
    from aaflow_parsl import ParslPilot

    assert find_pilot("local") is LocalPilot
    assert find_pilot("parsl") is ParslPilot
    with pytest.raises(InputError, match=r"no pilot 'slurmy'; installed: local, parsl"):
        find_pilot("slurmy")


def test_the_local_pilot_starts_groups_on_this_machine_only(placement: aaflow.Placement) -> None:
    from dataclasses import replace

    pilot = LocalPilot()
    with pytest.raises(PilotError, match="was not started"):
        pilot.submit("load", "/")
    pilot.close()
    far = replace(placement, site=replace(placement.site, nodes=2))
    with pytest.raises(PilotError, match="more nodes"):
        LocalPilot().start(far, None)  # type: ignore[arg-type]


def test_nodes_of_a_batch_job_are_read_from_what_its_scheduler_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PBS_NODEFILE", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    assert allocated_nodes() == ["localhost"]
    (tmp_path / "nodes").write_text("n1\nn1\nn2\n")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    assert allocated_nodes() == ["n1", "n2"]
    monkeypatch.delenv("PBS_NODEFILE")
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    (tmp_path / "scontrol").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    assert allocated_nodes() == ["n1", "n2"]


def test_ranks_import_from_where_the_program_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/first:/second")
    monkeypatch.syspath_prepend(tmp_path)
    folders = import_folders()
    assert folders[:2] == ["/first", "/second"]
    assert str(tmp_path) in folders
    assert not any(folder.startswith(sys.prefix) for folder in folders)


def test_the_package_gives_its_names_when_they_are_asked_for() -> None:
    assert set(aaflow.__all__) <= set(dir(aaflow))
    assert all(getattr(aaflow, name) is not None for name in aaflow.__all__)
    with pytest.raises(AttributeError, match="no_such"):
        _ = aaflow.no_such  # type: ignore[attr-defined]
