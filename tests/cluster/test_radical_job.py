"""RADICAL-Pilot from the login node: its pilot is a job of Slurm, made from the site file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from clusteringestion import ClusterIngestion, on_cluster
from ingestions import Ingestion, wait_for
from virtualcluster import VirtualCluster

pytestmark = [pytest.mark.serial, pytest.mark.timeout(900)]


def test_two_nodes_of_two_ranks_as_a_task_of_radical_pilot(
    radical_turn: None, ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str
) -> None:
    ingestion.pilot, ingestion.nodes, ingestion.options = "radical", 2, ("--ranks", "4")
    ingestion.scheduler_options = "#SBATCH --comment=two-nodes"
    ended = ingestion.run()
    assert ended.code == 0, ended
    said = " ".join(ended.err.split())
    assert re.search(r"Slurm job \d+ runs on node\[\d-\d\] RADICAL-Pilot's agent is up .*done in", said)
    (job,) = re.findall(r"Slurm job (\d+) runs", said)
    assert "Comment=two-nodes" in cluster.run(["scontrol", "show", "job", job]).stdout
    assert ingestion.content() == (2, undisturbed)
    ranks = sorted((ingestion.run_folder() / "ranks").glob("*.json"))
    assert len({json.loads(path.read_text())["host"] for path in ranks}) == 2
    ingestion.expect_nothing_alive(10)
    wait_for(lambda: not cluster.run(["squeue", "--noheader"]).stdout.strip(), 20)


def test_a_detached_run_whose_stages_stream_over_two_nodes(
    radical_turn: None, ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str
) -> None:
    ingestion.pilot, ingestion.nodes = "radical", 2
    ingestion.options = ("--ranks", "2", "--no-fuse", "--detach", "--json")
    started = ingestion.run()
    assert started.code == 0, started
    attached = ingestion.ask("attach", json.loads(started.out)["run"], "--json")
    assert attached.code == 0, attached
    assert ingestion.content() == (2, undisturbed)
    hosts: dict[str, set[str]] = {}
    for path in (ingestion.run_folder() / "ranks").glob("*.json"):
        hosts.setdefault(path.name.split(".")[0], set()).add(json.loads(path.read_text())["host"])
    assert len(hosts) >= 4
    assert [len(each) for each in hosts.values()] == [2] * len(hosts)
    ingestion.expect_nothing_alive(10)
    wait_for(lambda: not cluster.run(["squeue", "--noheader"]).stdout.strip(), 20)


Disturb = Callable[[VirtualCluster], object]


def cancel(cluster: VirtualCluster) -> None:
    cluster.run(["scancel", "--user=root"])


def lose_a_node(cluster: VirtualCluster) -> None:
    """The second one of the two that the job has."""
    (node,) = cluster.run(["squeue", "--noheader", "--format=%N"]).stdout.split()
    cluster.lose(cluster.run(["scontrol", "show", "hostnames", node]).stdout.split()[1])


def wait(cluster: VirtualCluster) -> None:
    """Nothing but the walltime."""


@pytest.mark.parametrize(
    ("disturb", "says"),
    [
        (cancel, r"Slurm job \d+ was cancelled before stage .* was done"),
        (wait, r"Slurm job \d+ reached its walltime of 00:03:00 before stage .* was done"),
        (lose_a_node, r"its keeper on node\d was silent for 6 s: its node or the way there is lost"),
    ],
)
def test_a_job_of_radical_pilot_that_is_cut_says_why_and_counts(
    radical_turn: None,
    before: Ingestion,
    possible: None,
    tmp_path: Path,
    undisturbed: str,
    disturb: Disturb,
    says: str,
    request: pytest.FixtureRequest,
) -> None:
    with VirtualCluster() as cluster:
        ingestion = on_cluster(before, tmp_path, cluster, walltime="00:03:00" if disturb is wait else "00:10:00")
        request.addfinalizer(ingestion.end)
        ingestion.pilot, ingestion.nodes, ingestion.options = "radical", 2, ("--ranks", "4", "--json")
        held = tmp_path / "held"
        held.mkdir()
        # A task there has the environment of its job.
        ingestion.apply = f'function = "fault_operators:hold_in"\noptions = {{ folder = "{held}", batches = 3 }}'
        command = ingestion.launch()
        wait_for(lambda: len(list(held.iterdir())) == 4 or command.poll() is not None, 150)
        assert command.poll() is None, command.communicate()
        wait_for(ingestion.staged)
        disturb(cluster)
        out, err = command.communicate(timeout=240)
        assert (command.returncode, out) == (1, "")
        assert re.search(says, err), err
        ingestion.expect_nothing_alive(30)
        ingestion.expect_whole_index()
        segments = [ingestion.index / file for file in ingestion.staged().values() if file]
        kept = {path: path.stat().st_mtime_ns for path in segments}
        assert kept
        shutil.rmtree(held)
        Ingestion.complete(ingestion)
        assert ingestion.content() == (2, undisturbed)
        assert {path: path.stat().st_mtime_ns for path in segments} == kept, "a committed segment was written again"
