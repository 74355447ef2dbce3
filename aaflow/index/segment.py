"""One segment: rows of a partition, sorted by document, in one Arrow IPC file that is searched where it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import IndexCorrupt, VectorIndexError
from aaflow.hashing import digest_hex, row_digest_sum
from aaflow.index.files import make_folder, write_file
from aaflow.index.manifest import Segment, segment_file
from aaflow.index.spec import IndexSpec

#: Rows of one record batch: what one search kernel sees at a time.
BATCH_ROWS = 65_536
ORDER = [("doc_id", "ascending"), ("record", "ascending"), ("ordinal", "ascending"), ("chunk_id", "ascending")]

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """A record batch of a mapped segment.

    Attributes:
        partition: whose rows they are.
        batch: the rows; nothing of them is read before it is touched.
        first: number of its first row in the segment.
        vectors: float32 [rows, dimension], the bytes of the file.
    """

    partition: int
    batch: pa.RecordBatch
    first: int
    vectors: Floats


def arrow_file(table: pa.Table, batch_rows: int = BATCH_ROWS) -> pa.Buffer:
    """``table`` as the bytes of an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return sink.getvalue()


def write_segment(path: Path, partition: int, name: str, rows: pa.Table, spec: IndexSpec) -> Segment:
    """Write ``rows`` (schema :meth:`IndexSpec.segment`, in :data:`ORDER`) as a segment, durably.

    Raises:
        VectorIndexError: a vector is not finite, or not of length 1 where the metric is cosine.
    """
    norm = max((_norm(vectors_of(batch), spec) for batch in rows.to_batches()), default=0.0)
    data = arrow_file(rows)
    target = path / segment_file(partition, name)
    make_folder(target.parent)
    write_file(target, memoryview(data))
    return Segment(
        id=name,
        rows=rows.num_rows,
        documents=pc.count_distinct(rows["doc_id"]).as_py(),
        bytes=data.size,
        digest=digest_hex(row_digest_sum(rows.drop(["created"]))),
        file_digest=file_digest(data),
        norm=norm,
    )


def file_digest(data: pa.Buffer) -> str:
    """Digest of the bytes of a file, hexadecimal: the row hash of one value, which finds every accident."""
    offsets = pa.py_buffer(np.array([0, data.size], dtype=np.int64))
    value = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])
    return digest_hex(row_digest_sum(pa.record_batch([value], names=["file"])))


def read_table(file: Path) -> pa.Table:
    """All of an Arrow IPC file, memory-mapped.

    Raises:
        IndexCorrupt: it is missing or not such a file.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise IndexCorrupt(f"{file} can't be read ({error}): run `aaflow index verify`, then ingest again") from error


def open_segment(path: Path, partition: int, segment: Segment, spec: IndexSpec) -> list[Block]:
    """Map a segment.

    Raises:
        IndexCorrupt: the file is missing, cut, or has other columns or rows than the manifest says.
    """
    file = path / segment_file(partition, segment.id)
    table = read_table(file)
    if not table.schema.equals(spec.segment()) or table.num_rows != segment.rows:
        raise IndexCorrupt(f"{file} is not what the manifest says: run `aaflow index verify`, then ingest again")
    blocks, first = [], 0
    for batch in table.to_batches():
        blocks.append(Block(partition, batch, first, vectors_of(batch)))
        first += batch.num_rows
    return blocks


def dead_rows(path: Path, segment: Segment) -> Rows:
    """The rows of ``segment`` that are tombstoned, rising."""
    if segment.dead is None:
        return np.empty(0, dtype=np.int64)
    file = path / "tombstones" / segment.dead.file
    batches = read_table(file).to_batches()
    if segment.dead.batch >= len(batches) or batches[segment.dead.batch].num_rows != segment.dead.rows:
        raise IndexCorrupt(f"{file} is not what the manifest says: run `aaflow index verify`, then ingest again")
    return cast(Rows, batches[segment.dead.batch].column("row").to_numpy())


def vectors_of(batch: pa.RecordBatch) -> Floats:
    """The vectors of ``batch``, float32 [rows, dimension], in place."""
    column = batch.column("vector")
    size = column.type.list_size
    # Not flatten(): that of pyarrow 9 gives the values of all rows, also for a slice.
    values = column.values.slice(column.offset * size, len(column) * size)
    return cast(Floats, values.to_numpy(zero_copy_only=True).reshape(len(column), size))


def digest_of(path: Path, partition: int, segment: Segment, rows: Rows) -> str:
    """Digest of some rows of a segment, hexadecimal."""
    table = read_table(path / segment_file(partition, segment.id)).drop(["created"])
    return digest_hex(row_digest_sum(table.take(pa.array(rows))))


def _norm(vectors: Floats, spec: IndexSpec) -> float:
    """The greatest length of ``vectors``, rounded up."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if not np.isfinite(squares).all():
        row = int(np.argmin(np.isfinite(squares)))
        raise VectorIndexError(f"row {row} of a commit has a vector that is not finite")
    if spec.metric == "cosine" and not ((np.abs(squares - 1.0) < 1e-2) | (squares == 0.0)).all():
        row = int(np.argmax((np.abs(squares - 1.0) >= 1e-2) & (squares != 0.0)))
        raise VectorIndexError(
            f"row {row} of a commit has a vector of length {math.sqrt(squares[row]):.4g}; an index with metric cosine "
            "takes vectors of length 1: normalise them, or use metric ip"
        )
    return math.sqrt(float(squares.max(initial=0.0))) * 1.001
