"""What moves between nodes over their fabric: what the plan says, and nothing where stages are partitioned alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from measure.corpus import words
from measure.nodes import Ingestion, Shape, ingest, write_records
from virtualcluster import VirtualCluster

pytestmark = [pytest.mark.serial, pytest.mark.timeout(200)]

MEGABYTES = (1, 9)


def write_texts(folder: Path, megabytes: int) -> None:
    for number in range(64):
        (folder / f"{number}.txt").write_text(words((megabytes << 20) // 64, number))


def write_lines(folder: Path, megabytes: int) -> None:
    write_records(folder / "records.jsonl", 0, megabytes)


@pytest.fixture
def both(cluster: VirtualCluster, tmp_path: Path) -> Callable[..., list[Ingestion]]:
    """Ingests a small and a large corpus on two nodes: what MPI and edges say when they start is the same in both."""

    def run(plan: str, write: Callable[[Path, int], None]) -> list[Ingestion]:
        runs = []
        for size in MEGABYTES:
            (docs := tmp_path / f"docs{size}").mkdir()
            write(docs, size)
            runs.append(ingest(cluster, [docs], tmp_path / f"run{size}", plan, Shape(1, 2, 2)))
        return runs

    return run


def test_stages_that_are_partitioned_alike_move_no_rows_between_nodes(both: Callable[..., list[Ingestion]]) -> None:
    small, large = both("streaming", write_texts)
    assert (small.planned, large.planned) == (0, 0)
    assert large.rows - small.rows > 8000
    assert large.moved - small.moved < (8 << 20) / 100


def test_rows_that_move_to_their_owners_are_those_of_the_plan(both: Callable[..., list[Ingestion]]) -> None:
    small, large = both("fused", write_lines)
    assert large.moved - small.moved == pytest.approx(large.planned - small.planned, rel=0.05)
