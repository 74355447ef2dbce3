"""Rows to the rank that owns their partition, inside a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.dataplane.communicator import Communicator
from aaflow.operators.operator import Item
from aaflow.schema import NOTICES

Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)

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
            yield from by_partition(tranche, split_by_partition(mine), split_by_partition(told), self._owned())

    def _owned(self) -> list[int]:
        owned: list[int] = np.flatnonzero(self._owners == self._communicator.rank).tolist()
        return owned

    def _exchange(self, table: pa.Table) -> pa.Table:
        return self._communicator.shuffle(table, self._owners[table["partition"].to_numpy()])


def by_partition(
    tranche: int, rows: Mapping[int, pa.Table], notices: Mapping[int, pa.Table], partitions: Sequence[int]
) -> Iterator[Item]:
    """The rows and notices of one tranche as items, partition by partition, each closed by ``last``; then its end."""
    for partition in partitions:
        part = rows.get(partition)
        if part is not None:
            for batch in part.combine_chunks().to_batches(max_chunksize=BATCH_ROWS):
                yield Item(tranche, partition, batch)
        told = notices.get(partition)
        batch = told.combine_chunks().to_batches()[0] if told is not None else None
        yield Item(tranche, partition, None, batch, last=True)
    yield Item(tranche, -1, last=True)


def split_by_partition(rows: Rows) -> dict[int, Rows]:
    """A copy of the rows of every partition; see :func:`split_by`."""
    return split_by(rows, rows.column("partition").to_numpy())


def split_by(rows: Rows, keys: npt.NDArray[np.int32]) -> dict[int, Rows]:
    """A copy of the rows of every key, int32 [rows] from 0, in their order; slices of memory that they share."""
    if not rows.num_rows:
        return {}
    order = np.argsort(keys, kind="stable")
    ordered = rows.take(pa.array(order))
    starts: list[int] = np.flatnonzero(np.diff(keys[order], prepend=-1)).tolist()
    ends = [*starts[1:], rows.num_rows]
    return {
        int(keys[order[start]]): ordered.slice(start, end - start)
        for start, end in zip(starts, ends)  # noqa: B905 - of one length
    }
