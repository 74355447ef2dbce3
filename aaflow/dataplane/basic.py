"""Arrow's newer types in the form of older ones, and back.

pyarrow has no ``take`` and no order for views of strings and binaries and for run-end-encoded columns (seen in 26.0.1),
and a list view that was taken keeps the values of all rows. Ranks exchange them as large strings, large binaries and
large lists, and decoded; what has to choose, sort or hash rows works on that form, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.dataplane.rows import take_array


def _test_of(name: str) -> Callable[[pa.DataType], bool]:
    """What pyarrow has to tell a type, which is none of those that an older pyarrow has."""
    found: Callable[[pa.DataType], bool] = getattr(pa.types, name, lambda kind: False)
    return found


_is_string_view = _test_of("is_string_view")
_is_binary_view = _test_of("is_binary_view")
_is_list_view = _test_of("is_list_view")
_is_large_list_view = _test_of("is_large_list_view")
_is_run_end_encoded = _test_of("is_run_end_encoded")


@functools.lru_cache(maxsize=256)
def basic_type(kind: pa.DataType) -> pa.DataType:
    """The type that stands for ``kind``: itself, where nothing in it is newer."""
    if _is_string_view(kind):
        return pa.large_string()
    if _is_binary_view(kind):
        return pa.large_binary()
    if _is_run_end_encoded(kind):
        return basic_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        storage = basic_type(kind.storage_type)
        return kind if storage == kind.storage_type else storage
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, basic_type(kind.value_type), kind.ordered)
    if _is_list_view(kind) or _is_large_list_view(kind):
        return pa.large_list(_basic_field(kind.value_field))
    if pa.types.is_list(kind):
        return pa.list_(_basic_field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_basic_field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_basic_field(kind.value_field), kind.list_size)
    if pa.types.is_map(kind) and basic_type(_entries(kind)) != _entries(kind):
        return pa.map_(_basic_field(kind.key_field), _basic_field(kind.item_field), kind.keys_sorted)
    if pa.types.is_struct(kind):
        return pa.struct([_basic_field(kind[child]) for child in range(kind.num_fields)])
    if pa.types.is_union(kind):
        fields = [_basic_field(kind[child]) for child in range(kind.num_fields)]
        return pa.union(fields, kind.mode, kind.type_codes)
    return kind


def _basic_field(field: pa.Field) -> pa.Field:
    return field.with_type(basic_type(field.type))


def _entries(kind: pa.DataType) -> pa.DataType:
    """What a map is a list of."""
    return pa.struct([pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)])


def basic_table(table: pa.Table) -> pa.Table:
    """The table with columns of basic types; itself, where it has no others."""
    kinds = [basic_type(kind) for kind in table.schema.types]
    if kinds == table.schema.types:
        return table
    columns = [basic_column(column) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=basic_schema(table.schema))


def basic_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of :func:`basic_table`."""
    return pa.schema([_basic_field(field) for field in schema], schema.metadata)


def original_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The inverse of :func:`basic_table`, for any rows of it."""
    if table.schema.types == schema.types:
        return table
    columns = [_original_column(column, kind) for column, kind in zip(table.columns, schema.types, strict=True)]
    return pa.Table.from_arrays(columns, schema=schema)


def basic_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with a basic type; itself, where it has one."""
    kind = basic_type(column.type)
    if kind == column.type:
        return column
    return pa.chunked_array([basic_array(chunk) for chunk in column.chunks], kind)


def basic_array(array: pa.Array) -> pa.Array:
    """The array with a basic type; itself, where it has one."""
    kind, basic = array.type, basic_type(array.type)
    if kind == basic:
        return array
    if _is_string_view(kind) or _is_binary_view(kind):
        return array.cast(basic)
    if _is_run_end_encoded(kind):
        ends = array.run_ends.to_numpy()
        runs = np.searchsorted(ends, np.arange(array.offset, array.offset + len(array)), "right")
        return take_array(basic_array(array.values), runs)
    if isinstance(array, pa.ExtensionArray):
        return basic_array(array.storage)
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, basic_array(array.dictionary), ordered=kind.ordered)
    if _is_list_view(kind) or _is_large_list_view(kind):
        return _lists_of_views(array, basic)
    return _rebuilt(array, basic, lambda child, _: basic_array(child))


