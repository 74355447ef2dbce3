"""Ingestions over the nodes of a virtual Slurm cluster: what a row costs, and what passes between nodes.

The nodes share the cores and the memory of one machine, so that a rank is slower the more of them work at once. Each
run on several nodes therefore has two beside it that work as much at once: as many jobs of one node each, which on
nodes of their own would cost what one of them costs, and one job of as many ranks on a single node.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aaflow.compiler.volumes import bytes_between_nodes
from aaflow.scheduling.placement import Placement
from measure.corpus import words

NODES = (1, 2, 4)
RANKS_PER_NODE = 2
PLANS = {"fused": (), "streaming": ("--no-fuse",)}
#: The fabric that joins the nodes of the virtual cluster, apart from the network of Slurm, Parsl and keepers.
FABRIC = "hsn0"


@dataclass(frozen=True)
class Shape:
    """What runs at once.

    Attributes:
        jobs: that each ingest a corpus of their own.
        nodes: of a job.
        ranks: of each stage of a job.
    """

    jobs: int
    nodes: int
    ranks: int


@dataclass(frozen=True)
class Ingestion:
    """What one or more jobs at once did, all together.

    Attributes:
        plan: ``fused`` or ``streaming``.
        shape: of the jobs.
        rows: chunks in the indexes.
        cpu: CPU seconds of all ranks since each was ready.
        moved: bytes that the nodes sent over the fabric, headers of its packets included.
        planned: bytes between nodes by the plans' edges.
    """

    plan: str
    shape: Shape
    rows: int
    cpu: float
    moved: int
    planned: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def over_nodes(nodes: int) -> Shape:
    """One job over so many nodes."""
    return Shape(1, nodes, nodes * RANKS_PER_NODE)


def separate(nodes: int) -> Shape:
    """As many jobs, of one node each."""
    return Shape(nodes, 1, RANKS_PER_NODE)


def on_one_node(nodes: int) -> Shape:
    """One job of as many ranks, on one node."""
    return Shape(1, 1, nodes * RANKS_PER_NODE)


#: All of them: on one node they are the same.
SHAPES = tuple(dict.fromkeys(shape(nodes) for nodes in NODES for shape in (separate, over_nodes, on_one_node)))


def ingestions(megabytes: int, rounds: int) -> list[Ingestion]:
    """Ingest records by every plan on 1, 2 and 4 nodes, a file of so many MB for each node, in turns."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "cluster"))
    virtual = importlib.import_module("virtualcluster")
    if why := virtual.lacking() or virtual.forbidden():
        raise SystemExit(why)
    runs = []
    with (
        tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as name,
        virtual.VirtualCluster(max(NODES)) as cluster,
    ):
        folder = Path(name)
        (folder / "docs").mkdir()
        files = [folder / "docs" / f"{number}.jsonl" for number in range(max(NODES))]
        for number, file in enumerate(files):
            write_records(file, number * (megabytes << 10), megabytes)
        for number in range(rounds):
            for plan in PLANS:
                for at, shape in enumerate(SHAPES if number % 2 == 0 else SHAPES[::-1]):
                    used = files[: shape.jobs * shape.ranks // RANKS_PER_NODE]
                    runs.append(ingest(cluster, used, folder / f"{number}-{plan}-{at}", plan, shape))
    return runs


def write_records(path: Path, first: int, megabytes: int) -> None:
    """A file of JSON lines of about 1 kB each, by their numbers: every line is a document, which another rank owns."""
    with path.open("w", encoding="ascii") as file:
        for number in range(first, first + (megabytes << 10)):
            file.write(json.dumps({"id": str(number), "text": words(970, number)}) + "\n")


def ingest(cluster: Any, docs: Sequence[Path], folder: Path, plan: str, shape: Shape) -> Ingestion:
    """The jobs of a shape, from the login node of a ``VirtualCluster``; each gets as many of the files."""
    folder.mkdir()
    each = len(docs) // shape.jobs
    parts = [docs[job * each : (job + 1) * each] for job in range(shape.jobs)]
    cluster.wait_for_idle(60)
    before = sum(cluster.bytes_sent(FABRIC).values())
    with ThreadPoolExecutor(shape.jobs) as pool:
        done = [pool.submit(_job, cluster, part, folder / str(job), plan, shape) for job, part in enumerate(parts)]
        jobs = [job.result() for job in done]
    moved = sum(cluster.bytes_sent(FABRIC).values()) - before
    rows, cpu, planned = (sum(values) for values in zip(*jobs, strict=True))
    return Ingestion(plan, shape, int(rows), cpu, moved, int(planned))


def _job(cluster: Any, docs: Sequence[Path], folder: Path, plan: str, shape: Shape) -> tuple[int, float, int]:
    """Rows, CPU seconds and planned bytes between nodes of one job."""
    folder.mkdir()
    changes = {"nodes": str(shape.nodes), "interconnect": f'"{FABRIC}"', "encrypted_edges": "false"}
    site = cluster.site_file(folder / "virtual.toml", folder / "runs", **changes)
    command = [sys.executable, "-m", "aaflow.cli.main", "ingest", *map(str, docs), "--index", str(folder / "index")]
    command += ["--site", str(site), "--ranks", str(shape.ranks), "--embedder", "hash", "--json", *PLANS[plan]]
    environment = {**os.environ, **cluster.environment}
    done = subprocess.run(
        cluster.on("login", command, folder), env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    placement = Placement.load(Path(said["run_folder"]))
    results = [json.loads(path.read_text()) for path in Path(said["run_folder"], "results").glob("*.json")]
    planned = sum(bytes_between_nodes(placement.plan, edge, placement.slots) for edge in placement.plan.edges)
    return said["chunks"], sum(rank["cpu"] for rank in results), planned
