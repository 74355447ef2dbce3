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
from aaflow.kernel import inlined, kernel, load64, trailing_zeros, view

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
_STEM_SEED = np.uint64(0x5851F42D4C957F2D)
_STEM_BYTES = np.uint64(0xFFFFFFFF)
#: Weights of a word and of its stem by the word's length in bytes; the last is that of all longer ones.
_WEIGHTS = np.array([0, 1, 1, 2, 4, 5, 6, 7, 8], dtype=np.int32)
_STEM_WEIGHTS = np.array([0, 0, 0, 0, 0, 3, 3, 4, 4], dtype=np.int32)

# Constants of arithmetic on 8 bytes in one word. Adding ``_FROM_x`` to 7-bit bytes sets the high bit of those >= x.
_HIGH = np.uint64(0x8080808080808080)
_LOW = np.uint64(0x7F7F7F7F7F7F7F7F)
_LOWER = np.uint64(0x2020202020202020)
_FROM_A = np.uint64(0x1F1F1F1F1F1F1F1F)
_FROM_BEYOND_Z = np.uint64(0x0505050505050505)
_FROM_0 = np.uint64(0x5050505050505050)
_FROM_BEYOND_9 = np.uint64(0x4646464646464646)
_GATHER = np.uint64(0x0102040810204080)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@inlined
def _eight(data: Any, start: int, end: int) -> Any:
    """The bytes ``[start, min(end, start + 8))`` as one number, zero above them."""
    length = min(end - start, 8)
    if start + 8 <= data.shape[0]:
        above = np.uint64(64 - 8 * length)
        return (load64(data, start) << above) >> above
    word = _ZERO
    for byte in range(length):
        word |= np.uint64(data[start + byte]) << np.uint64(8 * byte)
    return word


@inlined
def _word_bytes(word: Any) -> Any:
    """Which of the 8 bytes of ``word`` belong to words, as the low 8 bits."""
    ascii_bytes = word & _LOW
    lower = ascii_bytes | _LOWER
    letters = (lower + _FROM_A) & ~(lower + _FROM_BEYOND_Z)
    digits = (ascii_bytes + _FROM_0) & ~(ascii_bytes + _FROM_BEYOND_9)
    return ((((letters | digits | word) & _HIGH) >> np.uint64(7)) * _GATHER) >> np.uint64(56)


@inlined
def _lower(word: Any) -> Any:
    """ASCII letters of words in lower case: 0x20 leaves digits, bytes of other characters don't get it."""
    return word | ((~word & _HIGH) >> np.uint64(2))


@inlined
def _count(counts: Any, key: Any, weight: Any) -> None:
    # The high half of the product depends on every bit of the key; the slot is its share of the range, the sign the
    # next bit of the fraction.
    place = ((key * _P1) >> np.uint64(32)) * np.uint64(counts.shape[0])
    slot = place >> np.uint64(32)
    sign = np.int32(1) - np.int32((place >> np.uint64(30)) & np.uint64(2))
    counts[slot] += sign * weight


@inlined
def _add_word(data: Any, start: int, end: int, counts: Any) -> None:
    length = end - start
    kind = min(length, 8)
    first = _lower(_eight(data, start, end))
    key = first
    at = start + 8
    while at < end:
        key = (key ^ (key >> np.uint64(31))) * _P2 + _lower(_eight(data, at, end))
        at += 8
    _count(counts, key, _WEIGHTS[kind])
    # Adding nothing is cheaper than a branch that guesses wrong.
    _count(counts, (first & _STEM_BYTES) ^ _STEM_SEED, _STEM_WEIGHTS[kind])


@kernel
def _add_text(data: Any, begin: int, end: int, counts: Any) -> None:
    """Count the words of ``data[begin:end]``, 64 bytes at a time: a bit per byte, a word between two edges."""
    start, inside = begin, _ZERO
    for base in range(begin, end, 64):
        mask = _ZERO
        if base + 64 <= end:
            for part in range(8):
                mask |= _word_bytes(load64(data, base + 8 * part)) << np.uint64(8 * part)
        else:
            for part in range((end - base + 7) // 8):
                mask |= _word_bytes(_eight(data, base + 8 * part, end)) << np.uint64(8 * part)
        edges = mask ^ ((mask << _ONE) | inside)
        while edges:
            at = base + trailing_zeros(edges)
            edges &= edges - _ONE
            if inside:
                _add_word(data, start, at, counts)
            start = at
            inside ^= _ONE
    if inside:
        _add_word(data, start, end, counts)


@kernel
def _embed(data: Any, offsets: Any, valid: Any, out: Any) -> None:
    """The vectors of the texts ``data[offsets[i]:offsets[i + 1]]`` into ``out`` (float32 [rows, dimension])."""
    dimension = out.shape[1]
    counts = np.empty(dimension, dtype=np.int32)
    for row in range(out.shape[0]):
        counts[:] = 0
        if valid[row]:
            _add_text(data, offsets[row], offsets[row + 1], counts)
        total = np.int64(0)
        for slot in range(dimension):
            total += abs(counts[slot])
        scale = np.float32(0.0) if total == 0 else np.float32(1.0) / np.float32(total)
        for slot in range(dimension):
            count = np.float32(counts[slot])
            out[row, slot] = np.copysign(np.sqrt(np.abs(count) * scale), count)
