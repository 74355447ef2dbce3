"""``load``: the pieces of a listing become batches of documents, unit of commit by unit of commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.operators.listing import split_sizes
from aaflow.operators.operator import Item
from aaflow.operators.readers import Bookmark, LoadOptions, Notices, Split, read_documents, read_records, splits
from aaflow.operators.readers.documents import BATCH_BYTES, BATCH_ROWS
from aaflow.operators.readers.notices import NOTICES_HELD

__all__ = ["Load", "LoadOptions"]


class Load:
    """Reads the pieces of a listing that belong to one rank.

    Args:
        options: how to read.
        pieces: rows of :data:`aaflow.schema.LISTING`, in any order.
        sizes: their bytes as they are stored, int64 [pieces]; by default what the pieces alone let expect.

    Attributes:
        bytes: of all pieces, as they are stored.
        read: of those that are done.
    """

    def __init__(self, options: LoadOptions, pieces: pa.Table, sizes: npt.NDArray[np.int64] | None = None) -> None:
        self._options = options
        whole_first = pc.if_else(pieces["records"], 1, 0)
        sizes = split_sizes(pieces) if sizes is None else sizes
        keyed = pieces.append_column("_records", whole_first).append_column("_bytes", pa.array(sizes))
        order = [(name, "ascending") for name in ("tranche", "_records", "partition", "source", "start")]
        ordered = keyed.sort_by(order)
        self._pieces, self._sizes = ordered.drop(["_records", "_bytes"]), ordered["_bytes"].to_pylist()
        self.bytes, self.read = sum(self._sizes), 0

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """The documents, by tranche; what comes in is not looked at.

        In a tranche the whole documents come first, partition by partition, each ending with its ``last``; then the
        records, whose batches mix partitions (-1). The ``last`` of partition -1 ends the tranche.
        """
        bookmark = Bookmark()
        for tranche, pieces in groupby(self._counted(), lambda split: split.tranche):
            for partition, unit in groupby(pieces, lambda split: split.partition):
                yield from self._unit(tranche, partition, unit, bookmark)
                if partition >= 0:
                    yield Item(tranche, partition, last=True)
            yield Item(tranche, -1, last=True)

    def _counted(self) -> Iterator[Split]:
        for split, size in zip(splits(self._pieces), self._sizes, strict=True):
            yield split
            self.read += size

    def _unit(self, tranche: int, partition: int, unit: Iterable[Split], bookmark: Bookmark) -> Iterator[Item]:
        notices = Notices(self._options.partitions)
        for batch in self._batches(partition, unit, notices, bookmark):
            yield Item(tranche, partition, batch, notices.take())
        if len(notices):
            yield Item(tranche, partition, notices=notices.take())

    def _batches(
        self, partition: int, unit: Iterable[Split], notices: Notices, bookmark: Bookmark
    ) -> Iterator[pa.RecordBatch | None]:
        if partition >= 0:
            yield from read_documents(unit, self._options, notices)
            return
        held: list[pa.RecordBatch] = []
        rows = size = 0
        for split in unit:
            for batch in read_records(split, self._options, notices, bookmark):
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if held and (rows > BATCH_ROWS or size > BATCH_BYTES):
                    yield _joined(held)
                    held, rows, size = [], batch.num_rows, batch.nbytes
                held.append(batch)
            if len(notices) >= NOTICES_HELD:
                yield None
        if held:
            yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
