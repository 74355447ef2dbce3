"""Whether an index is what its manifest says: every file is read, every digest computed anew from rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import IndexCorrupt
from aaflow.hashing import digest_hex, partition_of, row_digest_sum
from aaflow.index.advance import Advance, bytes_of, untold
from aaflow.index.change import live_documents
from aaflow.index.collect import dangling
from aaflow.index.files import temporaries
from aaflow.index.lock import writer_lives
from aaflow.index.manifest import Manifest, Segment, segment_file
from aaflow.index.segment import ORDER, dead_rows, digest_of, file_digest, read_table
from aaflow.index.sources import SOURCES, read_notices, read_sources
from aaflow.index.spec import IndexSpec
from aaflow.schema import NOTICES


def verify(path: Path, manifest: Manifest, advance: Advance = untold) -> list[str]:
    """Everything wrong with the files of a generation, one line each, naming the file."""
    problems: list[str] = []
    done, whole = 0, sum(map(bytes_of, manifest.partitions))
    for partition, segments in enumerate(manifest.partitions):
        for segment in segments:
            problems += _segment(path, partition, segment, manifest.spec)
            done += segment.bytes
            advance(done, whole)
        problems += _repeats(path, partition, segments) if not problems else []
    try:
        if not read_sources(path, manifest).schema.equals(SOURCES):
            problems.append(f"sources/{manifest.sources}: its columns are not those of sources")
        if not read_notices(path, manifest).schema.equals(NOTICES):
            problems.append(f"sources/{manifest.notices}: its columns are not those of notices")
    except IndexCorrupt as error:
        problems.append(str(error))
    if not writer_lives(path):  # files that a writer is about to name look the same
        left = sorted({*dangling(path), *temporaries(path)})
        problems += [f"{file.relative_to(path)}: nothing refers to it; the next writer removes it" for file in left]
    return problems


def _segment(path: Path, partition: int, segment: Segment, spec: IndexSpec) -> Iterator[str]:
    """What is wrong with one segment; what follows from damage is not listed beside it."""
    name = segment_file(partition, segment.id)
    file = path / name
    if not file.is_file():
        yield f"{name}: missing"
        return
    size = file.stat().st_size
    if size != segment.bytes:
        yield f"{name}: {size} bytes, the manifest says {segment.bytes}"
        return
    with pa.memory_map(str(file)) as source:
        if file_digest(source.read_buffer()) != segment.file_digest:
            yield f"{name}: its bytes have changed"
            return
    try:
        yield from _rows(path, partition, segment, read_table(file), spec)
    except (IndexCorrupt, IndexError, pa.ArrowException) as error:
        yield f"{name}: {error}"


def _rows(path: Path, partition: int, segment: Segment, rows: pa.Table, spec: IndexSpec) -> Iterator[str]:
    name = segment_file(partition, segment.id)
    if not rows.schema.equals(spec.segment()):
        yield f"{name}: its columns are not those of this index"
        return
    if rows.num_rows != segment.rows:
        yield f"{name}: {rows.num_rows} rows, the manifest says {segment.rows}"
    digest = digest_hex(row_digest_sum(rows.drop(["created"])))
    if digest != segment.digest:
        yield f"{name}: its rows have digest {digest}, the manifest says {segment.digest}"
    order = pc.sort_indices(rows.select([key for key, _ in ORDER]), sort_keys=ORDER).to_numpy()
    if (np.diff(order.astype(np.int64)) < 0).any():
        yield f"{name}: its rows are not in order"
    foreign = sum(
        int((partition_of(batch.column("doc_id"), spec.partitions).to_numpy() != partition).sum())
        for batch in rows.to_batches()
    )
    if foreign:
        yield f"{name}: {foreign} rows belong to other partitions"
    dead = dead_rows(path, segment)
    if len(dead) and (dead[0] < 0 or dead[-1] >= rows.num_rows or (np.diff(dead) <= 0).any()):
        yield f"tombstones of {name}: they name rows that there are not, or one twice"
        return
    if segment.dead is not None and digest_of(path, partition, segment, dead) != segment.dead.digest:
        yield f"tombstones of {name}: the rows have another digest than the manifest says"
    if live_documents(path, partition, segment, dead) != segment.documents:
        yield f"{name}: another number of documents than the manifest says, {segment.documents}"


def _repeats(path: Path, partition: int, segments: tuple[Segment, ...]) -> Iterator[str]:
    """Chunk ids that a partition has twice."""
    live = []
    for segment in segments:
        alive = np.ones(segment.rows, dtype=np.bool_)
        alive[dead_rows(path, segment)] = False
        live.append(read_table(path / segment_file(partition, segment.id))["chunk_id"].filter(pa.array(alive)))
    if live:
        ids = pa.chunked_array([chunk for column in live for chunk in column.chunks], pa.binary(16))
        repeated = len(ids) - pc.count_distinct(ids).as_py()
        if repeated:
            yield f"partition {partition}: {repeated} chunks are there twice"
