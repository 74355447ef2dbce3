from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.compiler.plan import forward_pairs
from aaflow.dataplane.edge import Message
from aaflow.operators.operator import Item
from aaflow.runtime.streams import (
    ByOwner,
    Collector,
    Forward,
    InTurn,
    Outlet,
    OutputFile,
    ends_tranche,
    item_of,
    message_of,
)

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


class Wires:
    """Edges whose messages arrive in an order that the test chooses, since no real edge would do so on demand."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.sent: dict[tuple[int, int], list[Message | None]] = defaultdict(list)

    def senders(self, producer: int, consumers: Collection[int]) -> dict[int, End]:
        return {consumer: End(self.sent[producer, consumer]) for consumer in consumers}

    def receiver(self, consumer: int, producers: Collection[int]) -> Receiving:
        return Receiving({producer: self.sent[producer, consumer] for producer in producers}, self.chance)


class End:
    def __init__(self, sent: list[Message | None]) -> None:
        self.sent = sent

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def allocate(self, size: int) -> pa.Buffer | None:
        return None

    def end(self) -> None:
        self.sent.append(None)


class Receiving:
    def __init__(self, sent: Mapping[int, list[Message | None]], chance: random.Random) -> None:
        self.sent = {producer: list(messages) for producer, messages in sent.items()}
        self.chance = chance

    def take(self, among: Collection[int] | None = None) -> tuple[int, Message | None]:
        ready = sorted(rank for rank in (self.sent if among is None else among) if self.sent[rank])
        if not ready:
            raise LookupError
        rank = self.chance.choice(ready)
        return rank, self.sent[rank].pop(0)


row = st.tuples(st.integers(0, PARTITIONS - 1), st.integers(0, 99))
batches = st.lists(st.lists(row, max_size=5), max_size=4)
#: By tranche and producer, the batches that it has.
work = st.integers(1, 4).flatmap(
    lambda ranks: st.lists(st.lists(batches, min_size=ranks, max_size=ranks), min_size=1, max_size=3)
)
Work = list[list[list[list[Row]]]]


def produce(work: Work, rank: int, outlet: Outlet) -> None:
    for tranche, by_rank in enumerate(work):
        for batch in by_rank[rank]:
            outlet.put(Item(tranche, -1, rows_of(batch), notices_of([p for p, _ in batch]) if batch else None))
        if by_rank[rank]:
            outlet.put(Item(tranche, -1, last=True))
    outlet.end()


#: A batch has a message of its own, or some of a tranche share one, or all.
buffer_sizes = st.sampled_from([64, 1024, 1 << 20])


def by_owner(work: Work, owners: Sequence[int], consumers: int, seed: int, buffer_bytes: int) -> list[list[Item]]:
    wires = Wires(seed)
    ranks = range(len(work[0]))
    for rank in ranks:
        produce(work, rank, ByOwner(wires.senders(rank, range(consumers)), owners, buffer_bytes))
    owned = [[p for p, owner in enumerate(owners) if owner == rank] for rank in range(consumers)]
    return [list(Collector(wires.receiver(c, ranks), ranks, owned[c], len(work))) for c in range(consumers)]


def forward(work: Work, consumers: int, seed: int) -> list[list[Item]]:
    wires = Wires(seed)
    pairs = forward_pairs(len(work[0]), consumers)
    for rank in range(len(work[0])):
        produce(work, rank, Forward(wires.senders(rank, [c for p, c in pairs if p == rank]), 64))
    feeding = [[p for p, c in pairs if c == rank] for rank in range(consumers)]
    return [list(InTurn(wires.receiver(rank, feeding[rank]), feeding[rank])) for rank in range(consumers)]


def values(items: Sequence[Item]) -> list[tuple[int, int]]:
    return [(item.tranche, n) for item in items if item.rows is not None for n in item.rows["n"].to_pylist()]


def logical(items: Sequence[Item]) -> list[object]:
    return [(i.tranche, i.partition, i.last, i.rows.to_pydict() if i.rows is not None else None) for i in items]


@given(
    work,
    st.lists(st.integers(0, 9), min_size=PARTITIONS, max_size=PARTITIONS),
    st.integers(1, 4),
    st.integers(0, 9),
    buffer_sizes,
)
def test_rows_come_to_the_owner_of_their_partition_in_the_order_of_the_producers(
    work: Work, owners: list[int], consumers: int, seed: int, buffer_bytes: int
) -> None:
    owners = [owner % consumers for owner in owners]
    for rank, items in enumerate(by_owner(work, owners, consumers, seed, buffer_bytes)):
        owned = [partition for partition, owner in enumerate(owners) if owner == rank]
        ended = [(item.tranche, item.partition) for item in items if item.last]
        assert ended == [(tranche, partition) for tranche in range(len(work)) for partition in [*owned, -1]]
        for tranche, by_rank in enumerate(work):
            sent = [row for batches in by_rank for batch in batches for row in batch]
            for partition in owned:
                here = [item for item in items if (item.tranche, item.partition) == (tranche, partition)]
                assert [n for _, n in values(here)] == [n for p, n in sent if p == partition]
                told = [p for i in here if i.notices is not None for p in i.notices["partition"].to_pylist()]
                assert told == [p for p, _ in sent if p == partition]


def test_rows_for_many_owners_are_gathered_into_few_messages() -> None:
    """Of 100 batches with two rows for each owner: one message a tranche, with all rows in their order."""
    wires = Wires(0)
    outlet = ByOwner(wires.senders(0, range(PARTITIONS)), range(PARTITIONS), 1 << 20)
    for tranche in range(2):
        for number in range(100):
            outlet.put(Item(tranche, -1, rows_of([(p, 2 * number + n) for n in range(2) for p in range(PARTITIONS)])))
        outlet.put(Item(tranche, -1, last=True))
    for owner in range(PARTITIONS):
        sent = [item_of(message) for message in wires.sent[0, owner] if message is not None]
        assert [(item.tranche, item.last) for item in sent] == [(0, False), (0, True), (1, False), (1, True)]
        for item in sent[::2]:
            assert item.rows is not None
            assert item.rows["n"].to_pylist() == list(range(200))


def test_what_was_gathered_of_a_tranche_that_is_not_closed_is_sent_too() -> None:
    wires = Wires(0)
    outlet = ByOwner(wires.senders(0, [0]), [0], 1 << 20)
    for tranche in range(2):
        outlet.put(Item(tranche, -1, rows_of([(0, tranche)]), notices_of([0])))
    outlet.end()
    sent = [item_of(message) for message in wires.sent[0, 0] if message is not None]
    assert [(i.tranche, i.rows["n"].to_pylist()) for i in sent if i.rows is not None] == [(0, [0]), (1, [1])]
    assert [i.tranche for i in sent if i.notices is not None] == [0, 1]


@given(work, st.integers(1, 5), st.integers(0, 9))
def test_forwarded_rows_all_arrive_tranche_by_tranche(work: Work, consumers: int, seed: int) -> None:
    received = forward(work, consumers, seed)
    sent = [(tranche, n) for tranche, ranks in enumerate(work) for b in ranks for rows in b for _, n in rows]
    assert sorted(value for items in received for value in values(items)) == sorted(sent)
    for items in received:
        tranches = [item.tranche for item in items]
        assert tranches == sorted(tranches)
        ends = [position for position, item in enumerate(items) if ends_tranche(item)]
        assert [items[at].tranche for at in ends] == sorted(set(tranches))
        assert all(at + 1 == len(items) or items[at + 1].tranche > items[at].tranche for at in ends)


@given(work, st.integers(1, 4), st.integers(0, 99), st.integers(0, 99), buffer_sizes)
def test_what_a_rank_gets_does_not_depend_on_who_was_faster(
    work: Work, consumers: int, one: int, other: int, buffer_bytes: int
) -> None:
    owners = [partition % consumers for partition in range(PARTITIONS)]
    runs: list[Callable[[int], list[list[Item]]]] = [
        lambda seed: by_owner(work, owners, consumers, seed, buffer_bytes),
        lambda seed: forward(work, consumers, seed),
    ]
    for run in runs:
        assert [logical(items) for items in run(one)] == [logical(items) for items in run(other)]


def test_while_one_producer_is_waited_for_the_others_are_not_blocked() -> None:
    class LateUntilTaken(Receiving):
        """Rank 0 has nothing until rank 1's edge is empty, as where one producer feeds both through full edges."""

        def take(self, among: Collection[int] | None = None) -> tuple[int, Message | None]:
            assert among is not None
            assert 1 in among or len(self.sent[1]) <= 1, "waits for rank 0 alone, which waits for rank 1"
            return super().take({1} & set(among) if len(self.sent[1]) > 1 else among)

    wires = Wires(0)
    for rank in (0, 1):
        produce([[[[(0, 10 + n)] for n in range(9)]] * 2], rank, Forward(wires.senders(rank, [0]), 64))
    receiver = LateUntilTaken({rank: wires.sent[rank, 0] for rank in (0, 1)}, wires.chance)
    items = list(InTurn(receiver, [0, 1]))  # type: ignore[arg-type]
    assert [n for _, n in values(items)] == [10 + n for n in range(9) for _ in (0, 1)]


