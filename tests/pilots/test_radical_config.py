"""From a site and a placement to what RADICAL-Pilot is told."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from site import getuserbase
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import radical.pilot as rp

import aaflow
from aaflow import errors
from aaflow.errors import PilotError, SiteError, StageError
from aaflow.runtime import records
from aaflow.scheduling.site import AcceleratorKind, Node, Site
from aaflow.scheduling.sitefile import load_site
from aaflow.scheduling.slot import Accelerators, Slot
from aaflow_radical.engine import agent_environment
from aaflow_radical.pilot import RadicalPilot
from aaflow_radical.resource import RESOURCE, configure, pilot_description, resource_description, setup_script
from aaflow_radical.task import read_result, result_path, take_environment, write_environment
from aaflow_radical.tasks import slots_of, task_description

GPUS = AcceleratorKind("cuda", ("4", "5"), "CUDA_VISIBLE_DEVICES")
SITE = Site(
    name="test", description="", nodes=4, node=Node(tuple(range(2, 8)), 8 << 30, None), oversubscribe=False,
    scheduler="slurm", launcher="srun", launcher_options=(), communicator="mpi", pilot="radical",
    provider={"account": "m123", "queue": "regular", "qos": "debug", "constraint": "cpu", "walltime": "01:20:30",
              "worker_init": "module load mpi"},
)  # fmt: skip
LOCAL = replace(SITE, nodes=1, scheduler="local", launcher="mpiexec", provider={})


def placed(site: Site, slots: dict[str, list[Slot]]) -> Any:
    """A placement as far as its slots go."""
    plan: Any = None
    return aaflow.Placement(plan, site, {stage: tuple(ranks) for stage, ranks in slots.items()}, False)


def nodes(number: int, cores: int = 8, gpus: int = 0) -> list[rp.Node]:
    names = ("login", "ada", "bob", "cyd")
    return [
        rp.Node({"index": n, "name": names[n], "cores": [0.0] * cores, "gpus": [0.0] * gpus, "lfs": 0, "mem": 0})
        for n in range(number)
    ]


def test_radical_pilot_finds_the_site_in_the_folder_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    described = configure(SITE, tmp_path / "radical")
    (written,) = (tmp_path / "radical").rglob("resource_*.json")
    assert json.loads(written.read_text()) == resource_description(SITE, tmp_path / "radical")
    assert described == pilot_description(SITE)
    assert list(home.iterdir()) == []
    rp.PilotDescription(described).verify()


def test_cores_that_the_site_keeps_back_are_blocked(tmp_path: Path) -> None:
    (told,) = resource_description(replace(SITE, node=replace(SITE.node, accelerators=GPUS)), tmp_path).values()
    assert (told["cores_per_node"], told["gpus_per_node"]) == (8, 2)
    assert told["system_architecture"]["blocked_cores"] == [0, 1]
    assert told["system_architecture"]["exclusive"]
    assert told["system_architecture"]["options"] == ["cpu"]
    assert told["default_remote_workdir"] == str(tmp_path)
    assert "fake_resources" not in told


@pytest.mark.parametrize(
    ("scheduler", "launcher", "manager", "endpoint", "method"),
    [
        ("local", "mpiexec", "FORK", "fork://localhost/", "MPIEXEC"),
        ("slurm", "srun", "SLURM", "slurm://localhost/", "SRUN"),
        ("slurm", "intelmpi", "SLURM", "slurm://localhost/", "MPIEXEC"),
        ("pbs", "pals", "PBSPRO", "pbspro://localhost/", "MPIEXEC"),
    ],
)
def test_schedulers_and_launchers_by_radical_pilot_s_names(
    scheduler: str, launcher: str, manager: str, endpoint: str, method: str, tmp_path: Path
) -> None:
    site = replace(LOCAL if scheduler == "local" else SITE, scheduler=scheduler, launcher=launcher)
    (told,) = resource_description(site, tmp_path).values()
    assert told["resource_manager"] == manager
    assert told["schemas"][told["default_schema"]]["job_manager_endpoint"] == endpoint
    assert told["launch_methods"]["order"][-1] == method
    assert (
        told["launch_methods"][method]["pre_exec_cached"] == told["pre_bootstrap_0"][:1] == [f". {tmp_path}/setup.sh"]
    )


def test_a_batch_job_gets_the_options_of_the_site() -> None:
    told = pilot_description(SITE)
    assert (told["resource"], told["nodes"], told["runtime"]) == (RESOURCE, 4, 81)
    assert (told["project"], told["queue"]) == ("m123", "regular:debug")
    assert not told["exit_on_error"]


#: Launches a pilot as RADICAL-Pilot does: its launcher makes a job of PSI/J of the resource and pilot descriptions.
LAUNCH = """
import json, logging, os, sys
from types import SimpleNamespace
from radical.pilot.pmgr.launching.psi_j import PilotLauncherPSIJ

