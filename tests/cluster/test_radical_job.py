"""RADICAL-Pilot from the login node: its pilot is a job of Slurm, made from the site file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from clusteringestion import ClusterIngestion
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


def test_a_job_of_radical_pilot_that_is_cancelled_says_so_and_counts(
    radical_turn: None, ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str, tmp_path: Path
) -> None:
    ingestion.pilot, ingestion.nodes, ingestion.options = "radical", 2, ("--ranks", "4", "--json")
    held = tmp_path / "held"
    held.mkdir()
    # A task there has the environment of its job.
    ingestion.apply = f'function = "fault_operators:hold_in"\noptions = {{ folder = "{held}", batches = 3 }}'
    command = ingestion.launch()
    wait_for(lambda: len(list(held.iterdir())) == 4 or command.poll() is not None, 120)
    assert command.poll() is None, command.communicate()
    cluster.run(["scancel", "--user=root"])
    out, err = command.communicate(timeout=90)
    assert (command.returncode, out) == (1, "")
    assert re.search(r"Slurm job \d+ was cancelled before stage .* was done", err), err
    ingestion.expect_nothing_alive(30)
    ingestion.expect_whole_index()
    segments = [ingestion.index / file for file in ingestion.staged().values() if file]
    kept = {path: path.stat().st_mtime_ns for path in segments}
    assert kept
    shutil.rmtree(held)
    Ingestion.complete(ingestion)
    assert ingestion.content() == (2, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in segments} == kept, "a committed segment was written again"
