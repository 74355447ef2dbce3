"""Fewer, larger segments with the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import IndexCorrupt
from aaflow.index.manifest import Segment, segment_file
from aaflow.index.segment import ORDER, dead_rows, read_table, write_segment
from aaflow.index.spec import IndexSpec

#: No segment is merged beyond this size, which bounds the memory of a compaction.
MOST_BYTES = 1 << 30


def compact_partition(
    path: Path, partition: int, segments: Sequence[Segment], spec: IndexSpec, name: str
) -> tuple[Segment, ...]:
    """Merge the segments of a partition into as few as :data:`MOST_BYTES` allows, without tombstoned rows."""
    merged = []
    for index, group in enumerate(_groups(segments)):
        if len(group) == 1 and group[0].dead is None:
            merged.append(group[0])
        else:
            merged.append(_merge(path, partition, group, spec, f"{name}-{index:04d}"))
    return tuple(merged)


def _groups(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    group: list[Segment] = []
    for segment in segments:
        if group and sum(s.bytes for s in group) + segment.bytes > MOST_BYTES:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _merge(path: Path, partition: int, group: Sequence[Segment], spec: IndexSpec, name: str) -> Segment:
    tables = []
    for segment in group:
        alive = np.ones(segment.rows, dtype=np.bool_)
        alive[dead_rows(path, segment)] = False
        tables.append(read_table(path / segment_file(partition, segment.id)).filter(pa.array(alive)))
    rows = pa.concat_tables(tables)
    merged = write_segment(path, partition, name, rows.take(pc.sort_indices(rows, sort_keys=ORDER)), spec)
    if int(merged.digest, 16) != sum(segment.live_digest for segment in group) % (1 << 256):
        raise IndexCorrupt(
            f"{path}: segments {', '.join(s.id for s in group)} of partition {partition} hold other rows than the "
            "manifest says: run `aaflow index verify`; nothing was changed"
        )
    return merged