def _original_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    return pa.chunked_array([part for chunk in column.chunks for part in _original_parts(chunk, kind)], kind)


def _original_parts(array: pa.Array, kind: pa.DataType) -> list[pa.Array]:
    """The original of an array, in as many parts as it needs: what it was may not have counted so far in a chunk."""
    try:
        return [_original(array, kind)]
    except pa.ArrowInvalid:
        half = len(array) // 2
        if not half:
            raise
        return [*_original_parts(array.slice(0, half), kind), *_original_parts(array.slice(half), kind)]


def _original(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The inverse of :func:`basic_array`.

    Raises:
        pyarrow.ArrowInvalid: one array of this type can't hold so many rows, or values.
    """
    if array.type == kind:
        return array
    if _is_string_view(kind) or _is_binary_view(kind):
        return array.cast(kind)
    if _is_run_end_encoded(kind):
        return _encoded(array, kind)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _original(array, kind.storage_type))
    if pa.types.is_dictionary(kind):
        dictionary = _original(array.dictionary, kind.value_type)
        return pa.DictionaryArray.from_arrays(array.indices, dictionary, ordered=kind.ordered)
    if _is_list_view(kind) or _is_large_list_view(kind):
        return _views_of_lists(array, kind)
    return _rebuilt(array, kind, _original)


def _rebuilt(array: pa.Array, kind: pa.DataType, change: Callable[[pa.Array, pa.DataType], pa.Array]) -> pa.Array:
    """A nested array of another type: its own buffers over children that were changed."""
    array = array if array.offset == 0 else pa.concat_arrays([array])
    if pa.types.is_map(kind):
        children = [change(array.values, _entries(kind))]
    elif pa.types.is_struct(kind) or pa.types.is_union(kind):
        children = [change(array.field(child), kind[child].type) for child in range(kind.num_fields)]
    else:
        children = [change(array.values, kind.value_type)]
    own = array.buffers()[: kind.num_buffers]
    return pa.Array.from_buffers(kind, len(array), own, array.null_count, 0, children)


def _lists_of_views(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """List views as lists: their values one after another."""
    sizes = np.where(_to_numpy(array.is_valid()), array.sizes.to_numpy(), 0).astype(np.int64)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    chosen = np.arange(offsets[-1]) + np.repeat(array.offsets.to_numpy() - offsets[:-1], sizes)
    values = take_array(basic_array(array.values), chosen)
    buffers = [_valid(array), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(kind, len(array), buffers, array.null_count, 0, [values])


def _views_of_lists(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The inverse of :func:`_lists_of_views`."""
    offsets = array.offsets.to_numpy() if len(array) else np.zeros(1, np.int64)
    values = _original(array.values.slice(offsets[0], offsets[-1] - offsets[0]), kind.value_type)
    offsets = offsets - offsets[0]
    width = np.int32 if _is_list_view(kind) else np.int64
    if offsets[-1] > np.iinfo(width).max:
        raise pa.ArrowInvalid(f"{kind}: {offsets[-1]} values in an array")
    buffers = [_valid(array), *(pa.py_buffer(part.astype(width)) for part in (offsets[:-1], np.diff(offsets)))]
    return pa.Array.from_buffers(kind, len(array), buffers, array.null_count, 0, [values])


def _encoded(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values as runs; a run for each where pyarrow can't compare them."""
    try:
        runs = pc.run_end_encode(array, run_end_type=kind.run_end_type)
        ends, values = runs.run_ends, runs.values
    except pa.ArrowNotImplementedError:
        ends, values = pa.array(np.arange(1, len(array) + 1)).cast(kind.run_end_type), array
    return pa.RunEndEncodedArray.from_arrays(ends, _original(values, kind.value_type), kind)


def _valid(array: pa.Array) -> pa.Buffer | None:
    """The validity bitmap of an array from its first row on; None where nothing is null."""
    return pa.concat_arrays([array.is_valid()]).buffers()[1] if array.null_count else None


def _to_numpy(array: pa.Array) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values
