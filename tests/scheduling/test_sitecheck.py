from __future__ import annotations

import dataclasses
import importlib.util
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aaflow.operators.operator import Domain
from aaflow.scheduling import environment
from aaflow.scheduling.site import Environment, Node, Site
from aaflow.scheduling.sitecheck import check_site
from aaflow.scheduling.sitefile import load_site


@pytest.fixture
def local(tmp_path: Path) -> Site:
    return dataclasses.replace(load_site(), pilot="local", run_folder=str(tmp_path / "runs"))


def found(site: Site, **changes: Any) -> dict[str, str]:
    """Key to text and remedy of every problem."""
    problems = check_site(dataclasses.replace(site, **changes))
    return {problem.key: f"{problem.text}; {problem.remedy}" for problem in problems}


def program(folder: Path, name: str, prints: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)


def test_nothing_is_wrong_with_this_machine(local: Site) -> None:
    assert check_site(local) == []
    assert not Path(local.run_folder).exists(), "checking makes nothing"


def test_what_is_still_to_be_filled_in(local: Site) -> None:
    provider = {
        "account": "${NO_SUCH_ACCOUNT}",
        "queue": "CHANGE_ME",
        "worker_init": "source $NO_SUCH_ENV/bin/activate",
    }
    problems = found(local, provider=provider, run_folder="$NO_SUCH_SCRATCH/runs")
    assert "NO_SUCH_ACCOUNT is not set; set it: export NO_SUCH_ACCOUNT=" in problems["provider.account"]
    assert "filled in" in problems["provider.queue"]
    assert "export NO_SUCH_SCRATCH" in problems["run_folder"]
    assert set(problems) == {"provider.account", "provider.queue", "run_folder"}, "a script's variables are its own"


