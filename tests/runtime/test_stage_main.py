"""The main program of a rank, alone and under mpiexec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aaflow.compiler.compile import compile_workflow
from aaflow.dataplane.communicator import communicator
from aaflow.errors import StageError
from aaflow.runtime import stage as stage_main
from aaflow.runtime.group import run_group
from aaflow.runtime.lease import RunLease
from aaflow.runtime.runfolder import RunFolder
from aaflow.scheduling.placement import Placement, place
from aaflow.scheduling.site import Node, Site
from aaflow.scheduling.slot import Accelerators, Slot
from aaflow.workflow import Workflow

SITE = Site(
    name="test", description="", nodes=1, node=Node((0, 1), 1 << 30, None), oversubscribe=True, scheduler="local",
    launcher="mpiexec", launcher_options=(), communicator="mpi", pilot="local",
)  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[[int], RunFolder]:
    """Makes the run folder of a workflow that reads and cuts two documents."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("some text")
    (tmp_path / "docs" / "b.txt").write_text("some more text")

    def make(ranks: int) -> RunFolder:
        workflow = Workflow()
        workflow.load(tmp_path / "docs").transform()
        plan = compile_workflow(workflow, site=SITE, ranks=ranks)
        folder = RunFolder.create(tmp_path / "runs", plan.digest)
        place(plan, SITE).save(folder.path)
        return folder

    return make


def placed_bytes(folder: RunFolder) -> int:
    listing = Placement.load(folder.path).plan.listing
    assert listing is not None
    return listing.bytes


def start(folder: RunFolder) -> subprocess.CompletedProcess[str]:
    words = ["-m", "aaflow.runtime.stage", str(folder.path / "placement.json"), "load+transform"]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=60)


def test_a_rank_alone_does_its_stage_and_says_what_it_did(run_folder: Callable[[int], RunFolder]) -> None:
    folder = run_folder(1)
    ended = start(folder)
    assert ended.returncode == 0, ended.stderr
    summary = folder.read_json("results/load+transform.0.json")
    assert summary is not None
    assert summary["rows"] == {"load": 2, "transform": 2}
    assert summary["began"] <= summary["ready"] <= summary["ended"]
    assert folder.read_json("progress/load+transform.0.json") == {
        "rows": {"load": 2, "transform": 2},
        "ended": ["load", "transform"],
        "read": [placed_bytes(folder)] * 2,
        "done": True,
    }
    assert (folder.output / "load+transform.0.arrow").is_file()
    assert (folder.trace / "load+transform.0.arrow").is_file()


@pytest.mark.serial
def test_a_launcher_of_another_size_or_mpi_is_told(run_folder: Callable[[int], RunFolder]) -> None:
    folder = run_folder(3)
    words = ["-m", "aaflow.runtime.stage", str(folder.path / "placement.json"), "load+transform"]
    with (
        RunLease(str(folder.path)),
        pytest.raises(StageError, match=r"placed on 3 ranks and started with 2.*aaflow doctor"),
    ):
        run_group(str(folder.path), "load+transform", lambda: (["mpiexec", "-n", "2", sys.executable, *words], {}))


def test_a_rank_that_can_not_read_its_input_says_where_it_failed(run_folder: Callable[[int], RunFolder]) -> None:
    folder = run_folder(1)
    (folder.path / "listing.arrow").write_bytes(b"damaged")
    ended = start(folder)
    assert ended.returncode == 1
    assert "Traceback" in (folder.path / "logs" / "load+transform.out").read_text()
    error = folder.read_json("errors/load+transform.0.json")
    assert error is not None
    assert error["rank"] == 0
    assert error["type"] == "ArrowInvalid"


@pytest.mark.parametrize("variable", ["PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PALS_RANKID", "SLURM_PROCID"])
def test_a_rank_knows_its_number_before_mpi_is_up(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PALS_RANKID", "SLURM_PROCID"):
        monkeypatch.delenv(other, raising=False)
    assert stage_main._rank_of_environment() == 0
    monkeypatch.setenv(variable, "5")
    assert stage_main._rank_of_environment() == 5


PIN = """
import json, os, sys
from aaflow.runtime.stage import pin
from aaflow.scheduling.slot import Accelerators, Slot
os.sched_setaffinity(0, {int(sys.argv[2])})
cores = json.loads(sys.argv[1])
pin(Slot(0, tuple(cores), Accelerators("cuda", ("2", "3"), "CUDA_VISIBLE_DEVICES"), 1))
print(json.dumps([sorted(os.sched_getaffinity(0)), os.environ["CUDA_VISIBLE_DEVICES"]]))
"""


@pytest.mark.parametrize("cores", [[0], [17], [4096, 4097]])
def test_a_rank_pins_itself_to_its_slot_as_far_as_it_may(cores: list[int]) -> None:
    allowed = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", PIN, json.dumps(cores), str(allowed)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == [[allowed], "2,3"]


def test_libraries_start_no_threads_in_a_rank() -> None:
    program = (
        "import os; from aaflow.runtime.stage import use_one_thread; use_one_thread(); "
        "import numpy; print(len(os.listdir('/proc/self/task')))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"


def test_a_placement_with_accelerators_survives_its_folder(run_folder: Callable[[int], RunFolder]) -> None:
    folder = run_folder(1)
    placement = Placement.load(folder.path)
    slot = Slot(0, (0,), Accelerators("rocm", ("1",), "ROCR_VISIBLE_DEVICES"), 5)
    replace(placement, slots={"load+transform": (slot,)}).save(folder.path)
    assert Placement.load(folder.path).slots["load+transform"] == (slot,)


def test_an_error_is_on_record_before_the_edges_close_and_neighbours_have_theirs(
    run_folder: Callable[[int], RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(1)
    seen = []

    def fail(_: object) -> None:
        raise ValueError("not to my taste")

    def close(*_: object) -> None:
        seen.append((folder.read_json("errors/load+transform.0.json") or {}).get("error"))

    monkeypatch.setattr("aaflow.runtime.chain.chain_of", fail)
    monkeypatch.setattr("aaflow.runtime.wiring.Wiring.__exit__", close)
    with pytest.raises(ValueError, match="taste"):
        stage_main._run_rank(folder, Placement.load(folder.path), "load+transform", communicator("serial"))
    assert seen == ["not to my taste"]
