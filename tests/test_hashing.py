"""Hashes of columns: what they equal, and what must not change them."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aaflow import sha256 as kernels
from aaflow.hashing import (
    combine_digests,
    digest_hex,
    partition_of,
    partition_of_id,
    row_digest_sum,
    sha256,
    sha256_rows,
)
from aaflow.kernel import kernel

#: The first call of a kernel compiles it.
UNHURRIED = settings(deadline=None, max_examples=60)
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=200)), max_size=20)


def prefixed(*values: bytes | None) -> bytes:
    """What sha256_rows hashes, written down a second time."""
    return b"".join(b"\xff" * 8 if v is None else len(v).to_bytes(8, "little") + v for v in values)


@UNHURRIED
@given(TEXTS, st.sampled_from([pa.string(), pa.large_string()]), st.integers(0, 5))
def test_sha256_equals_hashlib_on_any_slice(texts: list[str | None], kind: pa.DataType, skip: int) -> None:
    column = pa.array(texts, kind).slice(skip)
    expected = [None if text is None else hashlib.sha256(text.encode()).digest() for text in texts[skip:]]
    assert sha256(column).to_pylist() == expected
    assert sha256(column).type == pa.binary(32)


def test_sha256_equals_hashlib_around_every_block_length() -> None:
    values = [bytes(range(256))[:length] for length in range(200)]
    expected = [hashlib.sha256(value).digest() for value in values]
    assert sha256(pa.array(values, pa.binary())).to_pylist() == expected
    assert sha256(pa.array(values, pa.large_binary())).to_pylist() == expected


def test_sha256_of_fixed_size_values_covers_their_bytes() -> None:
    values = [b"0123456789abcdef", b"fedcba9876543210", b"again and again!"]
    column = pa.array(values, pa.binary(16)).slice(1)
    assert sha256(column).to_pylist() == [hashlib.sha256(value).digest() for value in values[1:]]
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4).slice(1)
    assert sha256(column).to_pylist() == [hashlib.sha256(vector.tobytes()).digest() for vector in vectors[1:]]


@kernel
def _both(state: Any, data: Any, plain: bool) -> None:
    if plain:
        kernels._compress(state, data, 0)
    else:
        kernels._compress_block(state, data, 0)


@UNHURRIED
@given(st.binary(min_size=64, max_size=64))
def test_the_plain_compression_equals_the_one_that_this_cpu_takes(block: bytes) -> None:
    states = [kernels._START.copy(), kernels._START.copy()]
    for plain, state in zip((True, False), states, strict=True):
        _both(state, np.frombuffer(block, np.uint8), plain)
    assert states[0].tolist() == states[1].tolist()


@UNHURRIED
@given(st.lists(st.tuples(st.one_of(st.none(), st.text(max_size=90)), st.integers(-(2**63), 2**63 - 1)), max_size=20))
def test_sha256_rows_hashes_length_prefixed_values(rows: list[tuple[str | None, int]]) -> None:
    texts, numbers = pa.array([row[0] for row in rows], pa.string()), pa.array([row[1] for row in rows], pa.int64())
    expected = []
    for text, number in rows:
        message = prefixed(None if text is None else text.encode(), number.to_bytes(8, "little", signed=True))
        expected.append(hashlib.sha256(message).digest()[:16])
    assert sha256_rows([texts, numbers], 16).to_pylist() == expected


def test_sha256_rows_takes_every_type_of_the_schemas() -> None:
    metadata = pa.array(
        [{"day": datetime.date(2020, 1, 1), "ok": True, "title": "a"}, {"day": None, "ok": None, "title": ""}, None],
        pa.struct({"day": pa.date32(), "ok": pa.bool_(), "title": pa.string()}),
    )
    when = pa.array([0, 1, None], pa.timestamp("us", tz="UTC"))
    score = pa.array([0.5, -0.0, 0.0], pa.float32())
    hashes = sha256_rows([metadata, when, score]).to_pylist()
    assert len(set(hashes)) == 3
    day = (datetime.date(2020, 1, 1) - datetime.date(1970, 1, 1)).days.to_bytes(4, "little")
    first = prefixed(b"\x01", day, b"\x01", b"a", bytes(8), np.float32(0.5).tobytes())
    assert hashes[0] == hashlib.sha256(first).digest()


def test_sha256_rows_of_much_text_is_the_same_in_parts() -> None:
    column = pa.array([str(number) * (number % 3000) for number in range(700)])
    at_once = sha256_rows([column, column]).to_pylist()
    by_row = [sha256_rows([column.slice(row, 1), column.slice(row, 1)])[0].as_py() for row in range(700)]
    assert at_once == by_row


def test_moving_a_character_to_the_next_column_changes_the_hash() -> None:
    one, other = [pa.array(["ab"]), pa.array(["c"])], [pa.array(["a"]), pa.array(["bc"])]
    assert sha256_rows(one) != sha256_rows(other)
    assert sha256_rows([pa.array([""])]) != sha256_rows([pa.array([None], pa.string())])


@UNHURRIED
@given(st.lists(st.text(max_size=40), max_size=20), st.integers(1, 1000))
def test_a_partition_is_the_same_for_a_column_and_for_one_id(ids: list[str], partitions: int) -> None:
    found = partition_of(pa.array(ids, pa.string()), partitions)
    assert found.type == pa.int32()
    assert found.to_pylist() == [partition_of_id(name, partitions) for name in ids]
    expected = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % partitions for name in ids]
    assert found.to_pylist() == expected


def table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(rows * 40, dtype=np.float32)), 40)
    texts = pa.array([None if n % 7 == 0 else "x" * int(n) for n in rng.integers(0, 200, rows)], pa.string())
    meta = pa.array([None if n % 5 == 0 else {"title": str(n)} for n in range(rows)], pa.struct({"title": pa.string()}))
    return pa.table({"text": texts, "n": rng.integers(0, 9, rows), "flag": texts.is_null(), "v": vectors, "m": meta})


@UNHURRIED
@given(st.integers(0, 60), st.randoms(use_true_random=False))
def test_the_digest_depends_on_rows_alone(cut: int, random: Any) -> None:
    rows = table(60)
    digest = row_digest_sum(rows)
    order = list(range(60))
    random.shuffle(order)
    shuffled = rows.take(pa.array(order))
    parts = combine_digests(row_digest_sum(shuffled.slice(0, cut)), row_digest_sum(shuffled.slice(cut)))
    assert parts == digest
    assert row_digest_sum(pa.concat_tables([shuffled.slice(cut), shuffled.slice(0, cut)])) == digest
    assert row_digest_sum(rows.combine_chunks().to_batches()[0]) == digest
    assert row_digest_sum(rows.select(["v", "m", "n", "flag", "text"])) == digest


def test_every_single_change_changes_the_digest() -> None:
    rows = pa.table({"a": ["x", "", None], "b": pa.array([1, 2, None], pa.int64())})
    changed = [
        pa.table({"a": ["x", "", ""], "b": pa.array([1, 2, None], pa.int64())}),
        pa.table({"a": ["x", None, None], "b": pa.array([1, 2, None], pa.int64())}),
        pa.table({"a": ["x", "", None], "b": pa.array([1, 2, 0], pa.int64())}),
        pa.table({"a": ["x", "", None], "b": pa.array([1, 2, None], pa.uint64())}),
        pa.table({"a": ["x", "", None], "c": pa.array([1, 2, None], pa.int64())}),
        pa.table({"a": ["", "x", None], "b": pa.array([1, 2, None], pa.int64())}),
        pa.table({"a": ["x\0", "", None], "b": pa.array([1, 2, None], pa.int64())}),
        pa.concat_tables([rows, rows.slice(0, 1)]),
    ]
    digests = [row_digest_sum(one) for one in [rows, *changed]]
    assert len(set(digests)) == len(digests)


def test_every_bit_of_a_vector_counts() -> None:
    vector = np.linspace(0, 1, 9, dtype=np.float32)
    digests = set()
    for bit in range(9 * 32):
        bits = vector.view(np.uint32).copy()
        bits[bit // 32] ^= np.uint32(1 << (bit % 32))
        column = pa.FixedSizeListArray.from_arrays(pa.array(bits.view(np.float32)), 9)
        digests.add(row_digest_sum(pa.table({"v": column})))
    assert len(digests) == 9 * 32


def test_the_bits_of_row_hashes_are_balanced() -> None:
    digests = [row_digest_sum(pa.table({"n": pa.array([n], pa.int64())})) for n in range(400)]
    ones = np.array([[digest >> bit & 1 for bit in range(256)] for digest in digests]).mean(axis=0)
    assert np.all(np.abs(ones - 0.5) < 0.15)  # 6 standard deviations


def test_no_rows_have_the_digest_zero() -> None:
    assert row_digest_sum(table(0)) == 0
    assert digest_hex(0) == "0" * 64
    assert combine_digests(2**256 - 1, 2) == 1


def test_types_without_flat_bytes_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="list<"):
        row_digest_sum(pa.table({"x": pa.array([[1], [2, 3]])}))
    with pytest.raises(TypeError, match="null"):
        row_digest_sum(pa.table({"x": pa.array([[1, None]], pa.list_(pa.int32(), 2))}))
