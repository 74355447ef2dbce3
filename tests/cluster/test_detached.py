"""Runs whose driver is the batch job itself, found again from the login node. The job of a driver that was killed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from clusteringestion import RANKS, ClusterIngestion, ended, on_cluster
from ingestions import Ingestion, command_line, wait_for
from virtualcluster import VirtualCluster

from aaflow.runtime import processes, records

# A run here starts up to 8 ranks on the cores of one machine.
pytestmark = [pytest.mark.serial, pytest.mark.timeout(300)]

DETACHED = ("--ranks", str(RANKS), "--detach", "--json")


def jobs(cluster: VirtualCluster) -> str:
    """The jobs that wait or run."""
    return cluster.run(["squeue", "--noheader", "--format=%i %j %T"]).stdout


def start(ingestion: ClusterIngestion, **environment: str) -> str:
    """Start a detached run; gives its name."""
    started = ingestion.run(**environment)
    assert started.code == 0, started
    shown = json.loads(started.out)
    assert shown["job"].isdecimal()
    assert Path(shown["run_folder"]) == ingestion.run_folder()
    return str(shown["run"])


def held(folder: Path, batches: int) -> dict[str, str]:
    """Variables under which every rank does so many batches and then nothing more, and says so in a folder."""
    folder.mkdir()
    return {"FAULTS_HOLD": str(folder), "FAULTS_BATCHES": str(batches)}


def wait_until_held(folder: Path, ranks: int) -> None:
    wait_for(lambda: len(list(folder.iterdir())) == ranks, 60)


def test_a_detached_run_is_found_again_by_other_commands(
    ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str
) -> None:
    ingestion.options = DETACHED
    run = start(ingestion)
    job = records.read(records.job_path(str(ingestion.run_folder())))
    assert job is not None
    [first] = json.loads(ingestion.ask("status", run, "--json").out)["runs"]
    assert first["state"] in ("waiting", "running")
    assert first["job"] == job["id"]
    assert re.search(rf"Slurm job {job['id']}", first["words"])

    attached = ingestion.ask("attach", run, "--json")
    assert attached.code == 0, attached
    assert (json.loads(attached.out)["state"], json.loads(attached.out)["exit_code"]) == ("done", 0)
    assert ingestion.content() == (2, undisturbed)

    shown = ingestion.ask("status")
    assert re.search(rf"{run}\s+done", shown.out)
    [stage, driver, *_] = json.loads(ingestion.ask("logs", run, "--json").out)["logs"]
    assert sorted(rank["host"] for rank in stage["ranks"]) == sorted(cluster.nodes * 2)
    assert driver["end"][-1].startswith("done in ")
    assert ingestion.ask("logs", run, "--failed").out == f"run {run}: nothing failed\n"
    ingestion.expect_nothing_alive(10)
    wait_for(lambda: jobs(cluster) == "", 10)


def test_cancelling_a_detached_run_ends_its_job_and_keeps_what_it_did(
    ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str, tmp_path: Path
) -> None:
    ingestion.options = ("--ranks", "4", "--until-done", *DETACHED[2:])
    run = start(ingestion, **held(tmp_path / "held", batches=3))
    wait_until_held(tmp_path / "held", 4)
    wait_for(ingestion.staged)
    assert len(jobs(cluster).splitlines()) == 2, "the one at work and the one that would go on with it"
    [first, second] = json.loads(ingestion.ask("status", run, "--json").out)["runs"]
    assert (first["state"], second["state"]) == ("running", "waiting")
    assert first["units"]["committed"] > 0
    ranks = {process for process in ingestion.alive() if "aaflow.runtime.stage" in command_line(process)}
    assert len(ranks) >= 4
    # Not that of the engine, which is a folder of one node.
    assert ranks <= set(processes.find_marked("TMPDIR", str(ingestion.temporary)))

    cancelled = ingestion.ask("cancel", run)
    assert cancelled.code == 0, cancelled
    assert cancelled.out.splitlines() == [
        f"run {run} is cancelled",
        f"run {second['run']} is cancelled",
    ]
    ingestion.expect_nothing_alive(10)
    wait_for(lambda: jobs(cluster) == "", 10)
    attached = ingestion.ask("attach", run)
    assert attached.code == 130, attached
    assert "cancelled the run" in attached.err
    ingestion.expect_whole_index()
    kept = set(ingestion.staged())
    assert kept
    Ingestion.complete(ingestion)
    assert ingestion.content() == (2, undisturbed)


@pytest.mark.parametrize(
    ("lost", "says"),
    [(False, r"Slurm job \d+ was cancelled"), (True, r"its keeper on node2 was silent for 6 s: its node .* is lost")],
    ids=["cancelled by a person", "node lost"],
)
def test_a_detached_run_whose_job_is_cut_says_why_and_counts(
    before: Ingestion,
    possible: None,
    tmp_path: Path,
    undisturbed: str,
    lost: bool,
    says: str,
    request: pytest.FixtureRequest,
) -> None:
    with VirtualCluster() as cluster:
        ingestion = on_cluster(before, tmp_path, cluster)
        request.addfinalizer(ingestion.end)
        ingestion.options = ("--ranks", "4", "--detach", "--json")
        run = start(ingestion, **held(tmp_path / "held", batches=3))
        wait_until_held(tmp_path / "held", 4)
        wait_for(ingestion.staged)  # a batch that was let through has yet to be written
        if lost:
            cluster.lose("node2")
        else:
            cluster.run(["scancel", "--user=root"])
        attached = ingestion.ask("attach", run)
        assert attached.code == 1, attached
        assert re.search(says, " ".join(attached.err.split())), attached
        [state] = shown(ingestion, run)
        assert state["state"] == "failed"
        ingestion.expect_nothing_alive(30)
        ingestion.expect_whole_index()
        segments = [ingestion.index / file for file in ingestion.staged().values() if file]
        kept = {path: path.stat().st_mtime_ns for path in segments}
        assert kept
        if lost:
            Ingestion.complete(ingestion)
        else:
            again = ingestion.ask("attach", start(ingestion))
            assert again.code == 0, again
        assert ingestion.content() == (2, undisturbed)
        assert {path: path.stat().st_mtime_ns for path in segments} == kept, "a committed segment was written again"


def test_a_run_until_done_takes_as_many_jobs_as_it_needs_while_each_makes_progress(
    before: Ingestion, cluster: VirtualCluster, undisturbed: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Three runs, each on nodes of its own, share the minute that is Slurm's shortest walltime."""

    def begin(name: str, nodes: int) -> ClusterIngestion:
        (tmp_path / name).mkdir()
        made = on_cluster(before, tmp_path / name, cluster, walltime="00:01:00", nodes=nodes)
        request.addfinalizer(made.end)
        made.options = ("--ranks", "2", "--until-done", "--json")
        return made

    detached, attached, idle = begin("detached", 2), begin("attached", 1), begin("idle", 1)
    waits = attached.launch(**held(attached.folder / "held", 6))
    for ingestion in (detached, idle):
        ingestion.options += ("--detach",)
    run = start(detached, **held(detached.folder / "held", 6))
    stuck = start(idle, **held(idle.folder / "held", 0))
    for ingestion in (detached, attached, idle):
        wait_until_held(ingestion.folder / "held", 2)

    out = detached.ask("attach", run, "--json")
    assert out.code == 0, out
    assert re.search(r"Slurm job \d+ reached its walltime of 00:01:00", out.err)
    assert [state["state"] for state in shown(detached, run)] == ["cut short", "done"]
    assert detached.content() == (2, undisturbed)

    out = ended(waits)
    assert out.code == 0, out
    assert len(attached.run_folders()) == 2
    assert attached.content() == (2, undisturbed)

    out = idle.ask("attach", stuck)
    assert out.code == 1, out
    assert "since this one made no progress: 0 of 16 units" in " ".join(out.err.split())
    assert [state["state"] for state in shown(idle, stuck)] == ["cut short", "failed"]
    idle.expect_whole_index()

    wait_for(lambda: jobs(cluster) == "", 10)
    for ingestion in (detached, attached, idle):
        ingestion.expect_nothing_alive(10)


