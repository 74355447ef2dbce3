"""Rows as the pipeline moves them: an id, a text of about 800 bytes and a vector of 384 floats, 2.3 kB together."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

DIMENSION = 384
TEXT_BYTES = 800
SCHEMA = pa.schema(
    [("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.field("item", pa.float32()), DIMENSION))]
)
#: Bytes of a row: the columns, and the offset of its text.
ROW_BYTES = 8 + 4 + TEXT_BYTES + 4 * DIMENSION


def batch(rows: int, seed: int = 0) -> pa.RecordBatch:
    """``rows`` rows of :data:`SCHEMA`, without nulls; ids are unique over all seeds below 2**24 rows each."""
    random = np.random.Generator(np.random.PCG64(seed))
    ids = np.arange(rows, dtype=np.int64) + (seed << 24)
    lengths = random.integers(TEXT_BYTES // 2, TEXT_BYTES * 3 // 2, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    letters = random.integers(ord("a"), ord("z") + 1, int(offsets[-1]), dtype=np.uint8)
    text = pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(letters))
    floats = random.random(rows * DIMENSION, dtype=np.float32)
    return pa.record_batch([pa.array(ids), text, vectors(pa.py_buffer(floats), rows)], schema=SCHEMA)


def vectors(floats: pa.Buffer, rows: int) -> pa.Array:
    """The vector column over ``rows * DIMENSION`` float32 that lie in ``floats``."""
    items = pa.Array.from_buffers(pa.float32(), rows * DIMENSION, [None, floats])
    return pa.FixedSizeListArray.from_arrays(items, type=SCHEMA.field("vector").type)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def compute(floats: npt.NDArray[np.float32], seed: int) -> None:
    """Compute vectors, at about the rate at which memory is written."""
    mixed = np.uint32(seed * 2654435761)
    for at in range(floats.shape[0]):
        floats[at] = np.float32((np.uint32(at) * np.uint32(40503) + mixed) & np.uint32(0xFFFF)) * np.float32(2**-16)


def computed(rows: pa.RecordBatch, memory: pa.Buffer, seed: int) -> pa.RecordBatch:
    """``rows`` with vectors that are computed into ``memory``."""
    compute(np.frombuffer(memory, np.float32), seed)
    return pa.record_batch([rows["id"], rows["text"], vectors(memory, rows.num_rows)], schema=SCHEMA)


def buffers(rows: pa.RecordBatch) -> Iterator[pa.Buffer]:
    """Every buffer of a batch."""
    for column in rows.columns:
        yield from (buffer for buffer in column.buffers() if buffer is not None)


def read(buffer: pa.Buffer | memoryview) -> int:
    """Read every byte at the speed of memory: the sum of the buffer's 64-bit words, modulo 2**64.

    Zeros behind the last byte don't change it, so that what pads a buffer may.
    """
    data: npt.NDArray[np.uint8] = np.frombuffer(buffer, np.uint8)
    whole = len(data) // 8 * 8
    tail = int.from_bytes(data[whole:].tobytes(), "little")
    return (int(data[:whole].view(np.uint64).sum()) + tail) % 2**64


def read_all(rows: pa.RecordBatch) -> int:
    """:func:`read` of every buffer of a batch."""
    return sum(map(read, buffers(rows))) % 2**64


def table(count: int, ranks: int, seed: int) -> pa.Table:
    """``count`` rows with a column ``to``: the rank, by chance, that each shall go to."""
    destinations = np.random.Generator(np.random.PCG64(seed + 1000)).integers(0, ranks, count).astype(np.int32)
    return pa.Table.from_batches([batch(count, seed)]).append_column("to", pa.array(destinations))


def sums(moved: pa.Table) -> list[int]:
    """Of all rows, in any order and chunks: their number, and the sums of ids, texts' bytes and vectors' words."""
    found = np.zeros(4, np.uint64)
    for piece in moved.select(["id", "text", "vector"]).to_batches():
        ids, text, column = piece.columns
        letters, words = _content(text), _content(column).view(np.uint32)
        found += np.array(
            [len(ids), ids.to_numpy().sum(), letters.sum(dtype=np.uint64), words.sum(dtype=np.uint64)], np.uint64
        )
    return [int(each) for each in found]


def _content(column: pa.Array) -> npt.NDArray[np.uint8]:
    """The bytes of a column's values, without those of rows beside its slice."""
    if pa.types.is_fixed_size_list(column.type):
        # Not flatten(): that of pyarrow 9 gives the values of all rows, also for a slice.
        width = column.type.list_size
        return np.asarray(column.values.slice(column.offset * width, len(column) * width).to_numpy().view(np.uint8))
    width = np.int64 if pa.types.is_large_binary(column.type) or pa.types.is_large_string(column.type) else np.int32
    offsets = np.frombuffer(column.buffers()[1], width)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
