"""aaflow inside a user's own Parsl program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.dataflow.errors import DependencyError
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider

import aaflow
import aaflow_parsl
from aaflow.errors import InputError, PilotError, WorkflowError
from aaflow.retrieval import ask_index
from aaflow_parsl.pilot import ParslPilot, check_capacity

pytestmark = [pytest.mark.serial, pytest.mark.timeout(120)]


@parsl.python_app
def write(path: str, text: str) -> str:
    from pathlib import Path

    Path(path).write_text(text)
    return path


@parsl.python_app
def break_down(inputs: Any = ()) -> str:
    raise ArithmeticError("the simulation diverged")


@parsl.python_app
def length(done: dict[str, Any]) -> int:
    return len(done["index"])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataFlowKernel]:
    """A user's program with threads of its own and one executor that is small."""
    folder = tmp_path_factory.mktemp("program")
    executors = [
        ThreadPoolExecutor(label="threads", max_threads=4),
        ThreadPoolExecutor(label="single", max_threads=1),
    ]
    config = Config(executors=executors, run_dir=str(folder), usage_tracking=0, strategy="none")
    with parsl.load(config) as kernel:
        yield kernel


def ingestion(index: Path, *paths: Any) -> aaflow.Workflow:
    workflow = aaflow.Workflow()
    workflow.load(paths).transform().embed("hash", dimension=32).upsert(index, partitions=4)
    return workflow


def submit(index: Path, *inputs: Any, **options: Any) -> Any:
    def made(*paths: Any) -> aaflow.Workflow:
        return ingestion(index, *paths)

    options = {"ranks": 1, "site": "local", "run_folder": index.parent / "runs", "executors": ["threads"], **options}
    return aaflow_parsl.submit(made, inputs=inputs, **options)


def test_futures_go_in_and_an_app_future_comes_out(program: DataFlowKernel, tmp_path: Path) -> None:
    tasks = program.task_count
    reports = [write(str(tmp_path / f"{n}.txt"), f"report {n}") for n in range(3)]
    indexed = submit(tmp_path / "index", *reports, ranks=2)
    after = length(indexed)
    assert after.result() == len(str(tmp_path / "index"))
    done = indexed.result()
    assert set(done) == {"run_folder", "index", "generation", "skipped", "seconds"}
    assert (done["generation"], done["skipped"]) == (1, 0)
    assert ask_index(done["index"], ["report 2"], 1)["source"].to_pylist() == ["2.txt"]
    # Three reports, the workflow, its result, its one task group, and the app that depends on it: tasks of the program.
    assert program.task_count == tasks + 7
    assert parsl.dfk() is program


def test_a_failed_input_fails_the_workflow_which_is_never_compiled(program: DataFlowKernel, tmp_path: Path) -> None:
    indexed = submit(tmp_path / "index", break_down())
    with pytest.raises(DependencyError) as caught:
        indexed.result()
    assert "break_down" in str(caught.value) or "Arithmetic" in repr(caught.value.dependent_exceptions_tids)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("paths", "options", "error", "said"),
    [
        (["/no/such/report.txt"], {}, InputError, "/no/such/report.txt"),
        ([], {"executors": ["gpu"]}, PilotError, "no executor 'gpu'; it has single, threads"),
        ([], {"ranks": {"nobody": 2}}, aaflow.errors.PlacementError, "nobody"),
    ],
)
def test_errors_come_through_the_app_future(
    paths: list[str],
    options: dict[str, Any],
    error: type[Exception],
    said: str,
    program: DataFlowKernel,
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("text")
    indexed = submit(tmp_path / "index", *(paths or [str(tmp_path / "a.txt")]), **options)
    with pytest.raises(error, match=said):
        indexed.result()
    assert parsl.dfk() is program


def test_a_workflow_that_can_not_be_made_fails_its_future(program: DataFlowKernel, tmp_path: Path) -> None:
    workflow = aaflow.Workflow()
    workflow.load(tmp_path).apply(lambda batch: batch, name="mine")
    with pytest.raises(WorkflowError, match="'mine'"):
        aaflow_parsl.submit(workflow, site="local", ranks=1).result()


def test_an_executor_that_could_not_start_all_groups_at_once_is_refused(
    program: DataFlowKernel, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("text")
    workflow = aaflow.Workflow()
    chunks = workflow.load(tmp_path / "a.txt").transform()
    chunks.embed("hash", dimension=8).upsert(tmp_path / "index")
    chunks.embed("hash", dimension=8, name="side")
    placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=1), "local")
    with pytest.raises(PilotError, match=r"'single' has 1 worker\(s\), and 3 task groups have to run at once"):
        aaflow.run(placement, ParslPilot(program, ["single"]), run_folder=tmp_path / "runs")


def test_capacity_is_workers_times_nodes_of_all_blocks() -> None:
    provider = LocalProvider(min_blocks=0, init_blocks=0, max_blocks=2)
    small = HighThroughputExecutor(label="small", max_workers_per_node=2, provider=provider)
    check_capacity(small, "small", 4)
    with pytest.raises(PilotError, match=r"4 worker\(s\), and 5 task groups"):
        check_capacity(small, "small", 5)
    check_capacity(HighThroughputExecutor(label="open", provider=provider), "open", 500)
    check_capacity(object(), "unknown", 500)