resource, pilot = json.loads(sys.argv[1])
architecture = resource["system_architecture"]
cores = resource["cores_per_node"] - len(architecture["blocked_cores"])
job = SimpleNamespace(
    project=pilot["project"], queue=pilot["queue"], wall_time_limit=pilot["runtime"], node_count=pilot["nodes"],
    total_cpu_count=cores * pilot["nodes"], system_architecture=architecture, executable="/bin/bash", arguments=["-l"],
    environment={}, working_directory=os.getcwd(), output="bootstrap_0.out", error="bootstrap_0.err",
)
endpoint = {"job_manager_endpoint": resource["schemas"]["here"]["job_manager_endpoint"]}
launcher = PilotLauncherPSIJ("PSI_J", logging.getLogger(), None, lambda *told: None)
assert launcher.can_launch(endpoint, None)
launcher.launch_pilots(endpoint, [{"uid": "pilot.0000", "jd_dict": job}])
os._exit(0)
"""


def submitted(site: Site, folder: Path) -> tuple[list[str], list[str]]:
    """The words with which a batch system's own command is called for a pilot, and the directives of its script."""
    system, command = folder / "system", {"slurm": "sbatch", "pbs": "qsub"}[site.scheduler]
    system.mkdir()
    body = 'printf "%s\\n" "$@" >called; for script; do :; done; cp "$script" submitted; echo 7'
    (system / command).write_text(f"#!/bin/sh\n{body}\n")
    (system / command).chmod(0o700)
    path = os.pathsep.join([str(folder / "radical" / "bin"), str(system), os.environ["PATH"]])
    described = configure(site, folder / "radical", path=path)
    (resource,) = resource_description(site, folder / "radical").values()
    # PSI/J keeps its scripts in the home folder.
    environment = {**os.environ, "PATH": path, "HOME": str(folder), "PYTHONUSERBASE": getuserbase()}
    arguments = [sys.executable, "-c", LAUNCH, json.dumps([resource, described])]
    subprocess.run(arguments, cwd=folder, env=environment, check=True, capture_output=True)
    lines = (folder / "submitted").read_text().splitlines()
    directive = {"slurm": "#SBATCH", "pbs": "#PBS"}[site.scheduler]
    return (folder / "called").read_text().splitlines()[:-1], [line for line in lines if line.startswith(directive)]


@pytest.mark.parametrize(
    ("name", "words", "directives"),
    [
        (
            "alcf-aurora",
            ["-l", "select=2:ncpus=101", "-l", "filesystems=home:flare"],
            {"#PBS -q debug", "#PBS -A m123"},
        ),
        (
            "alcf-polaris",
            ["-l", "select=2:ncpus=32:ngpus=4", "-l", "filesystems=home:eagle"],
            {"#PBS -q debug", "#PBS -A m123", "#PBS -l place=scatter:exclhost", "#PBS -l walltime=1:0:0"},
        ),
        ("ncsa-delta", ["--mem=208G", "--gpus-per-node=4"], {"#SBATCH --nodes=2", "#SBATCH --exclusive"}),
        ("nersc-perlmutter-gpu", ["--gpus-per-node=4"], {'#SBATCH --constraint="gpu"', '#SBATCH --account="m123"'}),
        ("olcf-frontier", ["--gpus-per-node=8"], {'#SBATCH --account="m123"', "#SBATCH --time=0:30:0"}),
        ("tacc-frontera", [], {'#SBATCH --account="m123"'}),
    ],
)
def test_the_batch_system_gets_all_options_of_the_sites_that_are_shipped(
    name: str, words: list[str], directives: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AAFLOW_ACCOUNT", "m123")
    called, said = submitted(replace(load_site(name), nodes=2), tmp_path)
    assert called == words
    assert directives <= set(said)


def test_a_constraint_that_psij_would_quote_is_said_as_it_is(tmp_path: Path) -> None:
    options = "#SBATCH --licenses=scratch  # two file systems\n\n# a comment\n#SBATCH --comment='two words'\n"
    site = replace(SITE, provider={**SITE.provider, "constraint": "cpu&nvme", "scheduler_options": options})
    called, _ = submitted(site, tmp_path)
    assert called == ["--constraint=cpu&nvme", "--licenses=scratch", "--comment=two words"]


def test_what_is_no_option_is_refused(tmp_path: Path) -> None:
    site = replace(SITE, provider={**SITE.provider, "scheduler_options": "#SBATCH --mem=0\nulimit -c 0"})
    with pytest.raises(
        SiteError, match=r"can't hand this line of .*scheduler_options to slurm: 'ulimit -c 0' is no #S"
    ):
        configure(site, tmp_path / "radical")


def test_a_session_that_would_lose_options_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = replace(SITE, provider={**SITE.provider, "scheduler_options": "#SBATCH --mail-type=END"})
    told = f"no word \\(--mail-type=END\\): put {tmp_path}/radical/bin before all else on PATH, then configure"
    with pytest.raises(SiteError, match=told):
        configure(site, tmp_path / "radical")
    assert not (tmp_path / "radical").exists()
    monkeypatch.setenv("PATH", f"{tmp_path}/radical/bin{os.pathsep}/no/such/folder")
    with pytest.raises(SiteError, match="sbatch not on PATH, which slurm needs; run this on a login node of test"):
        configure(site, tmp_path / "radical")


def test_a_folder_that_its_scripts_would_take_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PilotError, match="letters, digits"):
        configure(LOCAL, tmp_path / "my runs")
    assert not (tmp_path / "my runs").exists()


