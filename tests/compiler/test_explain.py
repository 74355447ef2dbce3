from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import aaflow
from aaflow.compiler.compile import compile_workflow
from aaflow.compiler.explain import explain
from aaflow.scheduling.site import Site
from aaflow.workflow import Workflow

MakeSite = Callable[..., Site]
Ingestion = Callable[..., Workflow]


def test_a_plan_explains_itself(records: Path, site: MakeSite, ingestion: Ingestion, tmp_path: Path) -> None:
    there = site(cores=4)
    text = aaflow.compile(ingestion(records), site=there, ranks=2).explain()
    for word in ("load", "transform", "embed", "upsert"):
        assert word in text
    for pattern in ("embarrassingly-parallel", "shuffle-reduce"):
        assert pattern in text
    for domain in ("cpu-partition", "batch-worker", "batch-write"):
        assert domain in text
    assert "8 partitions" in text
    assert "2048" in text
    assert "as read" in text
    for primitive in ("queue", "mpi-shuffle"):
        assert primitive in text
    assert str(tmp_path / "index") in text.replace("\n", "")
    assert "13 split(s)" in text


def test_the_slot_of_every_rank_is_listed(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = aaflow.compile(ingestion(docs), site=site(cores=4, nodes=2), ranks=4)
    rows = [line.split() for line in plan.explain().splitlines()]
    slots = [row for row in rows if any(word == "0,1" for word in row) or any(word == "2,3" for word in row)]
    assert len(slots) == 4
    assert "…" not in plan.explain()


def test_nothing_of_a_plan_is_cut_off_where_the_terminal_is_narrow(
    docs: Path, site: MakeSite, ingestion: Ingestion
) -> None:
    plan = aaflow.compile(ingestion(docs), site=site(cores=8), ranks=2, fuse=False)
    out = io.StringIO()
    Console(file=out, width=80).print(explain(plan, plan.slots))
    assert "…" not in out.getvalue()
    assert "slots for cpu-partition" in out.getvalue()


def test_an_accelerator_is_named_by_what_makes_it_visible(docs: Path, site: MakeSite, tmp_path: Path) -> None:
    workflow = Workflow()
    workflow.load(docs).transform().embed("all-MiniLM-L6-v2").upsert(tmp_path / "index")
    text = aaflow.compile(workflow, site=site(cores=8, accelerators=2), ranks=2).explain()
    assert "CUDA_VISIBLE_DEVICES=0" in text
    assert "CUDA_VISIBLE_DEVICES=1" in text
    assert "shared memory" in text
    assert "2 x 4 x 8 MiB" in text


def test_ranks_that_share_cores_are_told(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    crowded = replace(site(cores=2), oversubscribe=True)
    assert "oversubscribed" in aaflow.compile(ingestion(docs), site=crowded, ranks=3).explain()
    assert "oversubscribed" not in aaflow.compile(ingestion(docs), site=crowded, ranks=2).explain()


def test_a_plan_that_was_not_placed_shows_no_slots(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    assert "Slots" not in compile_workflow(ingestion(docs), site=site(), ranks=2).explain()
