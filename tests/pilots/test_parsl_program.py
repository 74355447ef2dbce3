"""aaflow inside a user's own Parsl program."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import parsl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsl.config import Config
from parsl.data_provider.files import File
from parsl.dataflow.dflow import DataFlowKernel
from parsl.dataflow.errors import DependencyError
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import LocalProvider, SlurmProvider

import aaflow
import aaflow_parsl
from aaflow.errors import InputError, PilotError, WorkflowError
from aaflow.retrieval import ask_index
from aaflow_parsl.capacity import all_at_once, require_workers, workers_of
from aaflow_parsl.pilot import ParslPilot

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


def test_a_kernel_that_is_not_loaded_does_it_and_files_of_apps_go_in(program: DataFlowKernel, tmp_path: Path) -> None:
    config = Config(executors=[ThreadPoolExecutor(label="other")], run_dir=str(tmp_path / "other"), strategy="none")
    with DataFlowKernel(config) as kernel:

        def report(outputs: Any = ()) -> None:
            Path(outputs[0]).write_text("a report")

        app = parsl.python_app(report, data_flow_kernel=kernel)
        [report_file] = app(outputs=[File(tmp_path / "report.txt")]).outputs
        indexed = aaflow_parsl.submit(
            lambda file: ingestion(tmp_path / "index", file.filepath), inputs=[report_file], site="local", ranks=1,
            data_flow_kernel=kernel, executors=["other"], run_folder=tmp_path / "runs",
        )  # fmt: skip
        assert indexed.result()["generation"] == 1
        assert (parsl.dfk(), kernel.cleanup_called) == (program, False)
    assert ask_index(tmp_path / "index", ["report"], 1)["source"].to_pylist() == ["report.txt"]


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


def htex(provider: Any = None, **options: Any) -> HighThroughputExecutor:
    given = provider or LocalProvider(min_blocks=0, init_blocks=1, max_blocks=2)
    return HighThroughputExecutor(label="htex", provider=given, **options)


def test_an_executor_has_workers_as_its_pools_will_count_them() -> None:
    cores = os.cpu_count() or 1
    assert workers_of(htex(max_workers_per_node=2, cores_per_worker=0.1), cores=1, memory=64 << 30, scales=True) == 4
    assert workers_of(htex(max_workers_per_node=2, cores_per_worker=0.1), cores=1, memory=64 << 30, scales=False) == 2
    assert workers_of(htex(), cores=1, memory=64 << 30, scales=False) == cores
    assert workers_of(htex(max_workers_per_node=100), cores=1, memory=64 << 30, scales=False) == cores
    assert (
        workers_of(htex(max_workers_per_node=100, cores_per_worker=cores), cores=1, memory=64 << 30, scales=False) == 1
    )
    three = {"nodes_per_block": 3, "init_blocks": 1, "max_blocks": 1}
    slurm = SlurmProvider(**three, launcher=SrunLauncher())
    assert workers_of(htex(slurm, cores_per_worker=4), cores=32, memory=64 << 30, scales=True) == 24
    slurm = SlurmProvider(**three, launcher=SrunLauncher(), cores_per_node=8)
    assert workers_of(htex(slurm, cores_per_worker=4), cores=32, memory=64 << 30, scales=True) == 6
    assert workers_of(htex(SlurmProvider(**three), cores_per_worker=4), cores=32, memory=64 << 30, scales=True) == 8
    assert workers_of(ThreadPoolExecutor(max_threads=3), cores=1, memory=64 << 30, scales=False) == 3
    assert workers_of(object(), cores=1, memory=64 << 30, scales=False) is None


def test_memory_and_parallelism_bound_the_workers_too() -> None:
    cores = os.cpu_count() or 1
    assert workers_of(htex(mem_per_worker=64), cores=1, memory=64 << 30, scales=False) == 1
    assert workers_of(htex(mem_per_worker=0.5), cores=1, memory=64 << 30, scales=False) == cores
    timid = LocalProvider(min_blocks=0, init_blocks=1, max_blocks=4, parallelism=0.5)
    assert workers_of(htex(timid), cores=1, memory=64 << 30, scales=True) == cores


def test_a_run_that_waits_for_workers_can_be_cancelled() -> None:
    executor = ThreadPoolExecutor(max_threads=2)

    def cancel() -> None:
        raise aaflow.errors.RunCancelled("a person cancelled it")

    with all_at_once({executor: 2}, 1, lambda: None):
        with pytest.raises(aaflow.errors.RunCancelled), all_at_once({executor: 2}, 2, cancel):
            pytest.fail("there was no room")
        with all_at_once({executor: 2}, 1, cancel):
            pass
    with all_at_once({executor: 2}, 2, cancel):
        pass


def test_fewer_workers_than_groups_are_refused_and_an_unknown_executor_is_not() -> None:
    require_workers(4, "small", 4)
    require_workers(None, "unknown", 500)
    with pytest.raises(PilotError, match=r"4 worker\(s\), and 5 task groups .* cores_per_worker"):
        require_workers(4, "small", 5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_runs_get_all_their_workers_at_once_and_all_get_them(most: int, wanted: list[int]) -> None:
    executor, lock, running, peak = ThreadPoolExecutor(max_threads=most), threading.Lock(), [0], [0]

    def run(groups: int) -> None:
        with all_at_once({executor: most}, groups, lambda: None):
            with lock:
                running[0] += groups
                peak[0] = max(peak[0], running[0])
            time.sleep(0.001)
            with lock:
                running[0] -= groups

    threads = [threading.Thread(target=run, args=(min(groups, most),), daemon=True) for groups in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < peak[0] <= most


def test_two_runs_that_fill_the_executor_each_go_one_after_the_other(program: DataFlowKernel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")

    def streaming(number: int) -> Any:
        workflow = ingestion(tmp_path / f"index{number}", str(tmp_path / "a.txt"))
        return aaflow_parsl.submit(
            workflow, ranks=1, site="local", fuse=False, executors=["threads"], run_folder=tmp_path / "runs"
        )

    both = [streaming(number) for number in range(2)]
    assert [each.result()["generation"] for each in both] == [1, 1]


def test_a_pool_that_does_not_reach_its_interchange_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aaflow_parsl.pilot.START_SECONDS", 2.0)
    monkeypatch.setattr("aaflow_parsl.config._pool_command", lambda: "sleep 301.5 #")  # as behind a firewall
    (tmp_path / "a.txt").write_text("text")
    workflow = ingestion(tmp_path / "index", str(tmp_path / "a.txt"))
    placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=1), "local")
    with pytest.raises(PilotError, match=r"Parsl has had its nodes for 2 s and started no task group: do they reach"):
        aaflow.run(placement, "parsl", run_folder=tmp_path / "runs")
    assert "sleep 301.5" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


class _Lease:
    """Of a run whose groups begin when it is told."""

    begun = False

    def alive(self, stage: str) -> bool:
        return self.begun


def test_the_time_to_start_counts_from_when_the_job_has_nodes_and_only_until_a_group_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("aaflow_parsl.pilot.time.monotonic", lambda: now[0])
    pilot, lease = ParslPilot(), _Lease()
    job: Any = SimpleNamespace(running=False)
    pilot._lease, pilot._stages, pilot._job = cast(Any, lease), ("load",), job
    pilot._kernel = cast(Any, SimpleNamespace(executors={"aaflow": SimpleNamespace(address="10.0.0.1")}))
    for job.running, seconds in ((False, 5000), (True, 500), (False, 500), (True, 500), (True, 500)):
        pilot._check_begun()
        now[0] += seconds
    with pytest.raises(PilotError, match=r"for 600 s and started no task group: do they reach 10\.0\.0\.1"):
        pilot._check_begun()
    lease.begun = True
    pilot._check_begun()
