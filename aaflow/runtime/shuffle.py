"""Rows to the rank that owns their partition: inside a stage over MPI, between stages through files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from aaflow.dataplane.communicator import Communicator
from aaflow.operators.operator import Item
from aaflow.schema import NOTICES

#: Rows of a batch that leaves a shuffle, at most.
BATCH_ROWS = 4096


class Shuffle:
    """Sends rows and notices to the owner of their partition, one collective exchange a tranche.

    Afterwards every item belongs to one partition, and each owned partition of a tranche ends with ``last``.
    """

    def __init__(self, communicator: Communicator, owners: Sequence[int], tranches: int, schema: pa.Schema) -> None:
        self._communicator = communicator
        self._owners = np.asarray(owners, np.int32)
        self._tranches = tranches
        self._schema = schema

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """Exchange tranche by tranche; every rank takes part in each, also with nothing to send."""
        upcoming = next(items, None)
        for tranche in range(self._tranches):
            rows, notices = [], []
            while upcoming is not None and upcoming.tranche == tranche:
                if upcoming.rows is not None:
                    rows.append(upcoming.rows)
                if upcoming.notices is not None:
                    notices.append(upcoming.notices)
                upcoming = next(items, None)
            mine = self._exchange(pa.Table.from_batches(rows, self._schema))
            told = self._exchange(pa.Table.from_batches(notices, NOTICES))
            yield from by_partition(tranche, mine, told, self._owned())

    def _owned(self) -> list[int]:
        owned: list[int] = np.flatnonzero(self._owners == self._communicator.rank).tolist()
        return owned

    def _exchange(self, table: pa.Table) -> pa.Table:
        return self._communicator.shuffle(table, self._owners[table["partition"].to_numpy()])


def by_partition(tranche: int, rows: pa.Table, notices: pa.Table, partitions: Sequence[int]) -> Iterator[Item]:
    """The rows and notices of one tranche as items, partition by partition, each closed by ``last``."""
    row_parts, notice_parts = _split(rows), _split(notices)
    for partition in partitions:
        part = row_parts.get(partition)
        if part is not None:
            for batch in part.combine_chunks().to_batches(max_chunksize=BATCH_ROWS):
                yield Item(tranche, partition, batch)
        told = notice_parts.get(partition)
        batch = told.combine_chunks().to_batches()[0] if told is not None else None
        yield Item(tranche, partition, None, batch, last=True)


def _split(table: pa.Table) -> Mapping[int, pa.Table]:
    if not table.num_rows:
        return {}
    ordered = table.take(pa.array(np.argsort(table["partition"].to_numpy(), kind="stable")))
    numbers, starts = np.unique(ordered["partition"].to_numpy(), return_index=True)
    ends = [*starts[1:].tolist(), table.num_rows]
    return {
        int(number): ordered.slice(int(start), end - int(start))
        for number, start, end in zip(numbers, starts, ends)  # noqa: B905 - of one length
    }


class HandOver:
    """Writes a stage's items to files, one for each rank of the next stage that owns rows of them."""

    def __init__(self, folder: Path, rank: int, owners: Sequence[int], ranks: int, schema: pa.Schema) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._rank = rank
        self._owners = np.asarray(owners, np.int32)
        self._ranks = ranks
        self._paths = [folder / f"{rank}-{target}" for target in range(ranks)]
        self._rows = [_TaggedWriter(path.with_suffix(".rows"), schema) for path in self._paths]
        self._notices = [_TaggedWriter(path.with_suffix(".notices"), NOTICES) for path in self._paths]
        self._routed = "partition" in schema.names

    def write(self, item: Item) -> None:
        """Route one item."""
        if item.rows is not None:
            self._route(self._rows, item, item.rows, routed=self._routed)
        if item.notices is not None:
            self._route(self._notices, item, item.notices, routed=True)

    def close(self) -> None:
        """End every file."""
        for writer in (*self._rows, *self._notices):
            writer.close()

    def _route(self, writers: Sequence[_TaggedWriter], item: Item, batch: pa.RecordBatch, *, routed: bool) -> None:
        if not routed or self._ranks == 1:
            writers[self._rank % self._ranks].write(item.tranche, batch)
            return
        targets = self._owners[batch.column("partition").to_numpy()]
        for target in np.unique(targets).tolist():
            part = batch if (targets == target).all() else batch.filter(pa.array(targets == target))
            writers[target].write(item.tranche, part)


class OutputFile:
    """The rows that the last operator of a workflow gives in one rank, as an Arrow IPC file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = _TaggedWriter(path, schema)

    def write(self, item: Item) -> None:
        """Write the rows of one item."""
        if item.rows is not None:
            self._writer.write(item.tranche, item.rows)

    def close(self) -> None:
        """End the file."""
        self._writer.close()


class TakeOver:
    """Reads what the ranks of the stage before handed over to this rank, tranche by tranche."""

    def __init__(self, folder: Path, rank: int, owners: Sequence[int], tranches: int) -> None:
        self._folder = folder
        self._rank = rank
        self._tranches = tranches
        self._owned = np.flatnonzero(np.asarray(owners) == rank).tolist()

    def __iter__(self) -> Iterator[Item]:
        rows = [_TaggedReader(path) for path in sorted(self._folder.glob(f"*-{self._rank}.rows"))]
        notices = [_TaggedReader(path) for path in sorted(self._folder.glob(f"*-{self._rank}.notices"))]
        for tranche in range(self._tranches):
            tables = [reader.table(tranche) for reader in rows]
            told = pa.concat_tables([reader.table(tranche) for reader in notices])
            table = pa.concat_tables(tables)
            if "partition" in table.schema.names:
                yield from by_partition(tranche, table, told, self._owned)
            else:
                for batch in table.to_batches(max_chunksize=BATCH_ROWS):
                    yield Item(tranche, -1, batch)


class _TaggedWriter:
    """An Arrow IPC file whose batches know their tranche; made when the first batch comes, or empty at the end."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)

    def write(self, tranche: int, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch, custom_metadata={"tranche": str(tranche)})

    def close(self) -> None:
        self._writer.close()
        self._sink.close()


class _TaggedReader:
    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._tagged = [
            int(self._reader.get_batch_with_custom_metadata(i).custom_metadata[b"tranche"])
            for i in range(self._reader.num_record_batches)
        ]

    def table(self, tranche: int) -> pa.Table:
        batches = [self._reader.get_batch(i) for i, tagged in enumerate(self._tagged) if tagged == tranche]
        return pa.Table.from_batches(batches, self._reader.schema)
