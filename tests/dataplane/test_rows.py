"""Choosing rows of columns whose chunks can't be joined into one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from aaflow.dataplane.communicator import SerialCommunicator
from aaflow.dataplane.rows import take_rows

HUGE = 1100 << 20


def huge_rows(huge: int) -> pa.Table:
    """Two chunks of one huge text and two small ones each; huge texts are zeros that take no memory until copied."""
    chunks = []
    for number in range(2):
        small = [f"{number}:{row}" for row in range(2)]
        values = np.zeros(huge + 6, np.uint8)
        values[huge:] = np.frombuffer("".join(small).encode(), np.uint8)
        offsets = np.array([0, huge, huge + 3, huge + 6], np.int32)
        chunks.append(pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(values)]))
    return pa.table({"text": pa.chunked_array(chunks), "score": [9, 2, 4, 8, 1, 3]})


def test_the_first_rows_of_more_than_2_gib() -> None:
    comm = SerialCommunicator()
    table = huge_rows(HUGE)
    first = comm.reduce_topk(table, 3, [("score", "ascending")])
    assert first is not None
    assert first.to_pylist() == [{"text": t, "score": s} for t, s in [("1:0", 1), ("0:0", 2), ("1:1", 3)]]
    grouped = comm.reduce_topk(table.select(["text", "score"]).slice(1, 2), 1, [("score", "descending")], "text")
    assert grouped is not None
    assert grouped["text"].to_pylist() == ["0:0", "0:1"]


@pytest.mark.parametrize("rows", [[], [1], [3, 0, 2, 1, 3], [5, 5, 4]])
def test_dictionaries_that_cannot_be_one(rows: list[int]) -> None:
    """Of values that are null, and of more values than their indices count to."""
    nulls = [pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([value, None])) for value in "ab"]
    many = [pa.array([f"{start + n}" for n in range(100)]).dictionary_encode() for start in (0, 100)]
    small = [chunk.cast(pa.dictionary(pa.int8(), pa.string())).slice(0, 3) for chunk in many]
    for chunks in (nulls, small):
        column = pa.chunked_array(chunks)
        taken = take_rows(pa.table({"column": column}), np.array(rows, np.int64))["column"]
        taken.validate(full=True)
        assert taken.type == column.type
        assert taken.to_pylist() == [column[row].as_py() for row in rows]
