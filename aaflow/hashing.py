"""Hashes of Arrow columns: SHA-256 for identities, a fast 256-bit row hash for content digests.

SHA-256 is FIPS 180-4. The row hash is not cryptographic: it finds accidents, not attacks. It runs four lanes of
``rotate(lane + word * P2, 31) * P1`` (the step of xxHash64) over stripes of 32 bytes and ends in rounds that mix every
lane into every other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from aaflow.kernel import Bytes, copy, kernel, load64, validity, view
from aaflow.sha256 import digest_rows

_MODULUS = 1 << 256
#: Bytes of length-prefixed values that are hashed at a time.
_WINDOW = 1 << 19


def sha256(column: pa.Array) -> pa.FixedSizeBinaryArray:
    """SHA-256 of every row's bytes as binary(32); null where the row is null.

    Args:
        column: string, large_string, binary, large_binary, fixed-width or fixed_size_list.
    """
    flat = view(column)
    out = np.empty((len(column), 32), dtype=np.uint8)
    digest_rows(flat.data, flat.offsets, out)
    valid = None if column.null_count == 0 else pa.array(flat.valid.view(np.bool_)).buffers()[1]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(column), [valid, pa.py_buffer(out)])


def sha256_rows(columns: Sequence[pa.Array], size: int = 32) -> pa.FixedSizeBinaryArray:
    """SHA-256 of every row of ``columns``, cut to its first ``size`` bytes.

    What is hashed is each value's length (8 bytes, little endian; all ones for null) and its bytes (UTF-8, or little
    endian as Arrow holds them; a struct is one byte and then its fields), in the order of ``columns``.

    Raises:
        TypeError: a column's type has no flat form.
    """
    flats = [flat for column in columns for _, flat in _flatten(column, "")]
    rows = len(columns[0])
    lengths = np.zeros(rows + 1, dtype=np.int64)
    for flat in flats:
        lengths[1:] += 8 + np.where(flat.valid == 1, np.diff(flat.offsets), 0)
    offsets = np.cumsum(lengths)
    digests = np.empty((rows, 32), dtype=np.uint8)
    # In windows, so that the message stays in the cache and in memory that was touched before.
    ends = np.searchsorted(offsets, np.arange(_WINDOW, int(offsets[-1]), _WINDOW), side="right") - 1
    cuts = np.unique(np.concatenate([[0], ends, [rows]]))
    message = np.empty(int(np.diff(offsets[cuts]).max(initial=0)), dtype=np.uint8)
    for start, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        places = offsets[start : end + 1] - offsets[start]
        cursor = places[:-1].copy()
        for flat in flats:
            _append_values(flat.data, flat.offsets[start : end + 1], flat.valid[start:end], message, cursor)
        digest_rows(message, places, digests[start:end])
    data = pa.py_buffer(np.ascontiguousarray(digests[:, :size]))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), rows, [None, data])


def partition_of(doc_id: pa.Array, partitions: int) -> pa.Int32Array:
    """The owner of each document: the first 8 bytes (big endian) of SHA-256(doc_id) modulo ``partitions``."""
    digests = np.frombuffer(sha256(doc_id).buffers()[1], dtype=">u8").reshape(-1, 4)
    return pa.array((digests[:, 0] % np.uint64(partitions)).astype(np.int32))


def partition_of_id(doc_id: str, partitions: int) -> int:
    """:func:`partition_of` for one document."""
    return int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big") % partitions


def row_digest_sum(batch: pa.RecordBatch | pa.Table) -> int:
    """The sum modulo 2^256 of one 256-bit hash per row, over all columns with their names and types.

    It depends on the rows as a multiset only: not on their order, on slices or on chunks, nor on the order of columns.

    Raises:
        TypeError: a column's type has no flat form.
    """
    if isinstance(batch, pa.Table):
        return sum(row_digest_sum(part) for part in batch.to_batches()) % _MODULUS
    lanes = np.zeros((batch.num_rows, 4), dtype=np.uint64)
    for field, column in zip(batch.schema, batch.columns, strict=True):
        for name, flat in _flatten(column, field.name):
            seed = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u8").astype(np.uint64)
            _add_hashes(flat.data, flat.offsets, flat.valid, seed, lanes)
    total = np.zeros(4, dtype=np.uint64)
    _sum_rows(lanes, total)
    return sum(int(word) << (64 * index) for index, word in enumerate(total)) % _MODULUS


def combine_digests(a: int, b: int) -> int:
    """The digest of the rows of ``a`` and the rows of ``b`` together."""
    return (a + b) % _MODULUS


def digest_hex(digest: int) -> str:
    """A digest as 64 hexadecimal digits."""
    return f"{digest:064x}"


def _flatten(column: pa.Array, name: str) -> Iterator[tuple[str, Bytes]]:
    """The flat columns of ``column`` and names that bind their types; a struct is its validity and its fields."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not pa.types.is_struct(column.type):
        yield f"{name}\0{_type_name(column.type)}", view(column)
        return
    valid = validity(column)
    yield f"{name}\0struct", Bytes(valid, np.arange(len(column) + 1, dtype=np.int64), valid)
    for field, child in zip(column.type, column.flatten(), strict=True):
        yield from _flatten(child, f"{name}\0{field.name}")


