"""Items over the edges between stages: where a rank's items go, and in which order a rank takes those of many.

Items of a rank come in the order of their tranches, and ``Item(tranche, -1, last=True)`` says that nothing more comes
of a tranche; both hold for what an :class:`Inlet` gives whatever the ranks before it did and when.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from aaflow.dataplane.edge import Message, Receiver, Sender, split_rows
from aaflow.operators.operator import Item
from aaflow.runtime.shuffle import by_partition, split_by, split_by_partition

#: Tranche, partition, last.
_TAG = struct.Struct("<ii?")
#: Bytes of rows that a rank gathers for their owners, at most.
GATHERED_BYTES = 16 << 20
#: Tranches by which a rank may be ahead of the slowest before its items are left in the edge.
_AHEAD = 1


def message_of(item: Item) -> Message:
    """An item as it travels: rows and notices are the two batches of an edge between stages."""
    return Message(_TAG.pack(item.tranche, item.partition, item.last), (item.rows, item.notices))


def item_of(message: Message) -> Item:
    """The inverse of :func:`message_of`."""
    tranche, partition, last = _TAG.unpack(message.tag)
    rows, notices = message.batches
    return Item(tranche, partition, rows, notices, last)


def ends_tranche(item: Item) -> bool:
    """Whether nothing more comes of the whole tranche."""
    return item.last and item.partition < 0


class Outlet(Protocol):
    """Takes what the last operator of a rank gives."""

    def put(self, item: Item) -> None:
        """Take an item; blocks while an edge is full."""
        ...

    def end(self) -> None:
        """Nothing more comes."""
        ...


class Forward:
    """Sends items to the consumers of this rank in turn; each consumer of several has no other producer.

    Args:
        senders: by rank of the next stage.
        buffer_bytes: what a message should fit into.
    """

    def __init__(self, senders: Mapping[int, Sender], buffer_bytes: int) -> None:
        self._senders = [senders[rank] for rank in sorted(senders)]
        self._buffer_bytes = buffer_bytes
        self._turn = 0

    def allocate(self, size: int) -> pa.Buffer | None:
        """Memory of the edge to this rank's only consumer; None where it gives none of that size."""
        (sender,) = self._senders
        return sender.allocate(size)

    def put(self, item: Item) -> None:
        """See :class:`Outlet`."""
        if ends_tranche(item):
            if item.rows is not None or item.notices is not None:
                self.put(replace(item, last=False))
            for sender in self._senders:
                sender.send(message_of(Item(item.tranche, -1, last=True)))
            return
        for part in _fitting(item, self._buffer_bytes):
            self._senders[self._turn].send(message_of(part))
        # Whoever needs whole units gets them by owner, or is the only consumer of this rank.
        self._turn = (self._turn + 1) % len(self._senders)

    def end(self) -> None:
        """See :class:`Outlet`."""
        for sender in self._senders:
            sender.end()


