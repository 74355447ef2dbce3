"""The first rows of a table by an order, of all of it or of each group; what every backend's ``reduce_topk`` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.dataplane.basic import basic_table, original_table
from aaflow.dataplane.destinations import check_column
from aaflow.dataplane.rows import take_column, take_rows


def top_rows(table: pa.Table, k: int, order: Sequence[tuple[str, str]], group: str | None = None) -> pa.Table:
    """The first ``k`` rows by ``order``; rows that tie stay in the table's order, nulls and NaN come last.

    Args:
        table: any rows.
        k: how many.
        order: pairs of column and ``"ascending"`` or ``"descending"``, the most important first.
        group: a column: ``k`` rows of each of its values, sorted by it.

    Raises:
        ValueError: ``k`` is negative, the order is empty or wrong, or no such column.
        pyarrow.ArrowNotImplementedError: a column's type has no order.
    """
    if k < 0:
        raise ValueError(f"k is {k}: use 0 or more")
    if not order or any(direction not in ("ascending", "descending") for _, direction in order):
        raise ValueError(f"order {order!r}: give pairs of a column and 'ascending' or 'descending'")
    keys = list(order) if group is None else [(group, "ascending"), *order]
    for name, _ in keys:
        check_column(table, name)
    first = {name: direction for name, direction in reversed(keys)}
    basic = basic_table(table)
    keyed = pa.table({name: _sortable(basic[name]) for name in first})
    # Sorting is stable.
    rows = pc.sort_indices(keyed, sort_keys=[(name, first[name]) for name in dict(keys)]).to_numpy()
    if group is not None:
        rows = rows[_places(take_column(keyed[group], rows)) < k]
    return original_table(take_rows(basic, rows[:k] if group is None else rows), table.schema)


def _places(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Of each row of a sorted column, how many rows of the same value come before it, int64 [rows]."""
    codes = [chunk.indices.to_numpy() for chunk in column.dictionary_encode(null_encoding="encode").chunks]
    starts = np.flatnonzero(np.diff(np.concatenate(codes or [np.empty(0, np.int32)]), prepend=-1))
    sizes = np.diff(starts, append=len(column))
    return np.arange(len(column)) - np.repeat(starts, sizes)


def _sortable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column
