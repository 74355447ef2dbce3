"""Sections: the rows that one rank sends to another, laid out once as Arrow buffers and read in place.

A section begins with a header of int64 words: its rows, the bytes of its opaque part, and for every flat leaf of its
columns the number of nulls (-1: none and no bitmap, -2: the column is in the opaque part) and the bytes of its values
if their length varies. The buffers follow in this order, each at a multiple of 64 bytes. Columns that can't be written
row by row (lists, dictionaries, maps, …) are taken by pyarrow and lie behind them as one Arrow IPC stream, the opaque
part.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from aaflow.dataplane.memory import begin_offsets, count_bytes, move, scatter_bits, scatter_bytes, scatter_values
from aaflow.dataplane.rows import take_rows
from aaflow.kernel import width_of

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

#: Every buffer of a section begins at a multiple of this many bytes, and so does what follows it.
ALIGNMENT = 64

_NO_NULLS, _OPAQUE = -1, -2


class Section(NamedTuple):
    """Where a section lies, its bytes, and what keeps the memory."""

    address: int
    size: int
    owner: object


class _Form(enum.Enum):
    VALUES = enum.auto()  # of one width in bytes
    BITS = enum.auto()
    BYTES = enum.auto()  # of varying length, behind offsets
    STRUCT = enum.auto()  # a validity bitmap alone


@dataclass(frozen=True)
class _Leaf:
    """A flat part of a column: of a struct, itself and then its fields. ``width`` is that of a value or an offset."""

    form: _Form
    width: int = 0


@functools.lru_cache(maxsize=256)
def _leaves_of(kind: pa.DataType) -> tuple[_Leaf, ...]:
    """The leaves of a type; empty if it has no flat form."""
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves_of(kind.storage_type)
    if pa.types.is_struct(kind):
        inner = [_leaves_of(kind[child].type) for child in range(kind.num_fields)]
        return (_Leaf(_Form.STRUCT), *(leaf for leaves in inner for leaf in leaves)) if all(inner) else ()
    if pa.types.is_boolean(kind):
        return (_Leaf(_Form.BITS),)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return (_Leaf(_Form.BYTES, 4),)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return (_Leaf(_Form.BYTES, 8),)
    try:
        width = width_of(kind)
    except TypeError:
        return ()
    return (_Leaf(_Form.VALUES, width),) if width else ()


def _arrays_of(array: pa.Array) -> Iterator[pa.Array]:
    """The arrays of an array's leaves, in the order of :func:`_leaves_of`."""
    if isinstance(array, pa.ExtensionArray):
        yield from _arrays_of(array.storage)
        return
    yield array
    if pa.types.is_struct(array.type):
        for child in range(array.type.num_fields):
            yield from _arrays_of(array.field(child))


def _has_inner_nulls(array: pa.Array) -> bool:
    """Whether values inside an array's lists of fixed size are null: a leaf has no place to say so."""
    start, rows = array.offset, len(array)
    while pa.types.is_fixed_size_list(array.type):
        start, rows = start * array.type.list_size, rows * array.type.list_size
        array = array.values
        if array.null_count and array.slice(start, rows).null_count > 0:
            return True
        start += array.offset
    return False


def _values_at(array: pa.Array, width: int) -> int:
    """The address of an array's first value, of ``width`` bytes."""
    start: int = array.offset
    while pa.types.is_fixed_size_list(array.type):
        start, width = start * array.type.list_size, width // array.type.list_size
        array = array.values
        start += array.offset
    return _address(array, 1) + start * width


def _address(array: pa.Array, number: int) -> int:
    buffer = array.buffers()[number]
    return int(buffer.address) if buffer is not None else 0


