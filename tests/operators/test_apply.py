from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aaflow import schema
from aaflow.errors import WorkflowError
from aaflow.operators.apply import Apply, import_function
from aaflow.operators.operator import Item

ROWS = pa.schema([("n", pa.int64())])


def rows(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(numbers, pa.int64())], schema=ROWS)


def double(batch: pa.RecordBatch, times: int = 2) -> pa.RecordBatch:
    return pa.record_batch([pc.multiply(batch["n"], times)], names=["n"])


def total(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch([pa.array([pc.sum(batch["n"]).as_py()])], names=["n"])


def as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def renamed(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.rename_columns(["m"])


def words(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch([pa.array(["x"])], names=["n"])


def narrow(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch([pc.cast(batch["n"], pa.int32()), batch["n"]], names=["n", "more"])


def apply(name: str, whole_units: bool = False, **options: Any) -> Apply:
    return Apply("mine", f"{__name__}:{name}", options, ROWS, whole_units=whole_units)


def values(items: list[Item]) -> list[tuple[int, list[int] | None, bool]]:
    return [(item.partition, item.rows["n"].to_pylist() if item.rows else None, item.last) for item in items]


def test_a_function_sees_every_batch_and_its_options() -> None:
    items = [Item(0, 3, rows(1, 2)), Item(0, 3, rows(3), last=True), Item(0, 4, last=True)]
    out = list(apply("double", times=10)(iter(items)))
    assert values(out) == [(3, [10, 20], False), (3, [30], True), (4, None, True)]


def test_after_a_shuffle_a_function_sees_whole_units() -> None:
    told = schema.NOTICES.empty_table().combine_chunks().to_batches()
    notices = told[0] if told else pa.RecordBatch.from_pylist([], schema=schema.NOTICES)
    items = [
        Item(0, 3, rows(1, 2)),
        Item(0, 3, rows(3), notices),
        Item(0, 3, last=True),
        Item(0, 4, rows(5), last=True),
        Item(0, 5, last=True),
    ]
    out = list(apply("total", whole_units=True)(iter(items)))
    assert [one for one in values(out) if one[1] or one[2]] == [(3, [6], True), (4, [5], True), (5, None, True)]
    assert sum(item.notices is not None for item in out) == 1


def test_columns_are_cut_and_cast_to_the_promised_schema() -> None:
    [out] = apply("narrow")(iter([Item(0, 0, rows(7))]))
    assert out.rows is not None
    assert out.rows.schema == ROWS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("as_table", "'mine' gave Table, not a pyarrow.RecordBatch"),
        ("renamed", r"'mine' promised the columns n \(int64\) and gave m \(int64\)"),
        ("words", r"'mine' promised the columns n \(int64\) and gave n \(string\)"),
    ],
)
def test_what_a_function_gives_is_checked(name: str, said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        list(apply(name)(iter([Item(0, 0, rows(1))])))


def test_a_function_is_found_by_its_path() -> None:
    assert import_function("os.path:join") is __import__("os").path.join
    assert import_function("collections:Counter.most_common") is __import__("collections").Counter.most_common
    with pytest.raises(ImportError):
        import_function("no_such_module_anywhere:work")
    with pytest.raises(AttributeError):
        import_function("os:no_such_name")
