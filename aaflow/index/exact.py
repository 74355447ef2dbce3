"""Exact top-k of one block of vectors: FAISS proposes, fixed kernels score, a bound says when nothing was missed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from aaflow.index.duplicates import Mask
from aaflow.index.scores import score_candidates, score_rows
from aaflow.index.segment import Block, Floats, Rows

#: Candidates beyond k that make a second look rare.
_MARGIN = 16
#: Beyond so many candidates FAISS's heap costs more than scoring every row.
_MOST_CANDIDATES = 2048


def use_one_thread() -> None:
    """Let FAISS calls of this thread use no other: many threads search, or build, partitions at once."""
    import faiss  # it takes its time, and most processes never search

    faiss.omp_set_num_threads(1)


@dataclass(frozen=True)
class Found:
    """Candidates of some queries; arrays of one length.

    Attributes:
        query: number of the query.
        score: float32, higher is better.
        block: number of the block.
        row: row in that block.
        high: first 8 bytes of the chunk id, big endian.
        low: last 8 bytes of it.
    """

    query: npt.NDArray[np.int64]
    score: Floats
    block: Rows
    row: Rows
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, block: Block, number: int, query: Rows, score: Floats, row: Rows) -> Found:
        """Rows of one block with their chunk ids."""
        column = block.batch.column("chunk_id")
        ids = np.frombuffer(column.buffers()[1], dtype=">u8").reshape(-1, 2)[column.offset + row].astype(np.uint64)
        return cls(query, score, np.full(len(row), number, dtype=np.int64), row, ids[:, 0], ids[:, 1])

    def best(self, k: int) -> Found:
        """The first ``k`` of every query by falling score and then by rising chunk id, in that order."""
        order = np.lexsort((self.low, self.high, -self.score, self.query))
        query = self.query[order]
        first = np.flatnonzero(np.append(True, query[1:] != query[:-1])) if len(query) else np.empty(0, dtype=np.int64)
        rank = np.arange(len(query)) - np.repeat(first, np.diff(np.append(first, len(query))))
        return self._take(order[rank < k])

    def _take(self, order: Rows) -> Found:
        return Found(
            self.query[order],
            self.score[order],
            self.block[order],
            self.row[order],
            self.high[order],
            self.low[order],
        )

    def shifted(self, blocks: int) -> Found:
        """The same, with ``blocks`` added to the numbers of the blocks."""
        return replace(self, block=self.block + blocks)

    @staticmethod
    def concatenate(parts: list[Found]) -> Found:
        """All of ``parts``."""
        if not parts:
            nothing = np.empty(0, dtype=np.int64)
            return Found(nothing, nothing.astype(np.float32), nothing, nothing, *[nothing.astype(np.uint64)] * 2)
        return Found(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Found)))


def search_block(
    block: Block, number: int, queries: Floats, k: int, metric: str, *, norm: float, allowed: Mask | None
) -> Found:
    """The best ``k`` rows of ``block`` for every query, by (score, chunk id).

    Args:
        block: what to search.
        number: its number, for :attr:`Found.block`.
        queries: float32 [q, dimension], finite.
        k: how many.
        metric: ``cosine``, ``ip`` or ``l2``.
        norm: no vector of the block is longer.
        allowed: rows that may be found; None for all.
    """
    rows = len(block.vectors)
    alive = np.arange(rows) if allowed is None else np.flatnonzero(allowed)
    want = min(k, len(alive))
    open_queries = np.arange(len(queries))
    found = []
    candidates = (want + _MARGIN) * rows // max(len(alive), 1) + 1
    while want and len(open_queries) and candidates < min(rows, _MOST_CANDIDATES) and 8 * len(alive) > rows:
        part = _propose(block.vectors, queries[open_queries], candidates, want, metric, norm, allowed)
        settled, query, score, row = part
        found.append(Found.of(block, number, open_queries[query], score, row))
        open_queries = open_queries[~settled]
        candidates *= 8
    scores = np.empty(len(alive), dtype=np.float32)
    for number_of in open_queries.tolist() if want else ():
        score_rows(block.vectors, queries[number_of], alive, metric == "l2", scores)
        best = scores >= np.partition(scores, len(scores) - want)[len(scores) - want]
        count = int(best.sum())
        found.append(Found.of(block, number, np.full(count, number_of, dtype=np.int64), scores[best], alive[best]))
    return Found.concatenate(found).best(k)


def _propose(
    vectors: Floats, queries: Floats, candidates: int, want: int, metric: str, norm: float, allowed: Mask | None
) -> tuple[Mask, Rows, Floats, Rows]:
    """FAISS's candidates, rescored: which queries they settle, and (query, score, row) of what may be their best."""
    import faiss

    l2 = metric == "l2"
    approximate, rows = faiss.knn(
        queries, vectors, candidates, metric=faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
    )
    scores = np.empty(rows.shape, dtype=np.float32)
    score_candidates(vectors, queries, rows, l2, scores)
    if allowed is not None:
        scores[~allowed[rows]] = -np.inf
    kth = np.partition(scores, candidates - want, axis=1)[:, candidates - want]
    # Any row that FAISS left out is no better than its last candidate, give or take the rounding of a float32 sum of
    # d products: d * 2^-24 * |q| * |x| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), doubled.
    length = np.linalg.norm(queries.astype(np.float64), axis=1)
    size = (length + norm) ** 2 if l2 else length * norm
    slack = 2.0 * (vectors.shape[1] + 4) * 2.0**-24 * size
    last = -approximate[:, -1] if l2 else approximate[:, -1]
    settled = kth > last + slack
    query, place = np.nonzero((scores >= kth[:, None]) & settled[:, None] & (scores > -np.inf))
    return settled, query, scores[query, place], rows[query, place]
