"""``retrieve``: the query to all shards, local top-k, merged top-k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow import schema
from aaflow.dataplane.communicator import Communicator, SerialCommunicator
from aaflow.index import Index, deal_partitions, merge_hits, open_index
from aaflow.operators.embedders import Embedder
from aaflow.operators.operator import Item


def query_batch(texts: Sequence[str]) -> pa.RecordBatch:
    """Questions as rows of :data:`aaflow.schema.QUERIES`."""
    return pa.record_batch(
        [pa.array(range(len(texts)), pa.int32()), pa.array(texts, pa.string())], schema=schema.QUERIES
    )


def vectors_of(rows: pa.Table | pa.RecordBatch) -> npt.NDArray[np.float32]:
    """The ``vector`` column as float32 [rows, dimension], without a copy where it is one chunk."""
    column = rows["vector"] if isinstance(rows, pa.RecordBatch) else rows["vector"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    size = column.type.list_size
    # Not flatten(): that of pyarrow 9 gives the values of all rows, also for a slice.
    flat: npt.NDArray[np.float32] = column.values.slice(column.offset * size, len(column) * size).to_numpy(
        zero_copy_only=False
    )
    return flat.reshape(-1, size)


def embed_queries(embedder: Embedder, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """The vectors of questions, float32 [questions, dimension]."""
    vectors = np.empty((len(texts), embedder.dimension), np.float32)
    embedder.embed(pa.array(texts, pa.string()), vectors)
    return vectors


class Queries:
    """Gives the questions, on rank 0 alone."""

    def __init__(self, texts: Sequence[str], communicator: Communicator) -> None:
        self._texts = texts
        self._communicator = communicator

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        if self._communicator.rank == 0:
            yield Item(0, -1, query_batch(self._texts), last=True)


class Retrieve:
    """Gathers the queries of all ranks, searches the partitions dealt to this rank, merges on rank 0."""

    def __init__(self, index: Path, k: int, backend: str, communicator: Communicator) -> None:
        self._index = index
        self._k = k
        self._backend = backend
        self._communicator = communicator

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`; rank 0 gives the hits."""
        batches = [item.rows for item in map(Item.owned, items) if item.rows is not None]
        with open_index(self._index) as index:
            hits = search(index, self._gathered(batches, index), self._k, self._backend, self._communicator)
        if hits is not None:
            for batch in hits.combine_chunks().to_batches():
                yield Item(0, -1, batch)

    def _gathered(self, batches: list[pa.RecordBatch], index: Index) -> pa.Table | None:
        """On rank 0 all questions by their number: an edge deals the windows of the embedding out to ranks in turn."""
        wanted = pa.schema([schema.QUERIES.field("query_id"), schema.vector_field(index.spec.dimension)])
        mine = [pa.Table.from_arrays([batch.column(n) for n in wanted.names], schema=wanted) for batch in batches]
        gathered = self._communicator.gather(pa.concat_tables([wanted.empty_table(), *mine]))
        return pa.concat_tables(gathered).sort_by("query_id") if gathered is not None else None


def search(
    index: Index, queries: pa.Table | None, k: int, backend: str, communicator: Communicator | None = None
) -> pa.Table | None:
    """The ``k`` nearest chunks of every query.

    Args:
        index: what to search.
        queries: on rank 0, rows of :func:`aaflow.schema.queries`; None elsewhere.
        k: hits of a query at most.
        backend: ``exact``, ``ivf`` or ``hnsw``.
        communicator: of the ranks that search together; None in a process alone.

    Returns:
        On rank 0 rows of :func:`aaflow.schema.hits`; None elsewhere.
    """
    group = communicator or SerialCommunicator()
    asked = group.broadcast(queries)
    mine = deal_partitions(index.manifest.rows(), group.size)[group.rank]
    found = index.search(vectors_of(asked), k, partitions=mine, backend=backend)
    gathered = group.gather(found)
    return merge_hits(gathered, k) if gathered is not None else None