def _type_name(kind: pa.DataType) -> str:
    # A list's own text has the name and nullability of its items, which some readers change.
    if pa.types.is_fixed_size_list(kind):
        return f"{_type_name(kind.value_type)}[{kind.list_size}]"
    return str(kind)


# --- kernels ---------------------------------------------------------------------------------------------------------


@kernel
def _append_values(data: Any, offsets: Any, valid: Any, message: Any, cursor: Any) -> None:
    """Each row's length and bytes to ``message`` at ``cursor``, which moves past them."""
    for row in range(cursor.shape[0]):
        start, end, at = offsets[row], offsets[row + 1], cursor[row]
        length = np.uint64(end - start) if valid[row] else np.uint64(0xFFFFFFFFFFFFFFFF)
        for byte in range(8):
            message[at + byte] = np.uint8((length >> np.uint64(8 * byte)) & np.uint64(0xFF))
        at += 8
        if valid[row]:
            copy(message, at, data, start, end - start)
            at += end - start
        cursor[row] = at


_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)


@kernel
def _rotate64(value: Any, bits: Any) -> Any:
    return (value << bits) | (value >> (np.uint64(64) - bits))


@kernel
def _step(lane: Any, word: Any) -> Any:
    return _rotate64(lane + word * _P2, np.uint64(31)) * _P1


@kernel
def _avalanche(a: Any) -> Any:
    a = (a ^ (a >> np.uint64(33))) * _P2
    a = (a ^ (a >> np.uint64(29))) * _P3
    return a ^ (a >> np.uint64(32))


@kernel
def _mix(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any, Any, Any]:
    """A permutation of 256 bits in which every bit of the output depends on every bit of the input."""
    for _ in range(3):
        a += _avalanche(d)
        b += _avalanche(a)
        c += _avalanche(b)
        d += _avalanche(c)
        a, b, c, d = _rotate64(b, np.uint64(13)), _rotate64(c, np.uint64(29)), _rotate64(d, np.uint64(43)), a
    return a, b, c, d


@kernel
def _add_hashes(data: Any, offsets: Any, valid: Any, seed: Any, lanes: Any) -> None:
    """Add the hash of each row's bytes under ``seed`` to ``lanes`` (uint64 [rows, 4])."""
    tail = np.zeros(32, dtype=np.uint8)
    for row in range(lanes.shape[0]):
        a, b, c, d = seed[0], seed[1], seed[2], seed[3]
        start, end = offsets[row], offsets[row + 1]
        length = np.uint64(end - start)
        if not valid[row]:
            start, end, length = 0, 0, np.uint64(0xFFFFFFFFFFFFFFFF)
        while end - start >= 32:
            a = _step(a, load64(data, start))
            b = _step(b, load64(data, start + 8))
            c = _step(c, load64(data, start + 16))
            d = _step(d, load64(data, start + 24))
            start += 32
        if end > start:
            tail[:] = 0
            for byte in range(end - start):
                tail[byte] = data[start + byte]
            a = _step(a, load64(tail, 0))
            b = _step(b, load64(tail, 8))
            c = _step(c, load64(tail, 16))
            d = _step(d, load64(tail, 24))
        a, b, c, d = _mix(a ^ length, b, c, d)
        lanes[row, 0] += a
        lanes[row, 1] += b
        lanes[row, 2] += c
        lanes[row, 3] += d


@kernel
def _sum_rows(lanes: Any, total: Any) -> None:
    """The sum modulo 2^256 of every row of ``lanes``, mixed; words in ``total`` from the lowest."""
    words = np.empty(4, dtype=np.uint64)
    for row in range(lanes.shape[0]):
        a, b, c, d = _mix(lanes[row, 0], lanes[row, 1], lanes[row, 2], lanes[row, 3])
        words[0], words[1], words[2], words[3] = a, b, c, d
        carry = np.uint64(0)
        for word in range(4):
            partial = total[word] + carry
            carry = np.uint64(1) if partial < carry else np.uint64(0)
            total[word] = partial + words[word]
            if total[word] < partial:
                carry = np.uint64(1)
