from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.compiler.partitioning import balance, partition_owners, split_readers

sizes = st.lists(st.integers(0, 10**9), max_size=60)
ranks = st.integers(1, 9)


def listing(rows: list[tuple[int, int, int]]) -> pa.Table:
    """A listing of (partition, tranche, bytes); partition -1 is a split of records."""
    return pa.table(
        {
            "root": ["file:///r"] * len(rows),
            "source": [f"{number}.txt" for number in range(len(rows))],
            "uri": [f"file:///r/{number}.txt" for number in range(len(rows))],
            "format": ["txt"] * len(rows),
            "compression": [""] * len(rows),
            "size": [size for _, _, size in rows],
            "mtime_ns": [0] * len(rows),
            "start": [0] * len(rows),
            "end": [size for _, _, size in rows],
            "records": [partition < 0 for partition, _, _ in rows],
            "partition": [partition for partition, _, _ in rows],
            "tranche": [tranche for _, tranche, _ in rows],
        },
        schema=schema.LISTING,
    )


@given(sizes, ranks)
def test_no_rank_carries_more_than_its_share_and_one_thing(weights: list[int], ranks: int) -> None:
    dealt = balance(np.array(weights, np.int64), ranks)
    loads = np.bincount(dealt, weights=weights, minlength=ranks)
    assert loads.max(initial=0) <= sum(weights) / ranks + max(weights, default=0)


@given(sizes, ranks)
def test_dealing_is_the_same_every_time(weights: list[int], ranks: int) -> None:
    first, second = (balance(np.array(weights, np.int64), ranks) for _ in range(2))
    assert first.tolist() == second.tolist()


rows = st.lists(st.tuples(st.integers(-1, 15), st.integers(0, 3), st.integers(0, 10**6)), max_size=40)


@given(rows, ranks)
def test_a_whole_document_is_read_by_the_owner_of_its_partition(rows: list[tuple[int, int, int]], ranks: int) -> None:
    table = listing(rows)
    owners = partition_owners(table, 16, ranks)
    readers = split_readers(table, owners, ranks)
    assert len(owners) == 16
    assert set(owners) <= set(range(ranks))
    for (partition, _, _), reader in zip(rows, readers, strict=True):
        assert 0 <= reader < ranks
        if partition >= 0:
            assert reader == owners[partition]


def test_splits_of_record_files_are_shared_out_inside_each_tranche() -> None:
    table = listing([(-1, tranche, 1000) for tranche in range(3) for _ in range(4)])
    readers = split_readers(table, partition_owners(table, 8, 4), 4)
    for tranche in range(3):
        assert sorted(readers[tranche * 4 : tranche * 4 + 4]) == [0, 1, 2, 3]
