"""What moves between nodes over their fabric: what the plan says, and nothing where stages are partitioned alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from measure.corpus import words
from measure.nodes import Shape, ingest, write_records
from virtualcluster import VirtualCluster

pytestmark = [pytest.mark.serial, pytest.mark.timeout(200)]

MEGABYTES = (1, 9)


def write_texts(folder: Path, megabytes: int) -> None:
    for number in range(64):
        (folder / f"{number}.txt").write_text(words((megabytes << 20) // 64, number))


def write_lines(folder: Path, megabytes: int) -> None:
    write_records(folder / "records.jsonl", 0, megabytes)


@dataclass(frozen=True)
class Grown:
    """What a large corpus has more than a small one; what MPI and edges say when they start is the same in both.

    Attributes:
        rows: chunks in the index.
        planned: bytes between nodes by the plan.
        moved: bytes over the nodes' fabric.
        beside: bytes over the network that they share with the login node.
    """

    rows: int
    planned: int
    moved: int
    beside: int


@pytest.fixture
def grow(cluster: VirtualCluster, tmp_path: Path) -> Callable[..., Grown]:
    """Ingests a small and a large corpus on two nodes."""

    def run(plan: str, write: Callable[[Path, int], None]) -> Grown:
        runs, beside = [], []
        for size in MEGABYTES:
            (docs := tmp_path / f"docs{size}").mkdir()
            write(docs, size)
            before = sum(cluster.bytes_sent("eth0").values())
            runs.append(ingest(cluster, [docs], tmp_path / f"run{size}", plan, Shape(1, 2, 2)))
            beside.append(sum(cluster.bytes_sent("eth0").values()) - before)
        small, large = runs
        planned, moved = large.planned - small.planned, large.moved - small.moved
        return Grown(large.rows - small.rows, planned, moved, beside[1] - beside[0])

    return run


def test_stages_that_are_partitioned_alike_move_no_rows_between_nodes(grow: Callable[..., Grown]) -> None:
    grown = grow("streaming", write_texts)
    assert grown.rows > 8000
    assert grown.planned == 0
    assert grown.moved < (8 << 20) / 100
    assert grown.beside < (8 << 20) / 100


@pytest.mark.parametrize("plan", ["fused", "streaming"])
def test_rows_that_move_to_their_owners_are_those_of_the_plan_and_go_over_the_interconnect(
    grow: Callable[..., Grown], plan: str
) -> None:
    grown = grow(plan, write_lines)
    assert grown.planned > (8 << 20) / 3
    assert grown.moved == pytest.approx(grown.planned, rel=0.05)
    assert grown.beside < (8 << 20) / 100
