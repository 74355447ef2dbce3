from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import aaflow
from aaflow import schema
from aaflow.compiler.compile import compile_workflow
from aaflow.dataplane.communicator import Communicator, SerialCommunicator
from aaflow.errors import EmbedderMismatch
from aaflow.index import Index, IndexSpec, Writer, deal_partitions, merge_hits, open_index
from aaflow.operators.embedders import make_embedder
from aaflow.operators.operator import Item
from aaflow.operators.retrieve import Queries, Retrieve, embed_queries, query_batch, search, vectors_of
from aaflow.retrieval import ask_index
from aaflow.runtime.chain import RankContext, chain_of
from aaflow.runtime.engine import run_chain
from aaflow.runtime.trace import OperatorTrace
from aaflow.scheduling.sitefile import load_site

TEXTS = [f"passage {n} about subject {n % 7} and {['red', 'green', 'blue'][n % 3]}" for n in range(60)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of sixty passages, made in this process."""
    folder = tmp_path_factory.mktemp("retrieve")
    (folder / "docs").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / "docs" / f"{number}.txt").write_text(text)
    workflow = aaflow.Workflow()
    end = workflow.load(folder / "docs").transform().embed("hash", dimension=32)
    end.upsert(folder / "index", partitions=8)
    plan = compile_workflow(workflow, site=load_site("local"), ranks=1)
    assert plan.index is not None
    with Writer.acquire(folder / "index", IndexSpec.from_json(plan.index["spec"]), owner="test") as writer:
        context = RankContext(plan, plan.stages[0], SerialCommunicator(), writer.epoch, "cpu")
        for _ in run_chain([(OperatorTrace(name), f) for name, f in chain_of(context)], iter(()), 2):
            pass
        writer.publish(plan.work_key, sources=plan.tables["sources"])
    return folder / "index"


def embedded(*texts: str) -> pa.RecordBatch:
    vectors = embed_queries(make_embedder("hash", dimension=32), texts)
    column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), type=schema.vector_field(32).type)
    return query_batch(texts).append_column(schema.vector_field(32), column)


def test_the_passage_itself_is_found_first(index: Path) -> None:
    hits = ask_index(index, [TEXTS[5], TEXTS[40]], 3)
    assert hits.schema == schema.hits()
    first = hits.filter(pa.compute.equal(hits["rank"], 0))
    assert first["text"].to_pylist() == [TEXTS[5], TEXTS[40]]
    assert first["query_id"].to_pylist() == [0, 1]
    assert np.allclose(first["score"].to_numpy(), 1, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 20])
def test_partitions_dealt_to_any_ranks_give_the_same_hits(index: Path, ranks: int) -> None:
    queries = embedded(TEXTS[5], "blue subject 3", "nothing of the kind")
    with open_index(index) as opened:
        whole = search(opened, pa.Table.from_batches([queries]), 7, "exact")
        dealt = deal_partitions(opened.manifest.rows(), ranks)
        merged = merge_hits([part(opened, queries, partitions) for partitions in dealt], 7)
    assert whole is not None
    assert merged.equals(whole)


def part(opened: Index, queries: pa.RecordBatch, partitions: list[int]) -> pa.Table:
    return opened.search(vectors_of(queries), 7, partitions=partitions)


def test_as_operators_they_give_what_the_callers_process_gives(index: Path) -> None:
    texts = ["red subject 2", TEXTS[9]]
    asked = list(Queries(texts, SerialCommunicator())(iter(())))
    assert [item.rows.schema for item in asked if item.rows is not None] == [schema.QUERIES]
    item = Item(0, -1, embedded(*texts))
    out = list(Retrieve(index, 4, "exact", SerialCommunicator())(iter([item])))
    table = pa.Table.from_batches([one.rows for one in out if one.rows is not None])
    assert table.equals(ask_index(index, texts, 4).combine_chunks())


def test_questions_that_an_edge_deals_out_to_ranks_are_all_answered(index: Path, on_ranks: Any) -> None:
    texts = [TEXTS[5], "red subject 2", "blue subject 3"]
    rows = embedded(*texts)

    def work(group: Communicator) -> list[Item]:
        items = [Item(0, -1, rows.slice(number, 1)) for number in range(3) if number % 2 == group.rank]
        return list(Retrieve(index, 4, "exact", group)(iter(items)))

    first, second = on_ranks(2, work)
    assert second == []
    assert pa.Table.from_batches([item.rows for item in first]).equals(ask_index(index, texts, 4).combine_chunks())


def test_only_one_rank_asks() -> None:
    class Second(SerialCommunicator):
        rank = 1

    assert list(Queries(["what?"], Second())(iter(()))) == []


def test_vectors_are_read_in_place_and_joined_where_they_lie_apart() -> None:
    batch = embedded("a", "b")
    one = vectors_of(batch)
    assert one.shape == (2, 32)
    assert one.base is not None
    apart = vectors_of(pa.Table.from_batches([batch.slice(0, 1), batch.slice(1)]))
    assert np.array_equal(one, apart)
    assert vectors_of(pa.Table.from_batches([], batch.schema)).shape == (0, 32)


def test_questions_of_another_model_are_refused(tmp_path: Path, index: Path) -> None:
    with Writer.acquire(tmp_path / "old", IndexSpec(32, embedder={"model": "hash", "seed": 1}), owner="test"):
        pass
    with pytest.raises(EmbedderMismatch, match="seed"):
        ask_index(tmp_path / "old", ["what?"])


def test_more_hits_than_rows_are_all_rows(index: Path) -> None:
    assert ask_index(index, ["subject"], 1000).num_rows == len(TEXTS)
