from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from aaflow.compiler.compile import compile_workflow
from aaflow.compiler.plan import Plan
from aaflow.dataplane.communicator import SerialCommunicator
from aaflow.errors import EmbedderMismatch
from aaflow.index import IndexSpec, Stage, Writer
from aaflow.operators.operator import Item, Pattern
from aaflow.runtime.chain import DropCommitted, RankContext, chain_of
from aaflow.runtime.engine import run_chain
from aaflow.runtime.trace import OperatorTrace
from aaflow.scheduling.site import Node, Site
from aaflow.workflow import Workflow

SITE = Site(
    name="test", description="", nodes=1, node=Node((0, 1, 2), 1 << 30, None), oversubscribe=False, scheduler="local",
    launcher="mpiexec", launcher_options=(), communicator="mpi", pilot="local",
)  # fmt: skip


def keep(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


@pytest.fixture
def ingestion(tmp_path: Path) -> Callable[..., Plan]:
    """Plans an ingestion of two documents and some records."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("some text")
    (docs / "b.txt").write_text("some more text")

    def make(records: int = 0, ranks: int = 1, fuse: bool = True) -> Plan:
        if records:
            (docs / "r.jsonl").write_text("".join(f'{{"text": "record {n}"}}\n' for n in range(records)))
        workflow = Workflow()
        workflow.load(docs).transform().embed("hash", dimension=8).upsert(tmp_path / "index", partitions=4)
        return compile_workflow(workflow, site=SITE, ranks=ranks, fuse=fuse)

    return make


def names(plan: Plan, epoch: int | None, stage: int = 0) -> list[str]:
    context = RankContext(plan, plan.stages[stage], SerialCommunicator(), epoch, "cpu")
    return [name for name, _ in chain_of(context)]


def run(plan: Plan, epoch: int) -> dict[str, int]:
    context = RankContext(plan, plan.stages[0], SerialCommunicator(), epoch, "cpu")
    traced = [(OperatorTrace(name), function) for name, function in chain_of(context)]
    for _ in run_chain(traced, iter(()), 2):
        pass
    return {trace.operator: trace.rows for trace, _ in traced}


def writer(plan: Plan) -> Writer:
    assert plan.index is not None
    return Writer.acquire(plan.index["path"], IndexSpec.from_json(plan.index["spec"]), owner="test")


def test_rows_are_shuffled_only_where_records_are(ingestion: Callable[..., Plan]) -> None:
    plan = ingestion()
    with writer(plan) as held:
        assert names(plan, held.epoch) == ["load", "transform", "embed", "upsert"]
    plan = ingestion(records=5, ranks=3)
    with writer(plan) as held:
        assert names(plan, held.epoch) == ["load", "transform", "shuffle", "embed", "upsert"]


def test_what_a_cut_run_committed_is_not_done_again(ingestion: Callable[..., Plan]) -> None:
    plan = ingestion(records=50)
    with writer(plan) as held:
        first = run(plan, held.epoch)
        assert first["load"] == first["upsert"] == 52
    with writer(plan) as held:
        stage = Stage(held.path, held.epoch, plan.work_key)
        assert stage.committed() == {(0, partition) for partition in range(4)}
        again = run(plan, held.epoch)
        assert again["load"] == again["embed"] == 0
        done = next((held.path / "staging" / plan.work_key).glob("*-00002.json"))
        done.unlink()
        some = run(plan, held.epoch)
        assert some["load"] >= some["transform"] > some["embed"] > 0
        assert stage.committed() == {(0, partition) for partition in range(4)}


def test_documents_that_the_index_holds_are_looked_up_once_it_holds_any(ingestion: Callable[..., Plan]) -> None:
    plan = ingestion()
    with writer(plan) as held:
        run(plan, held.epoch)
        held.publish(plan.work_key, sources=plan.tables["sources"])
    again = ingestion(records=3)
    with writer(again) as held:
        assert names(again, held.epoch)[:2] == ["load", "unchanged"]


def test_a_rank_refuses_another_model_than_the_one_of_the_plan(ingestion: Callable[..., Plan]) -> None:
    from dataclasses import replace

    plan = ingestion()
    assert plan.index is not None
    spec = {**plan.index["spec"], "embedder": {"model": "hash", "version": "of another node"}}
    other = replace(plan, index={**plan.index, "spec": spec})
    with writer(other) as held, pytest.raises(EmbedderMismatch, match="of another node"):
        run(other, held.epoch)


def test_stages_know_who_reads_them(ingestion: Callable[..., Plan]) -> None:
    plan = ingestion(fuse=False)
    assert [reader.name for reader in plan.readers(plan.stages[0])] == ["transform"]
    assert plan.readers(plan.stages[-1]) == []
    with writer(plan) as held:
        assert [names(plan, held.epoch, stage) for stage in range(4)] == [
            ["load"],
            ["transform"],
            ["embed"],
            ["upsert"],
        ]


def test_units_that_are_committed_are_dropped() -> None:
    items = [Item(0, 1), Item(0, 2), Item(1, 1)]
    assert list(DropCommitted({(0, 1), (1, 2)})(iter(items))) == [items[1], items[2]]


def test_a_users_operator_after_a_shuffle_gets_whole_units(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("".join(f'{{"text": "record {n}"}}\n' for n in range(5000)))
    workflow = Workflow()
    workflow.load(tmp_path / "r.jsonl").apply(keep, pattern=Pattern.SHUFFLE_COMPUTE)
    plan = compile_workflow(workflow, site=SITE, ranks=1)
    context = RankContext(plan, plan.stages[0], SerialCommunicator(), None, "cpu")
    functions = [(OperatorTrace(name), function) for name, function in chain_of(context)]
    units = [item.partition for item in run_chain(functions, iter(()), 2) if item.rows is not None]
    assert len(units) == len(set(units)) == 64