def test_rows_that_fill_more_than_a_buffer_go_in_parts_and_the_end_goes_with_the_last() -> None:
    wires = Wires(0)
    outlet = Forward(wires.senders(0, [0]), 64)
    outlet.put(Item(3, 2, rows_of([(2, n) for n in range(50)]), notices_of([2]), last=True))
    items = [item_of(message) for message in wires.sent[0, 0] if message is not None]
    assert [n for _, n in values(items)] == list(range(50))
    assert all(item.rows is not None and item.rows.nbytes <= 64 for item in items)
    assert [item.last for item in items] == [False] * (len(items) - 1) + [True]
    assert [item.notices is not None for item in items] == [item.last for item in items]


@pytest.mark.parametrize("item", [Item(0, -1), Item(7, 3, rows_of([(3, 1)]), notices_of([3]), last=True)])
def test_an_item_survives_its_message(item: Item) -> None:
    assert item_of(message_of(item)) == item


def test_the_output_of_a_rank_is_an_arrow_file_of_its_schema_even_if_empty(tmp_path: Path) -> None:
    out = OutputFile(tmp_path / "s.0.arrow", ROWS)
    out.put(Item(0, 1, rows_of([(1, 5), (1, 6)])))
    out.put(Item(0, 1, last=True))
    out.end()
    OutputFile(tmp_path / "s.1.arrow", ROWS).end()
    read = [pa.ipc.open_file(tmp_path / f"s.{rank}.arrow").read_all() for rank in range(2)]
    assert read[0]["n"].to_pylist() == [5, 6]
    assert (read[1].num_rows, read[1].schema) == (0, ROWS)
