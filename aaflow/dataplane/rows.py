"""Choosing rows of tables."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import pyarrow as pa


def take_rows(table: pa.Table, rows: npt.NDArray[Any]) -> pa.Table:
    """The rows of ``table`` with these numbers, in their order."""
    # Where chunks have dictionaries of their own, pyarrow 9 takes indices into the first.
    columns = [column.unify_dictionaries() if column.num_chunks > 1 else column for column in table.columns]
    columns = [_whole(column) if _is_taken_wrong(column.type) else column for column in columns]
    chosen = pa.array(rows)
    return pa.Table.from_arrays([column.take(chosen) for column in columns], schema=table.schema)


def _is_taken_wrong(kind: pa.DataType) -> bool:
    """Whether ``take`` of a slice gives wrong values: fixed-size lists of fixed-size lists (seen in pyarrow 26.0.1)."""
    if isinstance(kind, pa.ExtensionType):
        return _is_taken_wrong(kind.storage_type)
    if pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(kind.value_type):
        return True
    return any(map(_is_taken_wrong, _children(kind)))


def _children(kind: pa.DataType) -> list[pa.DataType]:
    """The types that a type is made of; pyarrow 9 has no one name for them."""
    if pa.types.is_struct(kind) or pa.types.is_union(kind):
        return [kind[child].type for child in range(kind.num_fields)]
    if pa.types.is_map(kind):
        return [kind.key_type, kind.item_type]
    return [kind.value_type] if hasattr(kind, "value_type") else []


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of one chunk that begins where its buffers do."""
    return pa.chunked_array([pa.concat_arrays(column.chunks)] if column.num_chunks else [], column.type)
