"""Retrieval in the caller's own process: for a question at a time there is no need for ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from aaflow.index import open_index
from aaflow.operators.embedders import make_embedder
from aaflow.operators.retrieve import embed_queries, query_batch, search
from aaflow.schema import vector_field


def ask_index(
    path: str | Path, texts: Sequence[str], k: int = 10, *, backend: str = "exact", model: str | None = None
) -> pa.Table:
    """The ``k`` nearest chunks of every text; the same answers as a retrieval on ranks.

    Args:
        path: the index folder.
        texts: the questions.
        k: hits of a question at most.
        backend: ``exact``, ``ivf`` or ``hnsw``.
        model: name or folder of the index's model; by default where it was found when the index was built.

    Returns:
        Rows of :func:`aaflow.schema.hits`.

    Raises:
        IndexMissing: there is no index at this path.
        EmbedderMismatch: the model that is installed here is not the one of the index.
    """
    with open_index(Path(path)) as index:
        embedder = make_embedder(model or str(index.spec.embedder["model"]), dimension=index.spec.dimension)
        index.spec.require_embedder(embedder.fingerprint, embedder.dimension, Path(path))
        vectors = embed_queries(embedder, texts)
        column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), type=vector_field(embedder.dimension).type)
        queries = pa.Table.from_batches([query_batch(texts).append_column(vector_field(embedder.dimension), column)])
        hits = search(index, queries, k, backend)
        assert hits is not None
        return hits
