"""Scores whose bits depend on the two vectors alone.

FAISS's scores depend on how many queries one call has and on which of its kernels that chooses. So it finds candidates,
and these kernels give the score: products of float32 are exact in float64, sums run in one fixed order over 8 lanes,
and the result is rounded once to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aaflow.kernel import kernel


@kernel
def _inner(a: Any, b: Any) -> float:
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = a.shape[0] - a.shape[0] % 8
    for j in range(0, whole, 8):
        s0 += np.float64(a[j]) * np.float64(b[j])
        s1 += np.float64(a[j + 1]) * np.float64(b[j + 1])
        s2 += np.float64(a[j + 2]) * np.float64(b[j + 2])
        s3 += np.float64(a[j + 3]) * np.float64(b[j + 3])
        s4 += np.float64(a[j + 4]) * np.float64(b[j + 4])
        s5 += np.float64(a[j + 5]) * np.float64(b[j + 5])
        s6 += np.float64(a[j + 6]) * np.float64(b[j + 6])
        s7 += np.float64(a[j + 7]) * np.float64(b[j + 7])
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    for j in range(whole, a.shape[0]):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@kernel
def _squared_distance(a: Any, b: Any) -> float:
    total = 0.0
    for j in range(a.shape[0]):
        difference = np.float64(a[j]) - np.float64(b[j])
        total += difference * difference
    return total


@kernel
def score_candidates(vectors: Any, queries: Any, rows: Any, l2: bool, out: Any) -> None:
    """Score of ``vectors[rows[i, j]]`` for ``queries[i]`` into ``out[i, j]`` (float32); a row below 0 scores -inf."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            row = rows[i, j]
            if row < 0:
                out[i, j] = -np.inf
            elif l2:
                out[i, j] = np.float32(0.0 - _squared_distance(vectors[row], queries[i]))
            else:
                out[i, j] = np.float32(_inner(vectors[row], queries[i]) + 0.0)  # no -0.0: it would sort as a tie


@kernel
def score_rows(vectors: Any, query: Any, rows: Any, l2: bool, out: Any) -> None:
    """Score of ``vectors[rows[i]]`` for one query into ``out[i]`` (float32)."""
    for i in range(rows.shape[0]):
        if l2:
            out[i] = np.float32(0.0 - _squared_distance(vectors[rows[i]], query))
        else:
            out[i] = np.float32(_inner(vectors[rows[i]], query) + 0.0)
