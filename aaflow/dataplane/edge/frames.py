"""Record batches as bytes that others read in place.

A batch becomes an Arrow IPC stream of its own, written straight into the memory that carries it. Columns that lie in
such memory already, or are so large that a socket should send them from where they are, or that shared memory should
have them by another kind of copy, are left out of the stream and named by the places of their buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.types

from aaflow.dataplane.edge.memory import Bytes
from aaflow.dataplane.memory import stream

#: Where bytes lie: which memory (the channel's own numbering), offset and size in bytes.
Place = tuple[int, int, int]
Locate = Callable[[Sequence[pa.Buffer]], list[Place] | None]

_ALIGNMENT = 64
#: A column of so many bytes has left the caches of most cores when its reader comes to its end; it is copied past them.
_STREAMED_BYTES = 8 << 20


def aligned(size: int) -> int:
    """``size`` rounded up to what starts of buffers are aligned to, in bytes."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def stream_size(batch: pa.RecordBatch) -> int:
    """Bytes of :func:`write_stream`, exactly; nothing is copied."""
    sink = pa.MockOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return int(sink.size())


def write_stream(batch: pa.RecordBatch, target: pa.Buffer) -> None:
    """Write a batch as an IPC stream to the start of a mutable buffer, without the interpreter lock."""
    sink = pa.FixedSizeBufferWriter(target)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_stream(source: pa.Buffer) -> pa.RecordBatch:
    """The batch of :func:`write_stream`; its buffers are slices of ``source``."""
    return pa.ipc.open_stream(source).read_next_batch()


def copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows in memory of their own, in one piece."""
    buffer = pa.allocate_buffer(stream_size(batch))
    write_stream(batch, buffer)
    return read_stream(buffer)


def split_rows(batch: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    """Slices of a batch, in order, of at most ``limit`` bytes each as sent; a single row may be larger.

    Args:
        batch: rows to send.
        limit: bytes, as ``EdgeSpec.buffer_bytes``.
    """
    if batch.num_rows < 2 or stream_size(batch) <= limit:
        yield batch
        return
    half = batch.num_rows // 2
    yield from split_rows(batch.slice(0, half), limit)
    yield from split_rows(batch.slice(half), limit)


@dataclass
class Encoded:
    """A batch taken apart.

    Attributes:
        rows: of the batch.
        columns: by index, the places of the buffers of columns that are not in the stream.
        large: by index, the buffers of columns that get their places by :meth:`write`.
        rest: the other columns, to be written as a stream; None when there are none.
        rest_size: bytes of that stream.
        place: where it was written.
    """

    rows: int
    columns: dict[int, list[Place]]
    large: dict[int, list[pa.Buffer]]
    rest: pa.RecordBatch | None
    rest_size: int
    place: Place | None = None

    @property
    def size(self) -> int:
        """Bytes that :meth:`write` takes."""
        return aligned(self.rest_size) + sum(aligned(each.size) for found in self.large.values() for each in found)

    def write(self, number: int, memory: Bytes, start: int) -> None:
        """Write what is not in its place yet.

        Args:
            number: of the memory, for places in it.
            memory: whose start is a multiple of the alignment.
            start: in it, such a multiple.
        """
        for index, buffers in self.large.items():
            self.columns[index] = []
            for buffer in buffers:
                stream(memory.ctypes.data + start, buffer.address, buffer.size)
                self.columns[index].append((number, start, buffer.size))
                start += aligned(buffer.size)
        if self.rest is not None:
            write_stream(self.rest, pa.py_buffer(memory[start : start + self.rest_size]))
            self.place = (number, start, self.rest_size)

    def to_json(self) -> list[Any]:
        """For :func:`decode`."""
        return [self.rows, [[index, *places] for index, places in self.columns.items()], self.place]


def encode(batch: pa.RecordBatch, locate: Locate | None, *, apart: bool) -> Encoded:
    """Take a batch apart.

    Args:
        batch: what to send.
        locate: the places of a column's buffers if they can stay where they are, else None.
        apart: large columns are to be written by :meth:`Encoded.write`, not as a part of the stream.
    """
    columns: dict[int, list[Place]] = {}
    large: dict[int, list[pa.Buffer]] = {}
    whole = stream_size(batch) if locate is None else 0
    apart = apart and (locate is not None or whole >= _STREAMED_BYTES)
    for index, column in enumerate(batch.columns if locate is not None or apart else ()):
        buffers = plain_buffers(column)
        places = locate(buffers) if locate is not None and buffers is not None else None
        if places is not None:
            columns[index] = places
        elif apart and buffers is not None and sum(buffer.size for buffer in buffers) >= _STREAMED_BYTES:
            large[index] = buffers
    kept = [index for index in range(batch.num_columns) if index not in columns and index not in large]
    if len(kept) == batch.num_columns:
        return Encoded(batch.num_rows, columns, large, batch, whole or stream_size(batch))
    if not kept:
        return Encoded(batch.num_rows, columns, large, None, 0)
    schema = pa.schema([batch.schema.field(index) for index in kept])
    rest = pa.RecordBatch.from_arrays([batch.column(index) for index in kept], schema=schema)
    return Encoded(batch.num_rows, columns, large, rest, stream_size(rest))


def decode(layout: Sequence[Any], schema: pa.Schema, memory: Callable[[int], pa.Buffer]) -> pa.RecordBatch:
    """Put a batch together from the memory that it lies in.

    Args:
        layout: of :meth:`Encoded.to_json`.
        schema: of the whole batch.
        memory: the memory of a number in a place.
    """
    rows, located, place = layout

    def at(place: Sequence[int]) -> pa.Buffer:
        return memory(place[0]).slice(place[1], place[2])

    rest = read_stream(at(place)) if place is not None else None
    if not located:
        assert rest is not None
        return rest
    arrays: list[pa.Array | None] = [None] * len(schema)
    for index, *places in located:
        arrays[index] = from_plain(schema.field(index).type, rows, [at(place) for place in places])
    others = iter(rest.columns if rest is not None else ())
    return pa.RecordBatch.from_arrays([array if array is not None else next(others) for array in arrays], schema=schema)


def plain_buffers(array: pa.Array) -> list[pa.Buffer] | None:
    """The buffers that hold an array's values, cut to its rows; None for types and arrays that need more than them.

    Plain are values of a fixed width of whole bytes, fixed-size lists of such, strings and binaries, all without
    nulls.
    """
    kind = array.type
    if array.null_count:
        return None
    if pa.types.is_fixed_size_list(kind):
        # Not flatten(): that of pyarrow 9 gives the values of all rows, also for a slice.
        return plain_buffers(array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size))
    if _is_fixed_width(kind):
        width = kind.bit_width // 8
        return [_cut(array.buffers()[1], array.offset * width, len(array) * width)]
    if _is_variable_width(kind):
        return _offsets_and_values(array, np.int64 if "large" in str(kind) else np.int32)
    return None


def from_plain(kind: pa.DataType, length: int, buffers: Sequence[pa.Buffer]) -> pa.Array:
    """The array of :func:`plain_buffers`."""
    if pa.types.is_fixed_size_list(kind):
        child = from_plain(kind.value_type, length * kind.list_size, buffers)
        return pa.Array.from_buffers(kind, length, [None], 0, 0, [child])
    return pa.Array.from_buffers(kind, length, [None, *buffers], 0)


def _is_fixed_width(kind: pa.DataType) -> bool:
    is_a = pa.types
    return bool((is_a.is_primitive(kind) and not is_a.is_boolean(kind)) or is_a.is_fixed_size_binary(kind))


def _is_variable_width(kind: pa.DataType) -> bool:
    is_a = pa.types
    return any((is_a.is_string(kind), is_a.is_binary(kind), is_a.is_large_string(kind), is_a.is_large_binary(kind)))


def _cut(buffer: pa.Buffer | None, start: int, size: int) -> pa.Buffer:
    return buffer.slice(start, size) if buffer is not None and size else pa.py_buffer(b"")


def _offsets_and_values(array: pa.Array, dtype: type[np.signedinteger[Any]]) -> list[pa.Buffer]:
    _, offsets, values = array.buffers()
    width = np.dtype(dtype).itemsize
    if not len(array):
        return [pa.py_buffer(bytes(width)), pa.py_buffer(b"")]
    offsets = _cut(offsets, array.offset * width, (len(array) + 1) * width)
    marks = np.frombuffer(offsets, dtype)
    first, last = int(marks[0]), int(marks[-1])
    return [offsets if not first else pa.py_buffer(marks - dtype(first)), _cut(values, first, last - first)]
