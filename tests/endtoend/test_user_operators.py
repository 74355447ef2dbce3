"""A user's own operators, anywhere in a workflow, on ranks that find them by import path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import aaflow
from aaflow import Domain, Pattern
from aaflow.errors import StageError
from aaflow.hashing import partition_of_id
from aaflow.index import open_index

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]
COUNTS = pa.schema([("partition", pa.int32()), ("rows", pa.int64()), ("documents", pa.int64())])

MODULE = """
import pyarrow as pa
import pyarrow.compute as pc

def set_text(batch, text):
    return batch.set_column(batch.schema.get_field_index("text"), batch.schema.field("text"), text)

def shout(batch, mark):
    return set_text(batch, pc.binary_join_element_wise(pc.utf8_upper(batch["text"]), mark, ""))

def only(batch, word):
    return batch.filter(pc.match_substring(batch["text"], word))

def count(batch):
    partition = pc.unique(batch["partition"])
    assert len(partition) == 1, "a unit is of one partition"
    return pa.record_batch({
        "partition": partition, "rows": [batch.num_rows], "documents": [pc.count_distinct(batch["doc_id"]).as_py()],
    })

def fail(batch):
    if pc.any(pc.match_substring(batch["text"], "topic 400")).as_py():
        raise RuntimeError("topic 400 is not to be spoken of")
    return batch
"""


@pytest.fixture
def module(user_module: Callable[[str], str]) -> str:
    return user_module(MODULE)


def start(workspace: Any, workflow: aaflow.Workflow, **options: Any) -> aaflow.RunResult:
    placement = aaflow.place(aaflow.compile(workflow, site="local", **options), "local")
    return aaflow.run(placement, "local", run_folder=workspace.folder / "runs")


def load(workspace: Any) -> Any:
    return aaflow.Workflow(metadata={"year": "int64"}).load(workspace.docs, split_bytes=900)


def test_operators_between_load_and_transform_and_after_transform(workspace: Any, module: str) -> None:
    digests = set()
    for ranks, fuse in ((1, True), (3, True)):
        documents = load(workspace).apply(f"{module}:shout", options={"mark": "!"})
        chunks = documents.transform(size=60, overlap=10).apply(f"{module}:only", options={"word": "RECORD"})
        index = workspace.folder / f"index{ranks}"
        end = chunks.embed("hash", dimension=32).upsert(index, partitions=16)
        start(workspace, end.workflow, ranks=ranks, fuse=fuse)
        with open_index(index) as opened:
            digests.add(opened.info().digest)
            texts = opened.search([[1.0] + [0.0] * 31], 1000)["text"].to_pylist()
        assert len(texts) == 59
        assert all(text.startswith("RECORD") and text.endswith("!") for text in texts)
    assert len(digests) == 1


@pytest.mark.parametrize(("ranks", "fuse"), [(1, True), (3, True), (2, False)])
def test_after_a_shuffle_an_operator_sees_whole_units(ranks: int, fuse: bool, workspace: Any, module: str) -> None:
    chunks = load(workspace).transform(size=60, overlap=10)
    counted = chunks.apply(f"{module}:count", output=COUNTS, pattern=Pattern.SHUFFLE_COMPUTE, domain=Domain.AGGREGATION)
    result = start(workspace, counted.workflow, ranks=ranks, fuse=fuse)
    given = result.output()
    plan = result.placement.plan
    assert plan.listing is not None
    units = Counter(given["partition"].to_pylist())
    assert max(units.values()) <= plan.listing.tranches  # a partition comes once a tranche, with all of its rows
    expected = Counter(partition_of_id(f"records.jsonl#{offset}", 64) for offset in _offsets(workspace))
    assert set(expected) <= set(units)
    assert pc.sum(given["documents"]).as_py() == 8 + 3 + 1 + 59 + 30
    trace = result.trace().filter(pc.equal(result.trace()["operator"], "count"))
    assert trace.num_rows == given.num_rows


def test_an_operator_that_fails_is_named_and_the_index_stays_as_it_was(workspace: Any, module: str) -> None:
    chunks = load(workspace).transform(size=60, overlap=10)
    end = chunks.apply(f"{module}:fail").embed("hash", dimension=32).upsert(workspace.folder / "index", partitions=16)
    with pytest.raises(StageError, match="topic 400 is not to be spoken of") as caught:
        start(workspace, end.workflow, ranks=2)
    assert caught.value.stage == "load+transform+fail+embed+upsert"
    assert caught.value.rank in (0, 1)
    assert caught.value.log is not None
    assert "RuntimeError" in open(caught.value.log).read()  # noqa: SIM115
    with open_index(workspace.folder / "index") as index:
        assert index.info().generation == 0


def _offsets(workspace: Any) -> list[int]:
    lines = (workspace.docs / "records.jsonl").read_bytes().splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    return [start for start, line in zip(starts, lines, strict=True) if not line.startswith(b"{broken")]
