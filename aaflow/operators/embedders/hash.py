"""Deterministic feature hashing: no model, the same bits on any machine, for tests and system benchmarks.

A word is a run of ASCII letters, digits and bytes of non-ASCII characters, in lower case. Each word adds its weight to
one of ``dimension`` signed counters, and so does its stem (its first four bytes, where it has more), so that words of
one root meet (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009). Longer words weigh more:
they are rarer. A vector is ``sign(c) * sqrt(|c| / sum |c|)`` per counter: the root damps frequent words and makes the
length 1. Counting is in integers and each float operation is rounded once, so no CPU or order changes a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.errors import InputError
from aaflow.kernel import kernel, load64, view

#: Changes whenever the same text would get another vector.
VERSION = 1


class HashEmbedder:
    """Feature hashing into ``dimension`` counters.

    Raises:
        InputError: the dimension is not within 1 to 65536.
    """

    def __init__(self, dimension: int) -> None:
        if not 1 <= dimension <= 65536:
            raise InputError(f"the hash embedder takes a dimension from 1 to 65536, not {dimension}")
        self.dimension = dimension
        self.fingerprint: Mapping[str, Any] = {
            "kind": "hash",
            "model": "hash",
            "version": VERSION,
            "dimension": dimension,
            "dtype": "float32",
        }

    def embed(self, texts: pa.Array, out: npt.NDArray[np.float32]) -> None:
        """See :class:`aaflow.operators.embedders.base.Embedder`; a text without words gets the zero vector."""
        flat = view(texts)
        _embed(flat.data, flat.offsets, flat.valid, out)


_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_LOWER = np.uint64(0x2020202020202020)
_HIGH = np.uint64(0x8080808080808080)
_STEM = 4
_STEM_SEED = np.uint64(0x5851F42D4C957F2D)
#: Weight of a word by its length in bytes, from which it no longer grows.
_WEIGHTS = np.array([0, 1, 1, 2, 4, 5, 6, 7, 8], dtype=np.int32)
_IS_WORD = np.array([chr(byte).isalnum() if byte < 128 else True for byte in range(256)], dtype=np.uint8)


@kernel
def _word(data: Any, start: int, end: int) -> Any:
    """The bytes ``[start, end)``, at most 8 of them, as one number, ASCII letters in lower case."""
    length = end - start
    if start + 8 <= data.shape[0]:
        word = load64(data, start)
        if length < 8:
            word &= (np.uint64(1) << np.uint64(8 * length)) - np.uint64(1)
    else:
        word = np.uint64(0)
        for byte in range(length):
            word |= np.uint64(data[start + byte]) << np.uint64(8 * byte)
    # 0x20 makes a letter lower case and leaves a digit; bytes of other characters and the padding stay as they are.
    lower = (~word & _HIGH) >> np.uint64(2)
    if length < 8:
        lower &= (np.uint64(1) << np.uint64(8 * length)) - np.uint64(1)
    return word | lower


@kernel
def _count(counts: Any, key: Any, weight: Any) -> None:
    mixed = (key ^ (key >> np.uint64(32))) * _P1
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _P2
    slot = ((mixed >> np.uint64(32)) * np.uint64(counts.shape[0])) >> np.uint64(32)
    sign = np.int32(1) - np.int32((mixed >> np.uint64(30)) & np.uint64(2))
    counts[slot] += sign * weight


@kernel
def _embed(data: Any, offsets: Any, valid: Any, out: Any) -> None:
    """The vectors of the texts ``data[offsets[i]:offsets[i + 1]]`` into ``out`` (float32 [rows, dimension])."""
    dimension = out.shape[1]
    counts = np.empty(dimension, dtype=np.int32)
    for row in range(out.shape[0]):
        counts[:] = 0
        end = offsets[row + 1] if valid[row] else offsets[row]
        at = offsets[row]
        while at < end:
            if not _IS_WORD[data[at]]:
                at += 1
                continue
            start = at
            at += 1
            while at < end and _IS_WORD[data[at]]:
                at += 1
            length = at - start
            key = _word(data, start, min(at, start + 8))
            rest = start + 8
            stem = key & np.uint64(0xFFFFFFFF)
            while rest < at:
                key = (key ^ (key >> np.uint64(31))) * _P2 + _word(data, rest, min(at, rest + 8))
                rest += 8
            weight = _WEIGHTS[min(length, 8)]
            _count(counts, key, weight)
            if length > _STEM:
                _count(counts, stem ^ _STEM_SEED, (weight + 1) >> 1)
        total = np.int64(0)
        for slot in range(dimension):
            total += abs(counts[slot])
        scale = np.float32(0.0) if total == 0 else np.float32(1.0) / np.float32(total)
        for slot in range(dimension):
            count = counts[slot]
            size = np.sqrt(np.float32(abs(count)) * scale)
            out[row, slot] = size if count >= 0 else -size
