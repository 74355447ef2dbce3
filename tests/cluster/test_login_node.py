"""From the login node, outside of any job: an ingestion on all nodes of the cluster, and what may end it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clusteringestion import RANKS, ClusterIngestion, on_cluster
from ingestions import Ingestion, wait_for
from virtualcluster import VirtualCluster

import parsl_workflow
from aaflow.index import open_index
from aaflow.scheduling.placement import Placement

# A run here starts up to 16 ranks on the cores of one machine.
pytestmark = [pytest.mark.serial, pytest.mark.timeout(400)]


def test_four_nodes_of_two_ranks_after_a_wait_in_the_queue(
    ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str
) -> None:
    ingestion.options = ("--ranks", str(RANKS))
    cluster.run(["sbatch", "--nodes=1", "--exclusive", "--output=/dev/null", "--wrap=sleep 30"])
    ended = ingestion.run()
    assert ended.code == 0, ended
    said = " ".join(ended.err.split())
    assert re.search(r"Slurm job \d+ waits in partition batch .*Slurm job \d+ runs on node\[0-3\] done in", said)
    assert ingestion.content() == (2, undisturbed)
    placement = Placement.load(ingestion.run_folder())
    (slots,) = placement.slots.values()
    assert [slot.node for slot in slots] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert hosts(ingestion) == sorted(cluster.nodes * 2)
    ingestion.expect_nothing_alive(10)


def test_stages_that_stream_to_each_other_share_the_nodes(
    ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str
) -> None:
    ingestion.options = ("--ranks", "4", "--no-fuse", "--json")
    ended = ingestion.run()
    assert ended.code == 0, ended
    assert ingestion.content() == (2, undisturbed)
    assert len(Placement.load(ingestion.run_folder()).slots) >= 4


def test_mpiexec_starts_ranks_on_several_nodes(
    ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str
) -> None:
    ingestion.nodes, ingestion.launcher, ingestion.options = 2, "mpiexec", ("--ranks", "4", "--json")
    ended = ingestion.run()
    assert ended.code == 0, ended
    assert ingestion.content() == (2, undisturbed)
    assert len(hosts(ingestion)) == 4
    assert len(set(hosts(ingestion))) == 2
    ingestion.expect_nothing_alive(10)
    assert [cluster.run(["ls", "/dev/shm"], node).stdout for node in cluster.nodes] == [""] * 4


def hosts(ingestion: ClusterIngestion) -> list[str]:
    """The nodes of the ranks of a run."""
    ranks = sorted((ingestion.run_folder() / "ranks").glob("*.json"))
    return sorted(json.loads(path.read_text())["host"] for path in ranks)


def test_a_parsl_program_runs_from_the_login_node_by_the_name_of_the_site(
    cluster: VirtualCluster, tmp_path: Path
) -> None:
    cluster.site_file(tmp_path / "virtual.toml", tmp_path / "runs", nodes="2")
    command = [sys.executable, parsl_workflow.__file__, str(tmp_path / "program"), "virtual"]
    ended = cluster.run(command, env={**os.environ, "AAFLOW_SITES": str(tmp_path)}, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "source: ball-11.txt" in ended.stdout
    with open_index(tmp_path / "program" / "index") as index:
        assert (index.info().documents, index.info().generation) == (12, 3)


#: Tranches are of 64 MiB, whatever the file.
BIG_FILE = {"split_bytes": 8 << 20, "size": 4000, "window": 512}


def test_a_job_that_was_cut_inside_one_big_file_counts(
    cluster: VirtualCluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = " ".join(f"word{n}" for n in range(2300))
    for folder in ("docs", "cut", "whole", "held"):
        (tmp_path / folder).mkdir()
    with (tmp_path / "docs" / "one.jsonl").open("w", encoding="ascii") as file:
        file.writelines(json.dumps({"id": str(n), "text": f"Record {n}. {words}"}) + "\n" for n in range(9000))
    whole = Ingestion(tmp_path / "whole", tmp_path / "docs", **BIG_FILE)
    request.addfinalizer(whole.end)
    whole.complete()
    ingestion = ClusterIngestion(tmp_path / "cut", tmp_path / "docs", cluster=cluster, nodes=2, **BIG_FILE)
    request.addfinalizer(ingestion.end)
    ingestion.options = ("--ranks", "4", "--json")
    command = ingestion.launch(FAULTS_HOLD=str(tmp_path / "held"), FAULTS_BATCHES="12")
    wait_for(lambda: len(list((tmp_path / "held").iterdir())) == 4 or command.poll() is not None, 90)
    wait_for(ingestion.staged)  # the tranches before
    cluster.run(["scancel", "--user=root"])
    _, err = command.communicate(timeout=60)
    assert re.search(r"Slurm job \d+ was cancelled before stage .* was done", err), err
    ingestion.expect_nothing_alive(30)
    segments = [ingestion.index / file for file in ingestion.staged().values() if file]
    kept = {path: path.stat().st_mtime_ns for path in segments}
    assert kept
    again = ingestion.run()
    assert again.code == 0, again
    assert ingestion.content() == whole.content()
    assert {path: path.stat().st_mtime_ns for path in segments} == kept, "a committed segment was written again"


Disturb = Callable[[ClusterIngestion, VirtualCluster], None]


def cancel(ingestion: ClusterIngestion, cluster: VirtualCluster) -> None:
    cluster.run(["scancel", "--user=root"])


def lose_a_node(ingestion: ClusterIngestion, cluster: VirtualCluster) -> None:
    cluster.lose("node2")


def lose_the_first_node(ingestion: ClusterIngestion, cluster: VirtualCluster) -> None:
    cluster.lose("node0")


def wait(ingestion: ClusterIngestion, cluster: VirtualCluster) -> None:
    """Nothing but the walltime."""


@pytest.mark.parametrize(
    ("disturb", "says"),
    [
        (cancel, r"Slurm job \d+ was cancelled before stage .* was done"),
        (wait, r"Slurm job \d+ reached its walltime of 00:01:00 before stage .* was done"),
        (lose_a_node, r"its keeper on node2 was silent for 6 s: its node or the way there is lost"),
        (lose_the_first_node, r"its keeper on node0 was silent for 6 s: its node or the way there is lost"),
    ],
)
def test_a_run_cut_short_says_why_and_the_index_is_whole(
    before: Ingestion,
    possible: None,
    tmp_path: Path,
    undisturbed: str,
    disturb: Disturb,
    says: str,
    request: pytest.FixtureRequest,
) -> None:
    with VirtualCluster() as cluster:
        ingestion = on_cluster(before, tmp_path, cluster)
        request.addfinalizer(ingestion.end)
        if disturb is wait:
            ingestion.walltime = "00:01:00"
        held = tmp_path / "held"
        held.mkdir()
        ingestion.options = ("--ranks", "4", "--json")
        command = ingestion.launch(FAULTS_HOLD=str(held), FAULTS_BATCHES="3")
        wait_for(lambda: len(list(held.iterdir())) == 4 or command.poll() is not None, 90)
        assert command.poll() is None, command.communicate()
        wait_for(ingestion.staged)
        disturb(ingestion, cluster)
        out, err = command.communicate(timeout=180)
        print(err)
        assert (command.returncode, out) == (1, "")
        assert re.search(says, err), err
        ingestion.expect_nothing_alive(30)
        if disturb in (cancel, wait):
            wait_for(lambda: not any(cluster.run(["ls", "/dev/shm"], node).stdout for node in cluster.nodes), 30)
        ingestion.expect_whole_index()
        segments = [ingestion.index / file for file in ingestion.staged().values() if file]
        kept = {path: path.stat().st_mtime_ns for path in segments}
        if disturb in (cancel, wait):
            ingestion.walltime = "00:10:00"
            again = ingestion.run()
            assert again.code == 0, again
        else:  # the cluster has too few nodes now: this machine goes on with what it left
            Ingestion.complete(ingestion)
        assert ingestion.content() == (2, undisturbed)
        assert {path: path.stat().st_mtime_ns for path in segments} == kept, "a committed segment was written again"
