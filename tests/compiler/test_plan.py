from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.compiler.compile import compile_workflow
from aaflow.compiler.plan import Edge, Plan, PlannedOperator, Stage, canonical_json, schema_of, schema_text
from aaflow.scheduling.placement import Placement, place
from aaflow.scheduling.site import Site
from aaflow.workflow import Workflow

MakeSite = Callable[..., Site]
Ingestion = Callable[..., Workflow]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_canonical_json_is_json_and_one_text_per_value(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1}) == '{"a":2,"b":1}'


def test_a_number_that_is_none_has_no_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


names = st.text(min_size=1, max_size=8)
operators = st.builds(
    PlannedOperator, name=names, kind=names, function=names, options=st.dictionaries(names, json_values, max_size=2),
    pattern=names, domain=names, input=names, output=names, workers=st.integers(1, 4), batch_rows=st.integers(0, 4096),
    shuffle=st.booleans(),
)  # fmt: skip
stages = st.builds(
    Stage, name=names, operators=st.lists(operators, max_size=2).map(tuple), domain=names, ranks=st.integers(1, 8),
    cores=st.integers(1, 8), accelerated=st.booleans(), upstream=st.none() | names,
    owners=st.lists(st.integers(0, 7), max_size=4).map(tuple), communicator=names,
)  # fmt: skip
edges = st.builds(
    Edge, source=names, target=names, primitive=names, routing=names, bound=st.integers(0, 9),
    buffer_bytes=st.integers(0, 2**30), bytes=st.integers(0, 2**50),
)  # fmt: skip
plans = st.builds(
    Plan, site=names, partitions=st.integers(1, 99), stages=st.lists(stages, max_size=3).map(tuple),
    edges=st.lists(edges, max_size=3).map(tuple), listing=st.none(),
    index=st.none() | st.dictionaries(names, json_values, max_size=2),
)  # fmt: skip


@given(plans)
def test_any_plan_comes_back_from_its_json(plan: Plan) -> None:
    read = Plan.from_dict(json.loads(plan.to_json()))
    assert read == plan
    assert read.to_json() == plan.to_json()
    assert read.digest == plan.digest


def test_a_plan_and_its_tables_come_back_from_a_folder(
    records: Path, site: MakeSite, ingestion: Ingestion, tmp_path: Path
) -> None:
    (records / "\udcff name\n.txt").write_text("a file whose name is no UTF-8")
    plan = compile_workflow(ingestion(records), site=site(), ranks=3)
    placement = place(plan, site())
    placement.save(tmp_path)
    read = Placement.load(tmp_path)
    assert read == placement
    assert read.to_json() == placement.to_json()
    assert read.digest == placement.digest
    assert read.plan == plan
    assert read.plan.digest == plan.digest
    assert {name: table.num_rows for name, table in read.plan.tables.items()} == {
        name: table.num_rows for name, table in plan.tables.items()
    }
    assert read.plan.tables["listing"].equals(plan.tables["listing"])


def test_slots_and_tables_are_no_part_of_the_digest(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = compile_workflow(ingestion(docs), site=site(), ranks=2)
    assert replace(plan, slots=place(plan, site()).slots, tables={}).digest == plan.digest
    assert place(plan, site(cores=2)).digest != place(plan, site(cores=8)).digest


def test_a_stage_is_found_by_its_name(docs: Path, site: MakeSite, ingestion: Ingestion) -> None:
    plan = compile_workflow(ingestion(docs), site=site(), ranks=2, fuse=False)
    assert plan.stage("embed").name == "embed"
    with pytest.raises(KeyError):
        plan.stage("absent")


def test_a_schema_comes_back_from_its_text() -> None:
    for one in (schema.embedded(7, {"year": "int64"}), schema.QUERIES, pa.schema([])):
        assert schema_of(schema_text(one)) == one
    assert schema_text(None) == ""
    with pytest.raises(pa.ArrowInvalid):
        schema_of("00" * 8)
