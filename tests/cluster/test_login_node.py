"""From the login node, outside of any job: an ingestion on all nodes of the cluster, and what may end it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ingestions import OLD, Ended, Ingestion, copy_of, wait_for, write_documents
from virtualcluster import VirtualCluster

from aaflow.index import open_index
from aaflow.scheduling.placement import Placement

# A run here starts up to 16 ranks on the cores of one machine.
pytestmark = [pytest.mark.serial, pytest.mark.timeout(400)]

RANKS = 8
ALL = 200


@dataclass
class ClusterIngestion(Ingestion):
    """An ingestion whose command runs on the login node of a cluster."""

    cluster: VirtualCluster | None = None
    options: tuple[str, ...] = ("--ranks", str(RANKS), "--json")
    walltime: str = "00:10:00"

    def command(self, pilot: str) -> list[str]:
        given = super().command(pilot)
        if pilot == "local":
            return given
        assert self.cluster is not None
        site = self.cluster.site_file(
            self.folder / "virtual.toml", self.folder / "runs", self.walltime, interconnect='"hsn0"'
        )
        workflow = given[: given.index("--pilot")]
        return self.cluster.on("login", [*workflow, "--site", str(site), *self.options], self.folder)

    def launch(self, **environment: str) -> subprocess.Popen[str]:
        assert self.cluster is not None
        return self.start(self.command("parsl"), **self.cluster.environment, **environment)

    def run(self, pilot: str = "parsl") -> Ended:
        process = self.launch()
        out, err = process.communicate(timeout=350)
        return Ended(process.returncode, out, err)

    def run_folder(self) -> Path:
        return self.run_folders()[-1]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingestion]:
    """An index at generation 1, made on this machine, whose corpus has since grown."""
    folder = tmp_path_factory.mktemp("before")
    ingestion = Ingestion(folder, folder / "docs")
    write_documents(ingestion.docs, range(OLD), edition=1)
    ingestion.complete()
    write_documents(ingestion.docs, range(OLD // 2, ALL), edition=2)
    yield ingestion
    ingestion.end()


@pytest.fixture(scope="module")
def undisturbed(before: Ingestion, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the index that this machine makes of the corpus."""
    ingestion = copy_of(before, tmp_path_factory.mktemp("undisturbed"))
    ingestion.complete()
    _, digest = ingestion.content()
    ingestion.end()
    return digest


@pytest.fixture
def ingestion(before: Ingestion, cluster: VirtualCluster, tmp_path: Path) -> Iterator[ClusterIngestion]:
    copied = copy_of(before, tmp_path)
    made = ClusterIngestion(tmp_path, before.docs, copied.apply, copied.token, copied.temporary, cluster)
    yield made
    made.end()


def test_four_nodes_of_two_ranks_after_a_wait_in_the_queue(
    ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str
) -> None:
    ingestion.options = ("--ranks", str(RANKS))
    cluster.run(["sbatch", "--nodes=1", "--exclusive", "--output=/dev/null", "--wrap=sleep 12"])
    ended = ingestion.run()
    assert ended.code == 0, ended
    said = " ".join(ended.err.split())
    assert re.search(r"Slurm job \d+ waits in partition batch .*Slurm job \d+ runs on node\[0-3\] done in", said)
    assert ingestion.content() == (2, undisturbed)
    placement = Placement.load(ingestion.run_folder())
    (slots,) = placement.slots.values()
    assert [slot.node for slot in slots] == [0, 0, 1, 1, 2, 2, 3, 3]
    hosts = [json.loads(path.read_text())["host"] for path in sorted((ingestion.run_folder() / "ranks").glob("*.json"))]
    assert sorted(hosts) == sorted(cluster.nodes * 2)
    expect_nothing_alive(ingestion, 10)


def test_stages_that_stream_to_each_other_share_the_nodes(
    ingestion: ClusterIngestion, cluster: VirtualCluster, undisturbed: str
) -> None:
    ingestion.options = ("--ranks", "4", "--no-fuse", "--json")
    ended = ingestion.run()
    assert ended.code == 0, ended
    assert ingestion.content() == (2, undisturbed)
    assert len(Placement.load(ingestion.run_folder()).slots) >= 4


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
    before: Ingestion, possible: None, tmp_path: Path, undisturbed: str, disturb: Disturb, says: str
) -> None:
    with VirtualCluster() as cluster:
        copied = copy_of(before, tmp_path)
        ingestion = ClusterIngestion(tmp_path, before.docs, copied.apply, copied.token, copied.temporary, cluster)
        if disturb is wait:
            ingestion.walltime = "00:01:00"
        held = tmp_path / "held"
        held.mkdir()
        ingestion.options = ("--ranks", "4", "--json")
        command = ingestion.launch(FAULTS_HOLD=str(held), FAULTS_BATCHES="3")
        wait_for(lambda: len(list(held.iterdir())) == 4 or command.poll() is not None, 90)
        assert command.poll() is None, command.communicate()
        disturb(ingestion, cluster)
        out, err = command.communicate(timeout=180)
        print(err)
        assert (command.returncode, out) == (1, "")
        assert re.search(says, err), err
        expect_nothing_alive(ingestion, 30)
        with open_index(ingestion.index) as index:
            assert index.info().generation == 1
            # What a killed rank was writing stays until the next writer removes it, and is no fault of the index.
            assert [line for line in index.verify() if not line.endswith("the next writer removes it")] == []
        segments = [ingestion.index / file for file in ingestion.staged().values() if file]
        kept = {path: path.stat().st_mtime_ns for path in segments}
        # The cluster has lost a node or not: this machine goes on with what it left.
        Ingestion.complete(ingestion)
        assert ingestion.content() == (2, undisturbed)
        assert {path: path.stat().st_mtime_ns for path in segments} == kept, "a committed segment was written again"
    ingestion.end()


def expect_nothing_alive(ingestion: Ingestion, seconds: float) -> None:
    wait_for(lambda: not ingestion.alive(), seconds)
