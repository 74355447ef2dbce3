"""``deduplicate``: one document, or one chunk, for each content hash, over all ranks and tranches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.dataplane.communicator import Communicator
from aaflow.index import open_index
from aaflow.index.duplicates import changes
from aaflow.operators.operator import Item
from aaflow.operators.readers.notices import UNREADABLE
from aaflow.operators.spool import Spool
from aaflow.schema import NOTICES

#: Rows a rank exchanges at a time, about; each is some hundred bytes then.
ROUND_ROWS = 4 << 20

_OF_ROWS = ["content_hash", "doc_id", "source", "record"]
_ENTRIES = pa.schema(
    [
        pa.field("content_hash", pa.binary(32)),
        pa.field("held", pa.int8()),  # 0 for what the index holds: it sorts first
        pa.field("doc_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("record", pa.int64()),
        pa.field("ordinal", pa.int32()),
        pa.field("rank", pa.int32()),
        pa.field("row", pa.int64()),
    ]
)
_LOSERS = pa.schema([pa.field("row", pa.int64()), pa.field("winner", pa.string())])
_KEPT = pa.schema([pa.field("doc_id", pa.string()), pa.field("partition", pa.int32())])


class Held(Protocol):
    """What of an index stays as it is in this run, by the partitions that a rank owns."""

    def __len__(self) -> int:
        """Rows that the index has, at most."""
        ...

    def rows(self, kept: pa.Array, unreadable: pa.Array) -> Iterator[pa.Table]:
        """Tables of content_hash, doc_id, source, record and, for chunks, ordinal.

        Args:
            kept: ids of documents of the owned partitions that were read again and found unchanged.
            unreadable: sources that could not be read and stay as they were.
        """
        ...


class Deduplicate:
    """Drops rows whose ``content_hash`` another row has: what the index holds wins, then the lowest document id.

    Rows of one document id go by source, record and ordinal. What comes in is spooled to a file; each hash is decided
    by the rank that owns it; then the spool is given on without what lost, in the order in which it came. A document
    that lost, or lost chunks, gets one notice of kind ``duplicate``. Rows of sources that could not be read to their
    end take no part, since they are not published.

    Args:
        rows: schema of the rows: documents or chunks.
        spool: folder of the spool.
        communicator: of the ranks that deduplicate together.
        owners: rank that owns each partition.
        held: what of the index stays; None where nothing is.
    """

    def __init__(
        self,
        rows: pa.Schema,
        spool: Path,
        communicator: Communicator,
        owners: Sequence[int],
        held: Held | None = None,
    ) -> None:
        self._schema = rows
        self._spool = spool
        self._communicator = communicator
        self._owners = np.asarray(owners, np.int32)
        self._held = held
        self._chunks = "ordinal" in rows.names

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        with Spool(self._spool, self._schema) as spool:
            for item in items:
                spool.add(item)
            losers = self._losers(spool)
            yield from self._replay(spool, losers)

    def _losers(self, spool: Spool) -> pa.Table:
        """The rows of this rank that lose, and the document that each loses against; by row."""
        kept, unreadable = self._told(spool)
        group = self._communicator
        mine = sum(batch.num_rows for batch in spool.rows()) + (len(self._held) if self._held is not None else 0)
        counts = group.all_gather(pa.table({"rows": pa.array([mine], pa.int64())}))
        rounds = max(1, -(-sum(table["rows"][0].as_py() for table in counts) // (ROUND_ROWS * group.size)))
        found = []
        for number in range(rounds):
            parts = [*self._entries(spool, unreadable), *self._held_entries(kept, unreadable)]
            table = pa.concat_tables([_ENTRIES.empty_table(), *(_of_round(part, number, rounds) for part in parts)])
            owner = (_words(table["content_hash"]) // np.uint64(rounds) % np.uint64(group.size)).astype(np.int32)
            decided, rank = _decide(group.shuffle(table, owner))
            found.append(group.shuffle(decided, rank))
        return pa.concat_tables(found).sort_by("row").combine_chunks()

    def _told(self, spool: Spool) -> tuple[pa.Array, pa.Array]:
        """Ids of kept documents of the partitions that this rank owns; sources that any rank could not read."""
        notices = pa.Table.from_batches(spool.notices(), NOTICES)
        kept = notices.filter(pc.equal(notices["kind"], "kept")).select(_KEPT.names).cast(_KEPT)
        kept = self._communicator.shuffle(kept, self._owners[kept["partition"].to_numpy()])
        unreadable = notices.filter(pc.starts_with(notices["reason"], UNREADABLE)).select(["source"])
        everywhere = pa.concat_tables(self._communicator.all_gather(unreadable))
        return pc.unique(kept["doc_id"]), pc.unique(everywhere["source"])

    def _entries(self, spool: Spool, unreadable: pa.Array) -> Iterator[pa.Table]:
        first = 0
        for batch in spool.rows():
            rows = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            entries = _entries(pa.Table.from_batches([batch]), 1, self._communicator.rank, rows)
            yield entries.filter(pc.invert(pc.is_in(entries["source"], unreadable))) if len(unreadable) else entries

    def _held_entries(self, kept: pa.Array, unreadable: pa.Array) -> Iterator[pa.Table]:
        if self._held is not None:
            for table in self._held.rows(kept, unreadable):
                yield _entries(table, 0, -1, np.full(table.num_rows, -1))

    def _replay(self, spool: Spool, losers: pa.Table) -> Iterator[Item]:
        lost, first = losers["row"].to_numpy(), 0
        told = self._notices(spool, losers)
        told_at = told["row"].to_numpy()
        for item in spool.items():
            if item.rows is None:
                yield item
                continue
            end = first + item.rows.num_rows
            begin, count = _range(lost, first, end)
            mine = lost[begin : begin + count] - first
            said = told.slice(*_range(told_at, first, end)).select(NOTICES.names).cast(NOTICES)
            first = end
            if not len(mine):
                yield item
                continue
            stays = np.ones(item.rows.num_rows, np.bool_)
            stays[mine] = False
            if item.notices is not None:
                said = pa.concat_tables([pa.Table.from_batches([item.notices]), said])
            notices = said.combine_chunks().to_batches()
            rows = item.rows.filter(pa.array(stays))
            yield replace(item, rows=rows, notices=notices[0] if notices else None)

    def _notices(self, spool: Spool, losers: pa.Table) -> pa.Table:
        """A notice of every document that lost rows, and the first ``row`` that it lost."""
        names, lost, first = ["doc_id", "partition", "source", "record"], losers["row"].to_numpy(), 0
        parts = [pa.schema([*map(self._schema.field, names), _LOSERS.field("row")]).empty_table()]
        for batch in spool.rows():
            begin, count = _range(lost, first, first + batch.num_rows)
            if count:
                mine = pa.array(lost[begin : begin + count])
                rows = pa.Table.from_batches([batch]).select(names).take(pc.subtract(mine, first))
                parts.append(rows.append_column(_LOSERS.field("row"), mine))
            first += batch.num_rows
        grouped = pa.concat_tables(parts).group_by(names).aggregate([("row", "min"), ("row", "count")])
        grouped = grouped.sort_by("row_min")
        winner = losers["winner"].take(pa.array(np.searchsorted(lost, grouped["row_min"].to_numpy())))
        said = pa.repeat("duplicate of", grouped.num_rows)
        if self._chunks:
            count = pc.cast(grouped["row_count"], pa.string())
            said = pc.binary_join_element_wise(count, "of its chunks are duplicates, the first of", " ")
        columns = {name: grouped[name] for name in names}
        columns["kind"] = pa.repeat("duplicate", grouped.num_rows)
        columns["reason"] = pc.binary_join_element_wise(said, winner, " ")
        return pa.table({**columns, "row": grouped["row_min"]})


class HeldByIndex:
    """The rows of an index whose source a run neither reads nor prunes, or whose document it keeps.

    Args:
        path: the index folder.
        read: sources that the run reads or prunes.
        partitions: those that this rank owns.
        chunks: whether chunks are meant, not documents.
    """

    def __init__(self, path: Path, read: pa.Array, partitions: Sequence[int], *, chunks: bool) -> None:
        self._path = path
        self._read = read
        self._partitions = partitions
        self._chunks = chunks

    def __len__(self) -> int:
        """See :class:`Held`."""
        with open_index(self._path) as index:
            rows = index.manifest.rows()
        return sum(rows[partition] for partition in self._partitions)

    def rows(self, kept: pa.Array, unreadable: pa.Array) -> Iterator[pa.Table]:
        """See :class:`Held`."""
        leaving = self._read.filter(pc.invert(pc.is_in(self._read, unreadable)))
        with open_index(self._path) as index:
            for partition in self._partitions:
                if self._chunks:
                    rows = index.rows(partition, [*_OF_ROWS, "ordinal"])
                else:
                    rows = index.documents(partition).rename_columns(["doc_id", "content_hash", "source", "record"])
                stays = pc.or_(pc.invert(pc.is_in(rows["source"], leaving)), pc.is_in(rows["doc_id"], kept))
                yield rows.filter(stays)


def _entries(table: pa.Table, held: int, rank: int, rows: npt.NDArray[np.int64]) -> pa.Table:
    count = table.num_rows
    columns = {name: table[name] for name in _OF_ROWS}
    columns["held"] = pa.repeat(pa.scalar(held, pa.int8()), count)
    columns["ordinal"] = (
        table["ordinal"] if "ordinal" in table.column_names else pa.repeat(pa.scalar(0, pa.int32()), count)
    )
    columns["rank"] = pa.repeat(pa.scalar(rank, pa.int32()), count)
    columns["row"] = pa.array(rows, pa.int64())
    return pa.table([columns[name] for name in _ENTRIES.names], names=_ENTRIES.names).cast(_ENTRIES)


def _of_round(entries: pa.Table, number: int, rounds: int) -> pa.Table:
    if rounds == 1:
        return entries
    return entries.filter(pa.array(_words(entries["content_hash"]) % np.uint64(rounds) == number))


def _words(hashes: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of every hash, uint64 [rows]."""
    words = [
        np.frombuffer(h.buffers()[1], np.uint64).reshape(-1, 4)[h.offset : h.offset + len(h), 0]
        for h in hashes.chunks
        if len(h)
    ]
    return np.concatenate(words) if words else np.empty(0, np.uint64)


