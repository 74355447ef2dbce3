from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.dataplane.communicator import SerialCommunicator
from aaflow.operators.operator import Item
from aaflow.runtime.shuffle import BATCH_ROWS, Shuffle, by_partition

ROWS = pa.schema([("partition", pa.int32()), ("n", pa.int64())])
PARTITIONS = 6
Row = tuple[int, int]  # partition, value


def rows_of(rows: Sequence[Row]) -> pa.RecordBatch:
    return pa.record_batch([[row[0] for row in rows], [row[1] for row in rows]], schema=ROWS)


def notices_of(partitions: Sequence[int]) -> pa.RecordBatch:
    told = [
        {"kind": "kept", "doc_id": str(n), "partition": p, "source": "s", "record": n, "reason": ""}
        for n, p in enumerate(partitions)
    ]
    return pa.RecordBatch.from_pylist(told, schema=schema.NOTICES)


row = st.tuples(st.integers(0, PARTITIONS - 1), st.integers(0, 99))
batches = st.lists(st.lists(row, max_size=5), max_size=4)
#: By tranche and rank, the batches that a rank has.
work = st.integers(1, 4).flatmap(
    lambda ranks: st.tuples(
        st.lists(st.lists(batches, min_size=ranks, max_size=ranks), min_size=1, max_size=3),
        st.lists(st.integers(0, ranks - 1), min_size=PARTITIONS, max_size=PARTITIONS),
    )
)
Work = tuple[list[list[list[list[Row]]]], list[int]]


def items_of(tranches: list[list[list[list[Row]]]], rank: int) -> Iterator[Item]:
    for tranche, by_rank in enumerate(tranches):
        for batch in by_rank[rank]:
            yield Item(tranche, -1, rows_of(batch), notices_of([p for p, _ in batch]) if batch else None)
        yield Item(tranche, -1, last=True)


def check_owned(given: Work, received: list[list[Item]]) -> None:
    """Every row is with the owner of its partition, in a unit that ends once, in the order of the senders."""
    tranches, owners = given
    for rank, items in enumerate(received):
        owned = [partition for partition, owner in enumerate(owners) if owner == rank]
        ended = [(item.tranche, item.partition) for item in items if item.last]
        assert ended == [(tranche, partition) for tranche in range(len(tranches)) for partition in [*owned, -1]]
        for tranche, by_rank in enumerate(tranches):
            sent = [row for batches in by_rank for batch in batches for row in batch]
            for partition in owned:
                here = [item for item in items if (item.tranche, item.partition) == (tranche, partition)]
                rows = [n for item in here if item.rows is not None for n in item.rows["n"].to_pylist()]
                assert rows == [n for p, n in sent if p == partition]
                told = [p for i in here if i.notices is not None for p in i.notices["partition"].to_pylist()]
                assert told == [partition] * len(rows)
                assert [item.last for item in here] == [False] * (len(here) - 1) + [True]


class Together:
    """Ranks of one group as threads of this process: the same collective operations, met at a barrier."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.board: list[Sequence[pa.Table]] = [()] * size
        self.barrier = threading.Barrier(size, timeout=30)

    def member(self, rank: int) -> Member:
        return Member(self, rank)


class Member(SerialCommunicator):
    def __init__(self, group: Together, rank: int) -> None:
        self.group, self.rank, self.size = group, rank, group.size  # type: ignore[misc]

    def shuffle(self, table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str]) -> pa.Table:
        assert isinstance(by, np.ndarray)
        self.group.board[self.rank] = [table.filter(pa.array(by == rank)) for rank in range(self.size)]
        self.group.barrier.wait()
        received = pa.concat_tables([sent[self.rank] for sent in self.group.board])
        self.group.barrier.wait()
        return received


@given(work)
def test_a_shuffle_brings_every_row_to_the_owner_of_its_partition(given: Work) -> None:
    tranches, owners = given
    ranks = len(tranches[0])
    group = Together(ranks)
    received: list[list[Item]] = [[] for _ in range(ranks)]

    def run(rank: int) -> None:
        shuffle = Shuffle(group.member(rank), owners, len(tranches), ROWS)
        received[rank] = list(shuffle(items_of(tranches, rank)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_owned(given, received)


def test_a_rank_that_reads_nothing_takes_part_in_every_exchange() -> None:
    shuffle = Shuffle(SerialCommunicator(), [0] * PARTITIONS, 2, ROWS)
    items = list(shuffle(iter([Item(1, -1, rows_of([(3, 7)]))])))
    assert [item.tranche for item in items if item.last] == [0] * (PARTITIONS + 1) + [1] * (PARTITIONS + 1)
    assert [item.rows["n"].to_pylist() for item in items if item.rows is not None] == [[7]]


def test_big_partitions_leave_in_batches() -> None:
    table = pa.Table.from_batches([rows_of([(2, n) for n in range(BATCH_ROWS + 1)])])
    items = list(by_partition(0, {2: table}, {}, [2]))
    assert [item.rows.num_rows for item in items if item.rows is not None] == [BATCH_ROWS, 1]
    assert [(item.partition, item.last) for item in items] == [(2, False), (2, False), (2, True), (-1, True)]
