"""Choosing rows of tables."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import pyarrow as pa


def take_rows(table: pa.Table, rows: npt.NDArray[Any]) -> pa.Table:
    """The rows of ``table`` with these numbers, in their order."""
    columns = [_whole(column) if _is_taken_wrong(column.type) else column for column in table.columns]
    chosen = pa.array(rows)
    return pa.Table.from_arrays([column.take(chosen) for column in columns], schema=table.schema)


def _is_taken_wrong(kind: pa.DataType) -> bool:
    """Whether ``take`` of a slice gives wrong values: fixed-size lists of fixed-size lists (seen in pyarrow 26.0.1)."""
    if isinstance(kind, pa.ExtensionType):
        return _is_taken_wrong(kind.storage_type)
    if pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(kind.value_type):
        return True
    return any(_is_taken_wrong(kind.field(child).type) for child in range(kind.num_fields))


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of one chunk that begins where its buffers do."""
    return pa.chunked_array([pa.concat_arrays(column.chunks)] if column.num_chunks else [], column.type)
