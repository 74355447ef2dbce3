"""Ingestions over the nodes of a virtual Slurm cluster: what a row costs, and what passes between nodes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
class Ingestion:
    """One run.

    Attributes:
        plan: ``fused`` or ``streaming``.
        nodes: of the job.
        ranks: of each stage.
        rows: chunks in the index.
        cpu: CPU seconds of all ranks since each was ready.
        moved: bytes that the nodes sent over the fabric, headers of its packets included.
        planned: bytes between nodes by the plan's edges.
    """

    plan: str
    nodes: int
    ranks: int
    rows: int
    cpu: float
    moved: int
    planned: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def ingestions(megabytes: int, rounds: int) -> list[Ingestion]:
    """Ingest records by every plan on 1, 2 and 4 nodes, a file of so many MB for each node, in turns.

    Beside each run on several nodes is one of the same corpus and as many ranks on a single node.
    """
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
                shapes = [(nodes, RANKS_PER_NODE) for nodes in NODES] + [
                    (1, RANKS_PER_NODE * n) for n in NODES if n > 1
                ]
                for nodes, ranks in shapes if number % 2 == 0 else reversed(shapes):
                    used = files[: nodes * ranks // RANKS_PER_NODE]
                    runs.append(ingest(cluster, used, folder / f"{number}-{plan}-{nodes}-{ranks}", plan, nodes, ranks))
    return runs


def write_records(path: Path, first: int, megabytes: int) -> None:
    """A file of JSON lines of about 1 kB each, by their numbers: every line is a document, which another rank owns."""
    with path.open("w", encoding="ascii") as file:
        for number in range(first, first + (megabytes << 10)):
            file.write(json.dumps({"id": str(number), "text": words(970, number)}) + "\n")


def ingest(
    cluster: Any, docs: Sequence[Path], folder: Path, plan: str, nodes: int, ranks_per_node: int = RANKS_PER_NODE
) -> Ingestion:
    """One run, from the login node of a ``VirtualCluster``."""
    folder.mkdir()
    changes = {"nodes": str(nodes), "interconnect": f'"{FABRIC}"', "encrypted_edges": "false"}
    site = cluster.site_file(folder / "virtual.toml", folder / "runs", **changes)
    ranks = nodes * ranks_per_node
    command = [sys.executable, "-m", "aaflow.cli.main", "ingest", *map(str, docs), "--index", str(folder / "index")]
    command += ["--site", str(site), "--ranks", str(ranks), "--embedder", "hash", "--json", *PLANS[plan]]
    cluster.wait_for_idle(60)
    before = sum(cluster.bytes_sent(FABRIC).values())
    environment = {**os.environ, **cluster.environment}
    done = subprocess.run(
        cluster.on("login", command, folder), env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    moved = sum(cluster.bytes_sent(FABRIC).values()) - before
    said = json.loads(done.stdout.splitlines()[-1])
    placement = Placement.load(Path(said["run_folder"]))
    results = [json.loads(path.read_text()) for path in Path(said["run_folder"], "results").glob("*.json")]
    planned = sum(bytes_between_nodes(placement.plan, edge, placement.slots) for edge in placement.plan.edges)
    return Ingestion(plan, nodes, ranks, said["chunks"], sum(rank["cpu"] for rank in results), moved, planned)
