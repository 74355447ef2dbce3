from __future__ import annotations

import functools
from pathlib import Path

import pyarrow as pa
import pytest

from aaflow import Domain, Pattern, Workflow, schema
from aaflow.errors import WorkflowError


def first_rows(batch: pa.RecordBatch, count: int = 1) -> pa.RecordBatch:
    return batch.slice(0, count)


def test_building_a_workflow_reads_nothing_and_writes_nothing(tmp_path: Path) -> None:
    workflow = Workflow()
    workflow.load(tmp_path / "not there").transform().embed("hash").upsert(tmp_path / "index")
    assert list(workflow.operators) == ["load", "transform", "embed", "upsert"]
    assert list(tmp_path.iterdir()) == []


def test_every_edge_has_the_schema_of_its_rows() -> None:
    stream = Workflow(metadata={"year": "int64"}).load("docs")
    assert stream.schema == schema.documents({"year": "int64"})
    stream = stream.transform()
    assert stream.schema == schema.chunks({"year": "int64"})
    assert stream.embed("hash", dimension=32).schema == schema.embedded(32, {"year": "int64"})


def test_operators_declare_pattern_and_domain(tmp_path: Path) -> None:
    workflow = Workflow()
    workflow.load("docs").transform().embed("hash").upsert(tmp_path / "index")
    declared = [(operator.pattern, operator.domain) for operator in workflow.operators.values()]
    assert declared == [
        (Pattern.EMBARRASSINGLY_PARALLEL, Domain.CPU_PARTITION),
        (Pattern.EMBARRASSINGLY_PARALLEL, Domain.CPU_PARTITION),
        (Pattern.EMBARRASSINGLY_PARALLEL, Domain.BATCH_WORKER),
        (Pattern.SHUFFLE_REDUCE, Domain.BATCH_WRITE),
    ]


def test_nothing_follows_an_upsert(tmp_path: Path) -> None:
    end = Workflow().load("docs").transform().embed("hash").upsert(tmp_path / "index")
    with pytest.raises(WorkflowError, match="'upsert' gives no rows"):
        end.embed("hash", name="more")


def test_two_operators_of_one_name_are_refused() -> None:
    stream = Workflow().load("docs")
    with pytest.raises(WorkflowError, match="two operators are named 'load'"):
        stream.workflow.load("more")
    stream.workflow.load("more", name="load2")


def test_a_user_operator_is_named_by_its_import_path_and_keeps_the_schema_unless_told() -> None:
    stream = Workflow().load("docs").apply(first_rows, options={"count": 2})
    operator = stream.operator
    assert operator.name == "first_rows"
    assert operator.function.endswith("test_workflow:first_rows")
    assert operator.input == operator.output == schema.documents()
    assert operator.options == {"count": 2}
    words = pa.schema([("word", pa.string())])
    counted = stream.apply(
        "words:count", output=words, pattern=Pattern.SHUFFLE_COMPUTE, domain=Domain.AGGREGATION, name="words"
    )
    assert counted.schema == words
    assert (counted.operator.pattern, counted.operator.domain) == (Pattern.SHUFFLE_COMPUTE, Domain.AGGREGATION)


def test_a_partial_has_no_import_path() -> None:
    with pytest.raises(WorkflowError, match="options="):
        Workflow().load("docs").apply(functools.partial(first_rows, count=3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "'embed': window is 0"),
        ({"device": "tpu"}, "'embed': unknown device 'tpu'"),
    ],
)
def test_an_embed_that_could_not_run_is_refused_when_it_is_added(options: dict[str, object], said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        Workflow().load("docs").transform().embed("hash", **options)  # type: ignore[arg-type]


def test_an_index_has_at_least_one_partition(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="'upsert': partitions is 0"):
        Workflow().load("docs").transform().embed("hash").upsert(tmp_path, partitions=0)
