"""What an operator is: ``(input, output, function, communication pattern)``.

An :class:`Operator` is a declaration, pure data that the compiler reads. What runs in a rank is a
:class:`StreamFunction` that the operator's import path names.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa


class Pattern(enum.Enum):
    """How the rows of an operator move between ranks."""

    EMBARRASSINGLY_PARALLEL = "embarrassingly-parallel"
    BROADCAST_REDUCE = "broadcast-reduce"
    REDUCE = "reduce"
    EXCHANGE = "exchange"
    SHUFFLE_REDUCE = "shuffle-reduce"
    SHUFFLE_COMPUTE = "shuffle-compute"


class Domain(enum.Enum):
    """The kind of slot that a stage needs."""

    CPU_PARTITION = "cpu-partition"
    BATCH_WORKER = "batch-worker"
    VECTOR_SHARD = "vector-shard"
    AGGREGATION = "aggregation"
    BATCH_WRITE = "batch-write"


@dataclass(frozen=True)
class Operator:
    """One operator of a workflow.

    Attributes:
        name: unique in its workflow; the word that errors and tables use.
        kind: ``load``, ``transform``, ``embed``, ``upsert``, ``retrieve``, … or ``apply`` for the user's own.
        function: ``module:name`` of what a rank calls.
        input: schema of the rows that come in; None for an operator that reads a listing.
        output: schema of the rows that go out; None for an operator that writes an index.
        options: what the function is called with; JSON values only.
        upstream: name of the operator whose output comes in.
    """

    name: str
    kind: str
    function: str
    input: pa.Schema | None
    output: pa.Schema | None
    pattern: Pattern
    domain: Domain
    options: Mapping[str, Any] = field(default_factory=dict)
    upstream: str | None = None


@dataclass(frozen=True)
class Item:
    """What flows between the operators of a rank: rows of one unit of commit, or the mark that the unit is complete.

    Attributes:
        tranche: the slice of the input listing that the rows come from.
        partition: the partition they belong to; -1 while a batch still mixes partitions (before a shuffle).
        rows: the rows, or None.
        notices: rows of :data:`aaflow.schema.NOTICES`, or None.
        last: nothing more comes of this (tranche, partition); of the whole tranche where partition is -1.
        borrowed: rows and notices may lie in the memory of an edge, which has few buffers: whoever waits for more items
            while it holds this one holds :meth:`owned` instead.
    """

    tranche: int
    partition: int
    rows: pa.RecordBatch | None = None
    notices: pa.RecordBatch | None = None
    last: bool = False
    borrowed: bool = False

    def owned(self) -> Item:
        """This item in memory of its own."""
        if not self.borrowed:
            return self
        # With it comes ZeroMQ, which only ranks need.
        from aaflow.dataplane.edge.frames import copied

        rows = copied(self.rows) if self.rows is not None else None
        notices = copied(self.notices) if self.notices is not None else None
        return Item(self.tranche, self.partition, rows, notices, self.last)


class StreamFunction(Protocol):
    """What runs in a rank: a generator over the items that come in.

    It may hold rows back to fill a batch (as :meth:`Item.owned`), keeps the order of items of one unit, passes
    ``notices`` and ``last`` on, and releases what it holds when it is closed. It is called in a thread of its own.
    """

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """Items out for items in."""
        ...