def _buffer_sizes(leaf: _Leaf, rows: Int64s, nullable: bool, data: Int64s) -> list[Int64s]:
    """Bytes of each buffer of a leaf, for each destination."""
    sizes = [(rows + 7) // 8] if nullable else []
    if leaf.form is _Form.VALUES:
        sizes.append(rows * leaf.width)
    elif leaf.form is _Form.BITS:
        sizes.append((rows + 7) // 8)
    elif leaf.form is _Form.BYTES:
        sizes += [(rows + 1) * leaf.width, data]
    return sizes


class _Column:
    """One leaf of the rows to send: the chunks that hold it, and what each destination gets of it.

    Attributes:
        nulls: of each destination, once they are written; None where nothing is null.
        data: bytes of the values of each destination, where their length varies.
    """

    def __init__(self, leaf: _Leaf, chunks: Sequence[pa.Array], targets: Sequence[Int32s], count: int) -> None:
        self._leaf = leaf
        self._chunks = list(zip(chunks, targets, strict=True))
        self.nulls = np.zeros(count, np.int64) if any(chunk.null_count for chunk in chunks) else None
        self.data = np.zeros(count, np.int64)
        if leaf.form is _Form.BYTES:
            for chunk, target in self._chunks:
                count_bytes(_address(chunk, 1) + chunk.offset * leaf.width, leaf.width, target, self.data)

    def buffer_sizes(self, rows: Int64s) -> list[Int64s]:
        """Bytes of each buffer, for each destination of so many rows."""
        return _buffer_sizes(self._leaf, rows, self.nulls is not None, self.data)

    def write(self, rows: Int64s, places: Iterator[Int64s]) -> None:
        """Write every buffer to its next places: an address for each destination of so many rows."""
        count, leaf = len(self.data), self._leaf
        if self.nulls is not None:
            self.nulls[:] = 0
            base, position = next(places), np.zeros(count, np.int64)
            for chunk, target in self._chunks:
                bitmap = _address(chunk, 0) if chunk.null_count else 0
                scatter_bits(bitmap, chunk.offset, target, base, position, self.nulls)
        if leaf.form is _Form.VALUES:
            at = next(places)
            for chunk, target in self._chunks:
                scatter_values(_values_at(chunk, leaf.width), leaf.width, target, at)
        elif leaf.form is _Form.BITS:
            base, position, zeros = next(places), np.zeros(count, np.int64), np.zeros(count, np.int64)
            for chunk, target in self._chunks:
                scatter_bits(_address(chunk, 1), chunk.offset, target, base, position, zeros)
        elif leaf.form is _Form.BYTES:
            at, base, used = next(places), next(places), np.zeros(count, np.int64)
            begin_offsets(leaf.width, rows, at)
            for chunk, target in self._chunks:
                offsets = _address(chunk, 1) + chunk.offset * leaf.width
                scatter_bytes(offsets, leaf.width, _address(chunk, 2), target, at, base, used)


class Rows:
    """Rows of a table, to be written into one section for each of ``count`` destinations.

    Args:
        table: the rows, of basic types (see ``basic.py``); less than 2 GiB of any column whose offsets have 32 bits.
        targets: the destination of each, int32 [rows], in [0, count).
        count: of destinations.

    Attributes:
        sizes: bytes of each section, int64 [count], a multiple of :data:`ALIGNMENT`; 0 where there is no row.
    """

    def __init__(self, table: pa.Table, targets: Int32s, count: int) -> None:
        batches = [batch for batch in table.to_batches() if batch.num_rows]
        cuts = np.cumsum([batch.num_rows for batch in batches])[:-1]
        parts = np.split(targets, cuts) if batches else []
        rows = np.bincount(targets, minlength=count).astype(np.int64)
        columns: list[_Column | None] = []  # None for the leaves of an opaque column
        opaque = []
        for number, field in enumerate(table.schema):
            leaves = _leaves_of(field.type)
            chunks = [list(_arrays_of(batch.column(number))) for batch in batches] if leaves else []
            if not leaves or any(_has_inner_nulls(array) for arrays in chunks for array in arrays):
                opaque.append(number)
                columns += [None] * len(leaves)
            else:
                columns += [
                    _Column(leaf, [arrays[at] for arrays in chunks], parts, count) for at, leaf in enumerate(leaves)
                ]
        self._columns = columns
        self._opaque = _streams(table.select(opaque), targets, rows) if opaque else [None] * count
        self._header = np.full((count, 2 + 2 * len(columns)), _OPAQUE, np.int64)
        self._header[:, 0] = rows
        self._header[:, 1] = [stream.size if stream is not None else 0 for stream in self._opaque]
        buffers = [size for column in columns if column is not None for size in column.buffer_sizes(rows)]
        self._starts, sizes = _lay_out(self._header.shape[1], [*buffers, self._header[:, 1]])
        self.sizes = np.where(rows > 0, sizes, 0)

    def write(self, addresses: Int64s) -> None:
        """Write each section that isn't empty at its address, int64 [count]."""
        addresses = addresses.astype(np.int64)
        places = iter([addresses + start for start in self._starts])
        for number, column in enumerate(self._columns):
            if column is not None:
                column.write(self._header[:, 0], places)
                self._header[:, 2 + 2 * number] = _NO_NULLS if column.nulls is None else column.nulls
                self._header[:, 3 + 2 * number] = column.data
        last = next(places)
        for to in np.flatnonzero(self.sizes).tolist():
            move(int(addresses[to]), self._header[to].ctypes.data, self._header[to].nbytes)
            stream = self._opaque[to]
            if stream is not None:
                move(int(last[to]), stream.address, stream.size)


def _streams(table: pa.Table, targets: Int32s, rows: Int64s) -> list[pa.Buffer]:
    """The rows of each destination as an Arrow IPC stream."""
    order = np.argsort(targets, kind="stable")
    streams = []
    for start, count in zip((np.cumsum(rows) - rows).tolist(), rows.tolist(), strict=True):
        sink = pa.BufferOutputStream()
        if count:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(take_rows(table, order[start : start + count]))
        streams.append(sink.getvalue())
    return streams


def _lay_out(header: int, sizes: Sequence[Int64s]) -> tuple[list[Int64s], Int64s]:
    """Where the buffers of these sizes begin behind a header of so many words, and the bytes of it all."""
    ends = np.full_like(sizes[0], -(-8 * header // ALIGNMENT) * ALIGNMENT)
    starts = []
    for size in sizes:
        starts.append(ends)
        ends = ends + (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return starts, ends


def read_section(section: Section, schema: pa.Schema) -> pa.Table:
    """The rows of a section that isn't empty, in place: they keep its owner alive."""
    address, _, owner = section
    leaves = [leaf for field in schema for leaf in _leaves_of(field.type)]
    words = 2 + 2 * len(leaves)
    header: list[int] = np.frombuffer(pa.foreign_buffer(address, 8 * words, owner), np.int64).tolist()
    rows, opaque_size = header[:2]
    described = list(zip(leaves, header[2::2], header[3::2], strict=True))
    sizes = [
        size
        for leaf, nulls, data in described
        if nulls != _OPAQUE
        for size in _buffer_sizes(leaf, np.array([rows]), nulls != _NO_NULLS, np.array([data]))
    ]
    sizes.append(np.array([opaque_size]))
    starts, _ = _lay_out(words, sizes)
    buffers = (
        pa.foreign_buffer(address + int(start[0]), int(size[0]), owner)
        for start, size in zip(starts, sizes, strict=True)
    )
    columns: list[Any] = []
    for field in schema:
        mine, described = described[: len(_leaves_of(field.type))], described[len(_leaves_of(field.type)) :]
        flat = mine and mine[0][1] != _OPAQUE
        columns.append(_read(field.type, rows, iter(mine), buffers) if flat else None)
    if any(column is None for column in columns):
        taken = iter(pa.ipc.open_stream(next(buffers)).read_all().columns)
        columns = [next(taken) if column is None else column for column in columns]
    return pa.Table.from_arrays(columns, schema=schema)


def _read(
    kind: pa.DataType, rows: int, leaves: Iterator[tuple[_Leaf, int, int]], buffers: Iterator[pa.Buffer]
) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _read(kind.storage_type, rows, leaves, buffers))
    leaf, nulls, _ = next(leaves)
    valid = next(buffers) if nulls != _NO_NULLS else None
    nulls = max(nulls, 0)
    if leaf.form is _Form.STRUCT:
        children = [_read(kind[child].type, rows, leaves, buffers) for child in range(kind.num_fields)]
        return pa.Array.from_buffers(kind, rows, [valid], nulls, children=children)
    if leaf.form is _Form.BYTES:
        return pa.Array.from_buffers(kind, rows, [valid, next(buffers), next(buffers)], nulls)
    return array_of_values(kind, rows, valid, nulls, next(buffers))


def array_of_values(kind: pa.DataType, rows: int, valid: pa.Buffer | None, nulls: int, values: pa.Buffer) -> pa.Array:
    """An array of a type of fixed width over its values, and its validity bitmap where it has nulls."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, rows, [valid, values], nulls)
    items = array_of_values(kind.value_type, rows * kind.list_size, None, 0, values)
    return pa.Array.from_buffers(kind, rows, [valid], nulls, children=[items])