def _range(places: npt.NDArray[np.int64], first: int, end: int) -> tuple[int, int]:
    """Where the sorted ``places`` in [first, end) begin, and how many they are."""
    begin, stop = np.searchsorted(places, [first, end]).tolist()
    return begin, stop - begin


def _decide(entries: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int32]]:
    """The entries that lose, schema ``_LOSERS``, and the rank of each."""
    words = _words(entries["content_hash"])
    order = np.argsort(words, kind="stable")
    same = words[order][1:] == words[order][:-1]
    several = np.zeros(len(words), np.bool_)
    several[order[1:][same]] = several[order[:-1][same]] = True
    few = entries.filter(pa.array(several))
    few = few.sort_by([(name, "ascending") for name in _ENTRIES.names]).combine_chunks()
    starts = changes(few, ["content_hash"])
    winners = np.flatnonzero(starts)[np.cumsum(starts) - 1] if few.num_rows else np.empty(0, np.int64)
    loses = ~starts & (few["held"].to_numpy() != 0)
    losers = pa.table([few["row"], few["doc_id"].take(pa.array(winners))], schema=_LOSERS).filter(pa.array(loses))
    return losers, few["rank"].to_numpy()[loses]


def columns_missing(rows: Iterable[str]) -> list[str]:
    """The columns that :class:`Deduplicate` needs and ``rows`` lack."""
    return [name for name in [*_OF_ROWS, "partition"] if name not in set(rows)]
