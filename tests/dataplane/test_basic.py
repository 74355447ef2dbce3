"""Types that pyarrow's kernels don't know are exchanged as others, and come back as they were."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import KINDS, NEWER, make_column

from aaflow.dataplane.basic import basic_column, basic_schema, basic_table, basic_type, original_table
from aaflow.dataplane.destinations import hash_rows
from aaflow.dataplane.rows import take_rows

TEXTS = ["a", None, "a text that is longer than any inlined view of one", "a", "a", ""]
RUNS = pa.run_end_encoded(pa.int32(), pa.string())


def runs(values: pa.Array) -> pa.Array:
    """A run of two for every value, of any type."""
    ends = pa.array(np.arange(2, 2 * len(values) + 1, 2), pa.int16())
    return pa.RunEndEncodedArray.from_arrays(ends, values)


def nested() -> dict[str, pa.Array]:
    views = pa.array(TEXTS, pa.string_view())
    codes, places = pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], pa.int32())
    return {
        "map": pa.array([[("a", "b")], None, []], pa.map_(pa.string(), pa.string_view())),
        "fixed_size_list": pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string_view(), 2)),
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([2, 0, None]), views),
        "struct of runs": pa.StructArray.from_arrays([runs(views), pa.array([*range(12)])], ["runs", "n"]),
        "runs of dictionaries": runs(pa.array(TEXTS).dictionary_encode()),
        "runs of lists": runs(pa.array([[1], None, []])),
        "views of lists that overlap": pa.ListViewArray.from_arrays(
            pa.array([2, 0, 5], pa.int32()), pa.array([3, 3, 0], pa.int32()), runs(views)
        ),
        "sparse union": pa.UnionArray.from_sparse(codes, [views.slice(0, 3), pa.array([1, 2, 3])]),
        "dense union": pa.UnionArray.from_dense(codes, places, [views.slice(0, 2), pa.array([1])]),
        "extension": pa.ExtensionArray.from_storage(pa.opaque(pa.string_view(), "text", "some database"), views),
    }


def check(column: pa.ChunkedArray) -> None:
    table = pa.table({"column": column, "row": np.arange(len(column))}).replace_schema_metadata({"whose": "mine"})
    basic = basic_table(table)
    basic.validate(full=True)
    assert basic.schema.equals(basic_schema(table.schema), check_metadata=True)
    assert basic.to_pylist() == table.to_pylist()
    assert basic_table(basic) is basic
    rows = np.arange(len(column))[::-2]
    taken = original_table(take_rows(basic, rows), table.schema)
    taken.validate(full=True)
    assert taken.schema.equals(table.schema, check_metadata=True)
    assert taken.to_pylist() == table.to_pylist()[::-2]


@pytest.mark.parametrize("kind", NEWER)
@given(rows=st.integers(0, 40), seed=st.integers(0, 2**16))
def test_rows_of_a_newer_type_can_be_chosen(kind: str, rows: int, seed: int) -> None:
    column = make_column(kind, rows, np.random.default_rng(seed))
    check(column)
    assert (hash_rows([column]) == hash_rows([basic_column(column)])).all()


@pytest.mark.parametrize("kind", nested())
def test_newer_types_are_found_inside_of_others(kind: str) -> None:
    array = nested()[kind]
    check(pa.chunked_array([array, array.slice(1), array.slice(1, 1), array.slice(0, 0)]))


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in NEWER])
def test_other_types_stay_as_they_are(kind: str) -> None:
    type_ = KINDS[kind][0]
    assert basic_type(type_) == type_
    table = pa.table({"column": pa.array([], type_)})
    assert basic_table(table) is table
    assert original_table(table, table.schema) is table


def test_equal_keys_have_equal_hashes_in_every_type() -> None:
    lists = [[1, 2], None, [], [3]]
    for values, kinds in (
        (TEXTS, [pa.string(), pa.large_string(), pa.string_view(), RUNS]),
        (lists, [pa.list_(pa.int8()), pa.list_view(pa.int8()), pa.large_list_view(pa.int8())]),
    ):
        hashes = [hash_rows([pa.array(values, kind)]).tolist() for kind in kinds]
        assert all(each == hashes[0] for each in hashes)


def test_what_fills_more_than_a_chunk_of_a_type_comes_back_in_several() -> None:
    numbers = pa.array(np.arange(70_000))
    kind = pa.run_end_encoded(pa.int16(), pa.int64())  # counts to 32,767 rows
    back = original_table(pa.table({"n": numbers}), pa.schema([("n", kind)]))
    assert back["n"].num_chunks > 2
    assert basic_table(back)["n"].to_pylist() == numbers.to_pylist()
