from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow.errors import PlacementError, SiteError
from aaflow.scheduling.launch import TaskGroup, compose, find_launcher, launchers
from aaflow.scheduling.slot import Slot

NODES = tuple(f"node{i}" for i in range(6))


def group(nodes: list[int], environment: Mapping[str, str] | None = None) -> TaskGroup:
    slots = tuple(Slot(node, (0,), None, 1) for node in nodes)
    return TaskGroup("ingest", len(slots), slots, ("python", "-m", "work"), environment or {})


def value(argv: tuple[str, ...], flag: str) -> str:
    """What follows ``flag``, as its own word or after ``=``."""
    for i, word in enumerate(argv):
        if word == flag:
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    raise AssertionError(f"{flag} is not in {argv}")


def counted(hosts: str) -> list[str]:
    """Host per rank of ``a:2,b:1``, as Hydra and Open MPI read it."""
    pairs = [part.split(":") for part in hosts.split(",")]
    return [host for host, count in pairs for _ in range(int(count))]


def hosts_of_ranks(launcher: str, argv: tuple[str, ...]) -> list[str]:
    """The host of every rank, as the launcher's documentation says it reads the command."""
    if launcher in ("mpiexec", "openmpi"):
        return counted(value(argv, "-hosts" if launcher == "mpiexec" else "--host"))
    if launcher in ("pals", "intelmpi"):
        each, hosts = ("--ppn", "--hosts") if launcher == "pals" else ("-ppn", "-hosts")
        filled = [host for host in value(argv, hosts).split(",") for _ in range(int(value(argv, each)))]
        return filled[: int(value(argv, "-n"))]
    listed = value(argv, "--nodelist").split(",")
    if value(argv, "--distribution") == "arbitrary":
        return listed
    # Slurm orders a plain list its own way.
    return [host for host in sorted(listed) for _ in range(int(value(argv, "--ntasks-per-node")))]


@st.composite
def contiguous(draw: st.DrawFn) -> list[int]:
    order = draw(st.lists(st.integers(0, len(NODES) - 1), min_size=1, unique=True))
    return [node for node in order for _ in range(draw(st.integers(1, 4)))]


@given(nodes=contiguous(), launcher=st.sampled_from(launchers()))
def test_every_rank_starts_on_the_node_of_its_slot_or_the_group_is_refused(nodes: list[int], launcher: str) -> None:
    try:
        launch = compose(launcher, group(nodes), NODES)
    except PlacementError:
        assert launcher in ("openmpi", "intelmpi", "pals"), "Hydra and srun place any group"
        return
    assert hosts_of_ranks(launcher, launch.argv) == [NODES[node] for node in nodes]
    assert launch.argv[-3:] == ("python", "-m", "work")


@pytest.mark.parametrize("launcher", launchers())
@pytest.mark.parametrize("nodes", [[0], [0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1, 1], [2, 3, 4]])
def test_every_launcher_takes_what_placing_makes(launcher: str, nodes: list[int]) -> None:
    argv = compose(launcher, group(nodes), NODES).argv
    assert hosts_of_ranks(launcher, argv) == [NODES[node] for node in nodes]


def test_hydra_command() -> None:
    launch = compose("mpiexec", group([0, 0, 1], {"A": "1"}), ("a", "b"), ("-iface", "ib0"), program="/opt/mpiexec")
    assert launch.argv == (
        *("/opt/mpiexec", "-n", "3", "-hosts", "a:2,b:1", "-bind-to", "none"),
        *("-iface", "ib0", "python", "-m", "work"),
    )
    # Else the second of two groups at once waits for the step of the first: seen under Slurm 22.05.
    assert launch.environment == {"A": "1", "SLURM_OVERLAP": "1"}


def test_hydra_forks_on_a_machine_of_its_own_and_not_on_one_node_of_many() -> None:
    assert value(compose("mpiexec", group([0, 0]), ("localhost",)).argv, "-launcher") == "fork"
    assert "fork" not in compose("mpiexec", group([1, 1]), ("a", "b")).argv