@pytest.mark.parametrize(("scheduler", "command"), [("slurm", "sbatch"), ("pbs", "qsub")])
def test_a_scheduler_needs_its_commands(
    local: Site, scheduler: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command in found(local, scheduler=scheduler)["scheduler"]
    for name in ("sbatch", "squeue", "scancel", "qsub", "qstat", "qdel"):
        program(tmp_path, name, "")
    assert "scheduler" not in found(local, scheduler=scheduler)


def test_the_launcher_must_be_there_and_of_the_right_mpi(
    local: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not on this machine" in found(local, launcher="srun")["launcher"]
    program(tmp_path, "mpiexec", "mpiexec (Open MPI) 5.0.11")
    assert "is Open MPI" in found(local)["launcher"]
    assert "launcher" not in found(local, launcher="openmpi")
    program(tmp_path, "mpiexec", "HYDRA build details:")
    assert "is MPICH" in found(local, launcher="openmpi")["launcher"]
    assert "launcher" not in found(local)
    program(tmp_path, "mpiexec.hydra", "Intel(R) MPI Library for Linux* OS, Version 2021.19.0")
    assert "launcher" not in found(local, launcher="intelmpi")
    program(tmp_path, "mpiexec", "Intel(R) MPI Library for Linux* OS, Version 2021.19.0")
    assert "is Intel MPI" in found(local)["launcher"]


def test_what_a_compute_node_may_have_is_not_certain(
    local: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    site = dataclasses.replace(local, scheduler="pbs", interface="nosuch0", interconnect="nosuch1", launcher="srun")
    certain = {problem.key: problem.certain for problem in check_site(site)}
    assert not certain["launcher"]
    assert not certain["interface"]
    assert not certain["interconnect"]
    assert "nosuch1" in found(local, scheduler="pbs", interconnect="nosuch1")["interconnect"]
    assert found(local, interconnect="lo") == {}
    for key in ("interface", "interconnect"):
        assert list(found(local, **{key: "nosuch0"})) == [key]
        assert "nosuch0" in found(local, **{key: "nosuch0"})[key]
        assert all(problem.certain for problem in check_site(dataclasses.replace(local, **{key: "nosuch0"})))


def test_cores_and_memory_that_this_machine_lacks(local: Site) -> None:
    problems = found(local, node=Node((0, 4000), 1 << 60, None))
    assert "4000" in problems["node.cores"]
    assert "GiB" in problems["node.memory"]


def test_packages_that_are_not_installed(local: Site) -> None:
    problems = found(local, pilot="nosuchpilot", communicator="cylon")
    assert "'nosuchpilot'; use one of" in problems["pilot"]
    if importlib.util.find_spec("pycylon") is None:
        assert "needs pycylon" in problems["communicator"]
    else:
        assert "communicator" not in problems


def test_an_environment_must_have_what_a_rank_imports(local: Site, tmp_path: Path) -> None:
    def problems(python: Path | str) -> dict[str, str]:
        return found(local, environments={"own": Environment(str(python), "mpi", ("batch-worker",))})

    assert problems(sys.executable) == {}
    assert "no interpreter /no/such/python" in problems("/no/such/python")["environments.own"]
    venv.create(tmp_path / "empty", symlinks=True)
    assert "No module named 'pyarrow'" in problems(tmp_path / "empty" / "bin" / "python")["environments.own"]
    program(tmp_path, "broken", "x")
    (tmp_path / "broken").write_text("#!/bin/sh\necho it is too old >&2; exit 1\n")
    assert "broken: it is too old; install what is missing" in problems(tmp_path / "broken")["environments.own"]
    assert "export NO_SUCH=" in problems("$NO_SUCH/python")["environments.own"]


@pytest.fixture
def no_mpi_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """mpi4py finds no library that it can load."""
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nonexistent/libmpi.so")
    environment._failure.cache_clear()
    yield
    environment._failure.cache_clear()


@pytest.mark.usefixtures("no_mpi_library")
def test_mpi_needs_a_library_that_can_be_loaded(local: Site) -> None:
    loaded = "mpi4py.MPI" in sys.modules
    why = "RuntimeError: cannot load MPI library; /nonexistent/libmpi.so: cannot open shared object file"
    own = {"own": Environment(sys.executable, "mpi", ("batch-worker",))}
    problems = found(local, environments=own)
    assert f"'mpi' needs mpi4py and an MPI library: {sys.executable}: {why}" in problems["communicator"]
    assert why in problems["environments.own"]
    alone = {"own": dataclasses.replace(own["own"], communicator="serial")}
    assert found(local, communicator="serial", environments=alone) == {}
    assert ("mpi4py.MPI" in sys.modules) == loaded, "it is looked for in another process"


@pytest.mark.usefixtures("no_mpi_library")
def test_a_library_that_only_the_job_loads_may_be_there(local: Site) -> None:
    own = {"own": Environment(sys.executable, "mpi", ("batch-worker",))}
    site = dataclasses.replace(local, provider={"worker_init": "module load mpi"}, environments=own)
    assert {problem.key: problem.certain for problem in check_site(site)} == {
        "communicator": False,
        "environments.own": False,
    }


def test_a_backend_is_looked_for_where_its_ranks_run(local: Site) -> None:
    """pycylon in another environment is no reason to need it here, and the other way round."""
    own = {"own": Environment(sys.executable, "cylon", tuple(domain.value for domain in Domain))}
    problems = found(local, communicator="cylon", environments=own)
    assert set(problems) <= {"environments.own"}
    assert ("environments.own" in problems) == (importlib.util.find_spec("pycylon") is None)


def test_a_run_folder_that_cannot_be(local: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't be made" in found(local, run_folder=str(tmp_path / "file" / "runs"))["run_folder"]
    assert "absolute" in found(local, run_folder="runs")["run_folder"]


def test_a_run_folder_without_space(local: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aaflow.scheduling.sitecheck.ENOUGH_SPACE", 1 << 60)
    assert "MiB free" in found(local)["run_folder"]
