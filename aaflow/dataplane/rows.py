"""Choosing rows of tables."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def take_rows(table: pa.Table, rows: npt.NDArray[Any]) -> pa.Table:
    """The rows of ``table`` with these numbers, in their order; its types are basic (see ``basic.py``)."""
    return pa.Table.from_arrays([take_column(column, rows) for column in table.columns], schema=table.schema)


def take_column(column: pa.ChunkedArray, rows: npt.NDArray[Any]) -> pa.ChunkedArray:
    """The rows of ``column`` with these numbers, in their order; in several chunks where one can't hold them."""
    try:
        # Where chunks have dictionaries of their own, pyarrow 9 takes indices into the first.
        joined = column.unify_dictionaries() if column.num_chunks > 1 else column
        return (_whole(joined) if _is_taken_wrong(column.type) else joined).take(pa.array(rows))
    except pa.ArrowInvalid:
        # It joins all chunks first, but offsets of 32 bits count to 2 GiB, and not all dictionaries can be one.
        return pa.chunked_array(_take_apart(column, rows.astype(np.int64)), column.type)


def _take_apart(column: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> list[pa.Array]:
    """Rows chosen chunk by chunk and put in order, in as few arrays as can hold them."""
    if not len(rows):
        return []
    starts = np.cumsum([0, *map(len, column.chunks)])
    homes = np.searchsorted(starts, rows, "right") - 1
    parts = [take_array(column.chunk(at), rows[homes == at] - starts[at]) for at in np.unique(homes)]
    if len(parts) == 1:
        return parts
    places = np.empty(len(rows), np.int64)
    places[np.argsort(homes, kind="stable")] = np.arange(len(rows))
    with contextlib.suppress(pa.ArrowInvalid):
        return [take_array(pa.concat_arrays(parts), places)]
    del parts
    half = len(rows) // 2
    return [*_take_apart(column, rows[:half]), *_take_apart(column, rows[half:])]


def take_array(array: pa.Array, rows: npt.NDArray[Any]) -> pa.Array:
    """The rows of ``array`` with these numbers, in their order."""
    return (pa.concat_arrays([array]) if _is_taken_wrong(array.type) else array).take(pa.array(rows))


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
