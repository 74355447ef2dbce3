"""The bytes that a plan expects on its edges are those that its operators give, and those that leave a node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from measure.corpus import words

import aaflow
from aaflow.compiler.plan import Edge, Plan
from aaflow.compiler.volumes import bytes_between_nodes
from aaflow.operators.load import Load
from aaflow.operators.readers import LoadOptions
from aaflow.operators.transform import Transform, TransformOptions
from aaflow.scheduling.site import Site
from aaflow.workflow import Workflow

MakeSite = Callable[..., Site]


def write_texts(folder: Path) -> None:
    for number in range(20):
        (folder / f"chapter-{number:03d}.txt").write_text(words(40_000, number))


def write_records(folder: Path) -> None:
    lines = (json.dumps({"id": str(number), "text": words(970, number)}) for number in range(800))
    (folder / "records.jsonl").write_text("\n".join(lines))


def streaming_plan(folder: Path, site: Site, ranks: int) -> Plan:
    workflow = Workflow()
    workflow.load(folder).transform().embed("hash", dimension=64).upsert(folder.parent / "index", partitions=16)
    return aaflow.compile(workflow, site=site, ranks=ranks, fuse=False)


@pytest.mark.parametrize("write", [write_texts, write_records])
def test_an_edge_has_the_bytes_that_pass_it(tmp_path: Path, site: MakeSite, write: Callable[[Path], None]) -> None:
    (folder := tmp_path / "corpus").mkdir()
    write(folder)
    plan = streaming_plan(folder, site(), 1)
    loaded = list(Load(LoadOptions(partitions=16), plan.tables["listing"])(iter(())))
    chunked = [item.rows for item in Transform(TransformOptions())(iter(loaded)) if item.rows is not None]
    documents = sum(item.rows.nbytes for item in loaded if item.rows is not None)
    chunks = sum(rows.nbytes for rows in chunked)
    vectors = sum(rows.num_rows for rows in chunked) * 64 * 4
    assert [edge.bytes for edge in plan.edges] == pytest.approx([documents, chunks, chunks + vectors], rel=0.05)


def between(plan: Plan) -> list[float]:
    return [bytes_between_nodes(plan, edge, plan.slots) / edge.bytes for edge in plan.edges]


def test_between_nodes_go_the_rows_whose_owner_is_elsewhere_and_no_others(tmp_path: Path, site: MakeSite) -> None:
    (folder := tmp_path / "corpus").mkdir()
    write_texts(folder)
    assert between(streaming_plan(folder, site(nodes=4), 4)) == [0, 0, 0]
    write_records(folder)
    owners = between(streaming_plan(folder, site(nodes=4), 4))
    assert owners == pytest.approx([0, 3 / 4, 0], abs=1e-6)


def test_an_edge_of_a_queue_leaves_no_node(tmp_path: Path, site: MakeSite) -> None:
    (folder := tmp_path / "corpus").mkdir()
    write_texts(folder)
    plan = streaming_plan(folder, site(), 1)
    assert bytes_between_nodes(plan, Edge("load", "transform", "queue", "same", 3, 0, 0), plan.slots) == 0