def test_the_proxy_of_mpich_writes_no_topology_on_a_machine_of_its_own() -> None:
    assert compose("mpiexec", group([0, 0]), ("localhost",)).environment["HWLOC_XMLFILE"] == "/dev/null"
    assert "HWLOC_XMLFILE" not in compose("mpiexec", group([1, 1]), ("a", "b")).environment
    assert "HWLOC_XMLFILE" not in compose("openmpi", group([0, 0]), ("localhost",)).environment


def test_open_mpi_exports_the_groups_variables_and_runs_as_root() -> None:
    marked = replace(group([0, 0, 1], {"C": "2", "A": "1"}), inherited=("B", "A"))
    launch = compose("openmpi", marked, ("a", "b"))
    assert launch.argv == (
        *("mpiexec", "-n", "3", "--host", "a:2,b:1", "--map-by", "slot:OVERSUBSCRIBE", "-x", "A"),
        *("-x", "B", "-x", "C", "--bind-to", "none", "python", "-m", "work"),
    )
    root = {"SLURM_OVERLAP": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert launch.environment == {"A": "1", "C": "2", **root}


def test_srun_shares_nodes_between_steps_and_leaves_binding_to_the_ranks() -> None:
    launch = compose("srun", group([0, 0, 1, 1], {"A": "1"}), ("a", "b"), ("--mpi=pmi2",))
    assert launch.argv == (
        *("srun", "--nodes=2", "--ntasks=4", "--nodelist=a,b", "--ntasks-per-node=2"),
        *("--job-name=ingest", "--overlap", "--cpu-bind=none", "--kill-on-bad-exit=1", "--export=ALL"),
        *("--distribution=block", "--mpi=pmi2", "python", "-m", "work"),
    )
    assert launch.environment == {"A": "1"}


def test_intel_mpi_command() -> None:
    launch = compose("intelmpi", group([0, 0, 1], {"A": "1"}), ("a", "b"), ("-iface", "ib0"))
    assert launch.argv == (
        *("mpiexec.hydra", "-n", "3", "-ppn", "2", "-hosts", "a,b", "-iface", "ib0", "python", "-m", "work"),
    )
    # Its documentation: pinning is on by default; in a batch job -ppn counts only where this is off.
    own = {"I_MPI_PIN": "off", "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "off"}
    assert launch.environment == {"A": "1", "SLURM_OVERLAP": "1", **own}
    assert value(compose("intelmpi", group([0, 0]), ("localhost",)).argv, "-launcher") == "fork"


@pytest.mark.parametrize(
    ("launcher", "options", "gone", "stays"),
    [
        ("srun", ["--cpu-bind=cores"], "--cpu-bind=none", "--overlap"),
        ("srun", ["--mpi=pmix", "-mblock:cyclic"], "--distribution=block", "--cpu-bind=none"),
        ("srun", ["--distribution", "block:fcyclic"], "--distribution=block", "--export=ALL"),
        ("srun", ["-K0"], "--kill-on-bad-exit=1", "--cpu-bind=none"),
        ("mpiexec", ["-bind-to", "socket"], "none", "-hosts"),
        ("mpiexec", ["-bootstrap", "ssh"], "fork", "-bind-to"),
        ("openmpi", ["--bind-to", "core"], "none", "--map-by"),
        ("intelmpi", ["-bootstrap", "slurm"], "fork", "-ppn"),
        ("pals", ["--cpu-bind", "depth"], "none", "--ppn"),
    ],
)
def test_an_option_of_the_site_takes_the_place_of_ours_since_most_launchers_refuse_two(
    launcher: str, options: list[str], gone: str, stays: str
) -> None:
    argv = compose(launcher, group([0, 0]), ("a",), options).argv
    assert gone in compose(launcher, group([0, 0]), ("a",)).argv
    assert gone not in argv
    assert stays in argv
    assert argv[-3 - len(options) : -3] == tuple(options), "the site's words come last"


@pytest.mark.parametrize(
    ("launcher", "option"),
    [
        *(("srun", option) for option in ("-n4", "--nodelist=a", "-wa", "-mcyclic", "--distribution=plane=2")),
        *(("mpiexec", option) for option in ("-np", "--hosts", "-f", "-ppn")),
        *(("openmpi", option) for option in ("--host", "--map-by", "--rank-by", "-H")),
        *(("intelmpi", option) for option in ("-perhost", "-machinefile", "-rr")),
        *(("pals", option) for option in ("--ppn", "--hostfile")),
    ],
)
def test_a_site_may_not_say_which_ranks_start_where(launcher: str, option: str) -> None:
    with pytest.raises(SiteError, match="would place ranks"):
        compose(launcher, group([0, 0]), ("a", "b"), [option])


def test_slurm_has_one_distribution_for_nodes_of_different_numbers_of_ranks() -> None:
    with pytest.raises(PlacementError, match="a number of ranks that the nodes divide"):
        compose("srun", group([0, 0, 1]), ("a", "b"), ["--distribution=block:cyclic"])


def test_pals_command() -> None:
    launch = compose("pals", group([0, 0, 1, 1], {"A": "x y"}), ("a", "b"))
    assert launch.argv == (
        *("mpiexec", "-n", "4", "--ppn", "2", "--hosts", "a,b", "--env", "A=x y"),
        *("--cpu-bind", "none", "python", "-m", "work"),
    )


def test_a_group_that_does_not_fit_its_slots_or_nodes_is_refused() -> None:
    with pytest.raises(PlacementError, match="node 2; the allocation has 2"):
        compose("mpiexec", group([0, 2]), ("a", "b"))
    with pytest.raises(PlacementError, match="neighbours"):
        compose("mpiexec", group([0, 1, 0]), ("a", "b"))
    with pytest.raises(PlacementError, match="2 ranks and 1 slots"):
        compose("mpiexec", TaskGroup("x", 2, (Slot(0, (0,), None, 1),), ("true",)), ("a",))
    with pytest.raises(PlacementError, match="a:1,b:2"):
        compose("pals", group([0, 1, 1]), ("a", "b"))
    with pytest.raises(PlacementError, match="allocation's order"):
        compose("openmpi", group([1, 0]), ("a", "b"))


def test_an_unknown_launcher_is_named_with_the_known_ones() -> None:
    for ask in (lambda: compose("mpirun", group([0]), ("a",)), lambda: find_launcher("sruns")):
        with pytest.raises(SiteError, match="use one of mpiexec, openmpi, intelmpi, srun, pals"):
            ask()
    with pytest.raises(SiteError, match="did you mean 'srun'"):
        find_launcher("sruns")


def program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_environments_mpiexec_comes_first_but_not_for_pals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, system = program(tmp_path / "venv", "mpiexec"), program(tmp_path / "system", "mpiexec")
    monkeypatch.setattr(sys, "executable", str(own.parent / "python"))
    monkeypatch.setenv("PATH", f"{system.parent}{os.pathsep}{own.parent}")
    assert find_launcher("mpiexec") == str(own)
    monkeypatch.setenv("PATH", f"{own.parent}{os.pathsep}{system.parent}")
    assert find_launcher("pals") == str(system)


def test_a_missing_launcher_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SiteError, match="pip install 'aaflow"):
        find_launcher("mpiexec")
    with pytest.raises(SiteError, match="Slurm cluster"):
        find_launcher("srun")


def test_three_ranks_meet_under_the_mpiexec_of_this_environment() -> None:
    code = (
        "import os; from mpi4py import MPI; c = MPI.COMM_WORLD; cores = os.sched_getaffinity(0); "
        "os.write(1, f'{c.rank} {c.allreduce(c.rank)} {os.environ[\"GREETING\"]} {len(cores)}\\n'.encode())"
    )
    slots = tuple(Slot(0, (0,), None, 1) for _ in range(3))
    ranks = TaskGroup("hello", 3, slots, (sys.executable, "-c", code), {"GREETING": "a b"})
    launch = compose("mpiexec", ranks, ("localhost",), program=find_launcher("mpiexec"))
    done = subprocess.run(
        launch.argv, env={**os.environ, **launch.environment}, capture_output=True, text=True, timeout=60, check=True
    )
    free = len(os.sched_getaffinity(0))
    assert sorted(done.stdout.splitlines()) == [f"{rank} 3 a b {free}" for rank in range(3)]
