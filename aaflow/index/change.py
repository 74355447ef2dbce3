"""What publishing does to one partition: which new rows win, which old rows leave. Reads files, writes none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import VectorIndexError
from aaflow.hashing import combine_digests, digest_hex
from aaflow.index.duplicates import Mask, document_starts, duplicate_notices, losing_chunks, losing_documents
from aaflow.index.manifest import Segment, Tombstones, segment_file
from aaflow.index.segment import Rows, dead_rows, digest_of, read_table
from aaflow.schema import NOTICES

_ID = pa.schema([NOTICES.field(name) for name in ("doc_id", "source", "record")])
_DEAD = pa.schema([pa.field("row", pa.int64(), nullable=False)])


@dataclass(frozen=True)
class Change:
    """A segment of the next generation.

    Attributes:
        segment: the segment as it is now.
        dead: every row of it that is tombstoned then, rising; None where that stays as it is.
        documents: documents live then.
        digest: digest of all its tombstoned rows then.
    """

    segment: Segment
    dead: Rows | None = None
    documents: int = 0
    digest: str = ""


@dataclass(frozen=True)
class PartitionChange:
    """A partition of the next generation.

    Attributes:
        changes: its segments.
        kept: ids of the documents that stay as they were, by notice.
        notices: documents that lost against one of the same id.
        removed: chunks that leave the index.
        added: chunks that are new in it.
    """

    changes: list[Change]
    kept: pa.Array
    notices: pa.Table
    removed: int
    added: int


def change_partition(
    path: Path,
    partition: int,
    old: Sequence[Segment],
    new: Sequence[Segment],
    kept: pa.Table,
    *,
    touched: pa.Array,
    unreadable: pa.Array,
    read: pa.Array,
) -> PartitionChange:
    """Merge the ``new`` segments of a run into a partition.

    Args:
        path: the index folder.
        partition: which one.
        old: its segments in the current generation.
        new: segments of the run's units, by tranche.
        kept: notices of documents that the run found unchanged.
        touched: sources whose old rows leave unless their document is kept.
        unreadable: sources that could not be read; they stay as they were, whatever rows of them came.
        read: every source that the run says it has read.

    Raises:
        VectorIndexError: rows came of another source.
    """
    losses, winners, notices = _losses(path, partition, new, kept, unreadable, read)
    changes = [_bury(path, partition, segment, rows) for segment, rows in zip(new, losses, strict=True)]
    added = sum(segment.rows - len(rows) for segment, rows in zip(new, losses, strict=True))
    before, removed = [], 0
    for segment in old:
        leaving = _leaving(path, partition, segment, touched, winners) if len(touched) else np.empty(0, dtype=np.int64)
        removed += len(leaving)
        before.append(_bury(path, partition, segment, leaving))
    return PartitionChange(
        [change for change in before + changes if change.dead is None or len(change.dead) < change.segment.rows],
        winners,
        notices,
        removed,
        added,
    )


def _losses(
    path: Path, partition: int, new: Sequence[Segment], kept: pa.Table, unreadable: pa.Array, read: pa.Array
) -> tuple[list[Rows], pa.Array, pa.Table]:
    """Rows of every new segment that lose, the kept documents that win, and notices of the documents that lose."""
    tables = [read_table(path / segment_file(partition, segment.id)) for segment in new]
    starts = [document_starts(table) for table in tables]
    parts = [table.select(_ID.names).take(pa.array(s[:-1])) for table, s in zip(tables, starts, strict=True)]
    same = [pa.Table.from_arrays(part.columns, schema=_ID) for part in [*parts, kept.select(_ID.names)]]
    documents = pa.concat_tables(same)
    strangers = documents["source"].filter(pc.invert(pc.is_in(documents["source"], read)))
    if len(strangers):
        raise VectorIndexError(
            f"{path}: rows of {strangers[0]} are committed, but it is not among the sources that the run has read: "
            "name every source when publishing, or its old rows would stay beside the new ones"
        )
    losers, reasons = losing_documents(documents)
    notices = duplicate_notices(documents.filter(pa.array(losers)), reasons, partition)
    notices = notices.filter(pc.invert(pc.is_in(notices["source"], unreadable)))
    gone = pc.is_in(documents["source"], unreadable).to_numpy()
    dropped: Mask = losers | gone
    masks, at = [], 0
    for s in starts:
        masks.append(np.repeat(dropped[at : at + len(s) - 1], np.diff(s)))
        at += len(s) - 1
    winners = documents["doc_id"].combine_chunks().filter(pa.array(~dropped)).slice(int((~dropped[:at]).sum()))
    if len(new) > 1:
        _lose_chunks(tables, masks)
    return [np.flatnonzero(mask) for mask in masks], winners, notices


def _lose_chunks(tables: list[pa.Table], masks: list[Mask]) -> None:
    """Mark the rows of ``tables`` that repeat a chunk id among those not marked yet."""
    lost = np.concatenate(masks)
    alive = np.flatnonzero(~lost)
    names = ["chunk_id", "source", "record", "ordinal"]
    lost[alive[losing_chunks(pa.concat_tables([t.select(names) for t in tables]).take(pa.array(alive)))]] = True
    at = 0
    for index, mask in enumerate(masks):
        masks[index] = lost[at : at + len(mask)]
        at += len(mask)


def _leaving(path: Path, partition: int, segment: Segment, touched: pa.Array, kept: pa.Array) -> Rows:
    """The live rows of an old segment whose source is ``touched`` and whose document is not ``kept``."""
    table = read_table(path / segment_file(partition, segment.id))
    leaves = pc.is_in(table["source"], touched).to_numpy()
    leaves[dead_rows(path, segment)] = False
    if len(kept) and leaves.any():
        leaves &= ~pc.is_in(table["doc_id"], kept).to_numpy()
    return cast(Rows, np.flatnonzero(leaves))


def _bury(path: Path, partition: int, segment: Segment, rows: Rows) -> Change:
    """``segment`` with ``rows`` tombstoned beside those that are."""
    if not len(rows):
        return Change(segment)
    dead = np.sort(np.concatenate([dead_rows(path, segment), rows]))
    if len(dead) == segment.rows:
        return Change(segment, dead)
    digest = combine_digests(
        int(segment.dead.digest, 16) if segment.dead else 0, int(digest_of(path, partition, segment, rows), 16)
    )
    return Change(segment, dead, live_documents(path, partition, segment, dead), digest_hex(digest))


def live_documents(path: Path, partition: int, segment: Segment, dead: Rows) -> int:
    """How many documents of ``segment`` have rows that are not ``dead``."""
    alive = np.ones(segment.rows, dtype=np.bool_)
    alive[dead] = False
    doc_id = read_table(path / segment_file(partition, segment.id))["doc_id"]
    return int(pc.count_distinct(doc_id.filter(pa.array(alive))).as_py())


def with_tombstones(
    partitions: Sequence[Sequence[Change]], file: str
) -> tuple[tuple[tuple[Segment, ...], ...], pa.Buffer | None]:
    """The segments of the next generation, and the Arrow file of its new tombstones: a batch per segment."""
    batches: list[pa.RecordBatch] = []
    merged = []
    for changes in partitions:
        segments = []
        for change in changes:
            segment = change.segment
            if change.dead is not None:
                dead = Tombstones(file, len(batches), len(change.dead), change.digest)
                segment = replace(segment, documents=change.documents, dead=dead)
                batches.append(pa.record_batch([pa.array(change.dead, pa.int64())], schema=_DEAD))
            segments.append(segment)
        merged.append(tuple(segments))
    if not batches:
        return tuple(merged), None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _DEAD) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return tuple(merged), sink.getvalue()
