"""Where each row of a shuffle goes: the owner of its keys, by a hash that only depends on the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.dataplane.basic import basic_array
from aaflow.kernel import inlined, kernel, load64, validity, view


def destinations(table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str], size: int) -> npt.NDArray[np.int32]:
    """The rank that every row goes to, int32 [rows].

    Args:
        table: rows to send.
        by: the rank of every row, or the names of the key columns: rows of equal keys go to one rank.
        size: number of ranks.

    Raises:
        ValueError: a rank is outside [0, size), or there isn't one for each row, or no such key column.
        TypeError: the ranks aren't integers, or a key column's type has no hash.
    """
    if isinstance(by, np.ndarray):
        if by.shape != (table.num_rows,):
            raise ValueError(f"{by.shape} destinations for a table of {table.num_rows} rows: give one for each row")
        if not np.issubdtype(by.dtype, np.integer):
            raise TypeError(f"destinations are ranks, so integers, and not {by.dtype}")
        if len(by) and not (by.min() >= 0 and by.max() < size):
            raise ValueError(f"destinations from {by.min()} to {by.max()}: use ranks from 0 to {size - 1}")
        return np.ascontiguousarray(by, np.int32)
    if isinstance(by, str) or not by:
        raise ValueError(f"key columns are a sequence of names, and not {by!r}")
    for name in by:
        check_column(table, name)
    hashes = hash_rows([table[name] for name in by])
    # The high half times the number of ranks: an even share without a division.
    owners: npt.NDArray[np.int32] = (((hashes >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)).astype(np.int32)
    return owners


def check_column(table: pa.Table, name: str) -> None:
    """Raises ValueError unless ``table`` has exactly one column of that name."""
    found = table.schema.names.count(name)
    if found != 1:
        columns = ", ".join(table.schema.names) or "none"
        raise ValueError(f"the table has {found or 'no'} columns {name!r}: its columns are {columns}")


def hash_rows(columns: Sequence[pa.ChunkedArray | pa.Array]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of every row of ``columns``, the same in every process.

    Equal values have equal hashes whatever their chunks, offsets or dictionaries are. Floats are equal as values: -0.0
    is 0.0, and every NaN is the same; null is a value of its own.

    Raises:
        TypeError: a column's type has no hash (map, union, …).
    """
    hashes = np.full(len(columns[0]), _P3, np.uint64)
    for column in columns:
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        start = 0
        for chunk in chunks:
            _hash(basic_array(chunk), hashes[start : start + len(chunk)])
            start += len(chunk)
    return hashes


def _hash(column: pa.Array, hashes: npt.NDArray[np.uint64]) -> None:
    """Mix each row of ``column`` into its hash."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        _hash(column.storage, hashes)
    elif pa.types.is_dictionary(kind):
        _hash(column.dictionary_decode(), hashes)
    elif pa.types.is_null(kind):
        _mix_words(np.zeros(len(column), np.uint64), np.zeros(len(column), np.uint8), hashes)
    elif pa.types.is_struct(kind):
        valid = validity(column)
        _mix_words(np.zeros(len(column), np.uint64), valid, hashes)
        for field in column.flatten():
            _hash(field, hashes)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = np.zeros(1, np.int64) if not len(column) else column.offsets.to_numpy().astype(np.int64)
        _hash_lists(column.values, offsets, validity(column), hashes)
    elif pa.types.is_fixed_size_list(kind):
        offsets = (np.arange(len(column) + 1, dtype=np.int64) + column.offset) * kind.list_size
        _hash_lists(column.values, offsets, validity(column), hashes)
    elif pa.types.is_floating(kind) and len(column):
        values = np.frombuffer(column.buffers()[1], kind.to_pandas_dtype())[column.offset :][: len(column)]
        values = values + values.dtype.type(0)  # -0.0 becomes 0.0
        values[np.isnan(values)] = np.nan
        offsets = np.arange(len(column) + 1, dtype=np.int64) * values.itemsize
        _mix_bytes(values.view(np.uint8), offsets, validity(column), hashes)
    else:
        flat = view(column)
        _mix_bytes(flat.data, flat.offsets, flat.valid, hashes)


def _hash_lists(
    values: pa.Array, offsets: npt.NDArray[np.int64], valid: npt.NDArray[np.uint8], hashes: npt.NDArray[np.uint64]
) -> None:
    first, last = int(offsets[0]), int(offsets[-1])
    inner = np.full(last - first, _P3, np.uint64)
    _hash(values.slice(first, last - first), inner)
    _mix_lists(inner, offsets - first, valid, hashes)


_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_NULL = np.uint64(0x27D4EB2F165667C5)


@inlined
def _step(state: Any, word: Any) -> Any:
    state ^= word * _P2
    return ((state << np.uint64(31)) | (state >> np.uint64(33))) * _P1


@inlined
def _finish(state: Any) -> Any:
    state = (state ^ (state >> np.uint64(33))) * _P2
    state = (state ^ (state >> np.uint64(29))) * _P3
    return state ^ (state >> np.uint64(32))


@kernel
def _mix_words(words: Any, valid: Any, hashes: Any) -> None:
    for row in range(hashes.shape[0]):
        hashes[row] = _finish(_step(hashes[row], words[row] if valid[row] else _NULL))


@kernel
def _mix_bytes(data: Any, offsets: Any, valid: Any, hashes: Any) -> None:
    for row in range(hashes.shape[0]):
        state, at, end = hashes[row], offsets[row], offsets[row + 1]
        if not valid[row]:
            hashes[row] = _finish(_step(state, _NULL))
            continue
        state = _step(state, np.uint64(end - at))
        while end - at >= 8:
            state = _step(state, load64(data, at))
            at += 8
        if at < end:
            word = np.uint64(0)
            for byte in range(end - at):
                word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
            state = _step(state, word)
        hashes[row] = _finish(state)


@kernel
def _mix_lists(inner: Any, offsets: Any, valid: Any, hashes: Any) -> None:
    for row in range(hashes.shape[0]):
        state = hashes[row]
        if valid[row]:
            state = _step(state, np.uint64(offsets[row + 1] - offsets[row]))
            for at in range(offsets[row], offsets[row + 1]):
                state = _step(state, inner[at])
        else:
            state = _step(state, _NULL)
        hashes[row] = _finish(state)