@pytest.mark.parametrize("site", [LOCAL, SITE])
def test_a_shell_that_has_reset_its_path_finds_this_environment_s_programs(site: Site, tmp_path: Path) -> None:
    setup = setup_script(replace(site, provider={"worker_init": "LOADED=mpi"}), {"AAFLOW_RUN": "a b"})
    (tmp_path / "setup.sh").write_text(setup)
    script = f"PATH=/usr/bin:/bin; . {tmp_path}/setup.sh; echo $AAFLOW_RUN$LOADED; command -v radical-pilot-agent_0"
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == ("a b" if site is LOCAL else "a bmpi")
    assert Path(said[1]).name == "radical-pilot-agent_0"


def test_an_agent_gets_what_it_needs_of_an_environment() -> None:
    needed = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": "/lib", "AAFLOW_ENGINE": "run", "TZ": "UTC"}
    modules = {"LOADEDMODULES": "mpi", "__LMOD_REF_COUNT_PATH": "1", "_ModuleTable001_": "x", "_LMFILES_": "y"}
    needed |= {"BASH_FUNC_module%%": "() { :; }", "SLURM_CONF": "/etc/slurm.conf", "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    user = {"HF_TOKEN": "secret", "HOMES": "/home", "SLURMY": "x", "MAKEFLAGS": "-j"}
    assert agent_environment({**needed, **modules, **user}) == {**needed, **modules}


def test_a_task_has_the_driver_s_environment_and_marks_of_its_own(tmp_path: Path) -> None:
    driver = {"SPOKEN": "it's $HOME", "LINES": "a\nb", "BYTES": "\udc80", "AAFLOW_SITES": "/sites"}
    write_environment(str(tmp_path / "temporary"), {**driver, "": "nameless", "AAFLOW_RUN": "another"})
    assert [file.stat().st_mode & 0o777 for file in (tmp_path / "temporary").iterdir()] == [0o600]
    with mock.patch.dict(os.environ, {"RP_TASK_ID": "1", "SPOKEN": "it's /root", "AAFLOW_RUN": "this"}):
        before = dict(os.environ)
        take_environment(str(tmp_path))  # no engine of aaflow's own
        assert dict(os.environ) == before
        records.write(records.engine_path(str(tmp_path)), {"temporary": str(tmp_path / "temporary")})
        take_environment(str(tmp_path))
        assert dict(os.environ) == {**driver, "AAFLOW_RUN": "this"}


def test_every_rank_has_its_slot_by_node_core_and_device() -> None:
    site = replace(SITE, node=replace(SITE.node, accelerators=GPUS))
    seen = Accelerators("cuda", ("5",), "CUDA_VISIBLE_DEVICES")
    placement = placed(site, {"embed": [Slot(0, (2, 3), None, 1), Slot(2, (4, 5), seen, 1)]})
    first, second = slots_of(placement, "embed", nodes(3, gpus=2))
    assert (first.node_index, first.node_name, [core.index for core in first.cores]) == (0, "login", [2, 3])
    assert (second.node_index, second.node_name, [core.index for core in second.cores]) == (2, "bob", [4, 5])
    assert (first.gpus, [gpu.index for gpu in second.gpus]) == ([], [1])
    assert {core.occupation for core in (*first.cores, *second.cores)} == {1.0}


def test_ranks_that_share_a_core_have_parts_of_it_and_leave_it_free() -> None:
    placement = placed(LOCAL, {"load": [Slot(0, (2,), None, 1)] * 2, "embed": [Slot(0, (2,), None, 1)]})
    there = nodes(1)
    taken = []
    for stage in placement.slots:
        for slot in slots_of(placement, stage, there):
            there[0].allocate_slot(slot)
            taken.append(slot)
    assert [slot.cores[0].occupation for slot in taken] == [0.25] * 3
    for slot in taken:
        there[0].deallocate_slot(slot)
    assert there[0].cores[2].occupation == 0


@pytest.mark.parametrize(
    ("slot", "taken", "said"),
    [
        (Slot(2, (2,), None, 1), (), r"stage 'load' has a rank on node 2; the pilot has 2 node\(s\)"),
        (Slot(0, (8,), None, 1), (), "core 8 of node login, which this pilot has not"),
        (Slot(1, (3,), None, 1), (3,), "core 3 of node ada, which another task of this pilot has"),
    ],
)
def test_slots_that_would_wedge_the_agent_are_refused(slot: Slot, taken: tuple[int, ...], said: str) -> None:
    there = nodes(2)
    for core in taken:
        there[1].cores[core].occupation = 1.0
    with pytest.raises(PilotError, match=said):
        slots_of(placed(SITE, {"load": [slot]}), "load", there)


def test_a_blocked_core_is_refused() -> None:
    there = nodes(1)
    there[0].cores[2].occupation = rp.constants.DOWN
    with pytest.raises(PilotError, match="core 2 of node login, which this pilot has not"):
        slots_of(placed(SITE, {"load": [Slot(0, (2,), None, 1)]}), "load", there)


def test_a_task_is_a_stage_with_its_ranks_and_slots() -> None:
    placement = placed(LOCAL, {"embed": [Slot(0, (2, 3), None, 1), Slot(0, (4, 5), None, 1)]})
    slots = slots_of(placement, "embed", nodes(1))
    made = task_description(
        "embed", slots, uid="aaflow.1", pilot="pilot.0000", run_folder="/runs/one", run="the-run",
        python="/env/bin/python", rank_python="/gpu/bin/python", environment={"PYTHONPATH": "/my folder"},
    )  # fmt: skip
    made.verify()
    assert (made.name, made.ranks, made.cores_per_rank, made.gpus_per_rank) == ("embed", 2, 2, 0.0)
    assert [slot.cores[0].index for slot in made.slots] == [2, 4]
    (launched,) = made.pre_launch
    words = shlex.split(launched)
    assert words == [
        *("exec", "env", "-u", "AAFLOW_ENGINE", "-u", "AAFLOW_GROUP", "AAFLOW_RUN=the-run", "PYTHONPATH=/my folder"),
        *("/env/bin/python", "-m", "aaflow_radical.task", "/runs/one", "embed"),
    ]


@pytest.mark.parametrize(
    "error",
    [
        StageError("a rank died", stage="load", rank=1, log="/runs/one/logs/load.out"),
        errors.JobEnded("the job is over", job="12", walltime=True),
        SiteError("there is no mpiexec"),
    ],
)
def test_the_error_of_a_group_comes_back_as_it_is(error: errors.AaflowError, tmp_path: Path) -> None:
    assert read_result(str(tmp_path), "load") is None
    record = {"error": type(error).__name__, "words": str(error), "fields": vars(error)}
    records.write(result_path(str(tmp_path), "load"), record)
    with pytest.raises(type(error)) as caught:
        read_result(str(tmp_path), "load")
    assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))


def test_session_task_manager_and_pilot_are_given_together() -> None:
    task_manager: Any = object()
    with pytest.raises(PilotError, match="together, or none"):
        RadicalPilot(task_manager=task_manager)


def test_the_time_for_an_agent_counts_from_when_its_job_has_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("aaflow_radical.pilot.time.monotonic", lambda: now[0])
    pilot, job = RadicalPilot(), SimpleNamespace(running=False, look=lambda anew: None)
    pilot._job = cast(Any, job)
    pilot._take({"pilot": "PMGR_ACTIVE_PENDING"})
    for job.running, seconds in ((False, 5000), (True, 500), (False, 500), (True, 500), (True, 500)):
        pilot.check()
        now[0] += seconds
    with pytest.raises(PilotError, match=r"has had its nodes for 600 s and its agent is not up: do they reach the lo"):
        pilot.check()
    pilot._take({"pilot": "PMGR_ACTIVE"})
    pilot.check()