class ByOwner:
    """Sends rows and notices to the owner of their partition.

    What a message costs does not depend on its size, so rows are gathered until each of many owners gets a part that
    is worth one; the receiver needs a tranche whole before it goes on.

    Args:
        senders: one for every rank of the next stage.
        owners: rank that owns each partition.
        buffer_bytes: what a message should fit into.
    """

    def __init__(self, senders: Mapping[int, Sender], owners: Sequence[int], buffer_bytes: int) -> None:
        self._senders = senders
        self._owners = np.asarray(owners, np.int32)
        self._buffer_bytes = buffer_bytes
        self._enough = min(GATHERED_BYTES, len(senders) * buffer_bytes // 4)
        self._tranche = 0
        self._bytes = 0
        self._rows: dict[int, list[pa.RecordBatch]] = defaultdict(list)
        self._notices: dict[int, list[pa.RecordBatch]] = defaultdict(list)

    def put(self, item: Item) -> None:
        """See :class:`Outlet`."""
        size = sum(batch.nbytes for batch in (item.rows, item.notices) if batch is not None)
        if item.tranche != self._tranche or size >= self._enough:
            self._send_gathered()
        self._tranche = item.tranche
        self._gather(item.rows, self._rows)
        self._gather(item.notices, self._notices)
        self._bytes += size
        if self._bytes >= self._enough or ends_tranche(item):
            self._send_gathered()
        if ends_tranche(item):
            for sender in self._senders.values():
                sender.send(message_of(Item(item.tranche, -1, last=True)))

    def end(self) -> None:
        """See :class:`Outlet`."""
        self._send_gathered()
        for sender in self._senders.values():
            sender.end()

    def _gather(self, batch: pa.RecordBatch | None, parts: dict[int, list[pa.RecordBatch]]) -> None:
        """A copy of the rows of every owner, in their order: nothing else is held."""
        if batch is None or not batch.num_rows:
            return
        for rank, part in split_by(batch, self._owners[batch.column("partition").to_numpy()]).items():
            parts[rank].append(part)

    def _send_gathered(self) -> None:
        for rank in sorted({*self._rows, *self._notices}):
            for rows in _joined(self._rows.pop(rank, [])):
                for part in _fitting(Item(self._tranche, -1, rows), self._buffer_bytes):
                    self._senders[rank].send(message_of(part))
            for notices in _joined(self._notices.pop(rank, [])):
                for told in split_rows(notices, self._buffer_bytes):
                    self._senders[rank].send(message_of(Item(self._tranche, -1, None, told)))
        self._bytes = 0


def _joined(batches: Sequence[pa.RecordBatch]) -> Sequence[pa.RecordBatch]:
    """The rows of some batches in one; as they are where their dictionaries together would become a large one."""
    if len(batches) < 2 or any(pa.types.is_dictionary(kind) for kind in batches[0].schema.types):
        return batches
    joined: list[pa.RecordBatch] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


def _fitting(item: Item, limit: int) -> Iterator[Item]:
    """The item in parts whose rows fit a buffer; notices and ``last`` go with the last part."""
    if item.rows is None or item.rows.nbytes <= limit // 2:  # with room for the words around the rows
        yield item
        return
    parts = list(split_rows(item.rows, limit))
    for part in parts[:-1]:
        yield Item(item.tranche, item.partition, part)
    yield replace(item, rows=parts[-1])


class InTurn:
    """The inlet of a ``forward`` edge: one item of every producer in turn, tranche by tranche.

    The order does not depend on which producer is faster. While one is waited for, what the others have of a tranche is
    taken into memory of this rank: who feeds several producers must not be blocked by one while another starves.
    """

    def __init__(self, receiver: Receiver, producers: Iterable[int]) -> None:
        self._receiver = receiver
        self._producers = sorted(producers)
        self._ahead: dict[int, deque[Item | None]] = {rank: deque() for rank in self._producers}

    def __iter__(self) -> Iterator[Item]:
        heads: dict[int, Item] = {}
        waiting = list(self._producers)
        while True:
            for rank in list(waiting):
                item = self._take(rank)
                if item is not None:
                    heads[rank] = item
            if not heads:
                return
            tranche = min(item.tranche for item in heads.values())
            turn = [rank for rank in sorted(heads) if heads[rank].tranche == tranche]
            waiting = []
            while turn:
                for rank in list(turn):
                    item = heads.pop(rank)
                    if not ends_tranche(item):
                        yield item
                    following = None if ends_tranche(item) else self._take(rank)
                    if following is not None:
                        heads[rank] = following
                    if ends_tranche(item):
                        waiting.append(rank)
                    if following is None or following.tranche != tranche:
                        turn.remove(rank)
            yield Item(tranche, -1, last=True)

    def _take(self, rank: int) -> Item | None:
        """The next item of a producer; None at the end of its stream."""
        if self._ahead[rank]:
            return self._ahead[rank].popleft()
        while True:
            others = {other for other, items in self._ahead.items() if not _holds_tranche(items)}
            sender, message = self._receiver.take({rank, *others})
            item = replace(item_of(message), borrowed=True) if message is not None else None
            if sender == rank:
                if item is None:
                    self._ahead[rank].append(None)  # so that nobody waits for it again
                return item
            self._ahead[sender].append(item.owned() if item is not None else None)


def _holds_tranche(items: Sequence[Item | None]) -> bool:
    """Whether what was taken of a producer goes to the end of a tranche, or of its stream."""
    if not items:
        return False
    first, last = items[0], items[-1]
    return first is None or last is None or ends_tranche(last) or last.tranche != first.tranche


class Collector:
    """The inlet of an ``owner`` edge: gathers a tranche of all producers and gives it partition by partition.

    Rows are copied out of the edges as they come, since they are held until their tranche is complete; a producer that
    is ahead of the slowest by more than a tranche has to wait. Rows of a partition come by producer, in its order.

    Args:
        receiver: of the edge.
        producers: ranks of the stage before.
        partitions: that this rank owns.
        tranches: number of tranches of the run.
    """

    def __init__(self, receiver: Receiver, producers: Iterable[int], partitions: Sequence[int], tranches: int) -> None:
        self._receiver = receiver
        self._at = dict.fromkeys(producers, 0)
        self._partitions = partitions
        self._tranches = tranches
        self._rows: dict[int, dict[int, list[tuple[int, pa.RecordBatch]]]] = defaultdict(lambda: defaultdict(list))
        self._notices: dict[int, dict[int, list[tuple[int, pa.RecordBatch]]]] = defaultdict(lambda: defaultdict(list))

    def __iter__(self) -> Iterator[Item]:
        for tranche in range(self._tranches):
            while any(at <= tranche for at in self._at.values()):
                self._take({rank for rank, at in self._at.items() if at <= tranche + _AHEAD})
            rows, notices = self._rows.pop(tranche, {}), self._notices.pop(tranche, {})
            yield from by_partition(tranche, _in_order(rows), _in_order(notices), self._partitions)
        while self._at:
            self._take(set(self._at))

    def _take(self, among: set[int]) -> None:
        rank, message = self._receiver.take(among)
        if message is None:
            del self._at[rank]
            return
        item = item_of(message)
        self._at[rank] = item.tranche + ends_tranche(item)
        for held, batch in ((self._rows, item.rows), (self._notices, item.notices)):
            if batch is not None and batch.num_rows:
                for partition, part in split_by_partition(batch).items():
                    held[item.tranche][partition].append((rank, part))


def _in_order(held: Mapping[int, list[tuple[int, pa.RecordBatch]]]) -> dict[int, pa.Table]:
    """By partition, its rows by producer."""
    return {
        partition: pa.Table.from_batches([part for _, part in sorted(parts, key=lambda pair: pair[0])])
        for partition, parts in held.items()
    }


class OutputFile:
    """The rows that the last operator of a workflow gives in one rank, as an Arrow IPC file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)

    def put(self, item: Item) -> None:
        """See :class:`Outlet`."""
        if item.rows is not None:
            self._writer.write_batch(item.rows)

    def end(self) -> None:
        """See :class:`Outlet`."""
        self._writer.close()
        self._sink.close()