def shown(ingestion: ClusterIngestion, run: str) -> list[dict[str, Any]]:
    """What ``aaflow status`` says of a run and those that went on with it."""
    states: list[dict[str, Any]] = json.loads(ingestion.ask("status", run, "--json").out)["runs"]
    return states


@pytest.mark.parametrize("when", ["pending", "running", "pending, and nobody is left on the login node"])
def test_the_job_of_a_driver_that_was_killed_is_gone_soon(
    ingestion: ClusterIngestion, cluster: VirtualCluster, tmp_path: Path, when: str
) -> None:
    if when != "running":
        cluster.run(["sbatch", "--nodes=1", "--exclusive", "--output=/dev/null", "--wrap=sleep 300"])
    ingestion.options = ("--ranks", "4", "--json")
    command = ingestion.launch(**held(tmp_path / "held", batches=3))
    if when == "running":
        wait_until_held(tmp_path / "held", 4)
    else:
        wait_for(lambda: "aaflow" in jobs(cluster), 60)
        wait_for(lambda: records.engine_job(str(ingestion.run_folder())) is not None, 10)
        assert re.search("aaflow.* PENDING", jobs(cluster))
    for process in ingestion.alive():
        if when not in ("pending", "running") or " run " in command_line(process):
            processes.kill(process)
    command.wait(timeout=10)
    if when not in ("pending", "running"):
        assert re.search("aaflow.* PENDING", jobs(cluster))
        cluster.run(["scancel", "--name=wrap"])  # the job begins
    wait_for(lambda: "aaflow" not in jobs(cluster), 30)
    ingestion.expect_nothing_alive(15)
    ingestion.expect_whole_index()
