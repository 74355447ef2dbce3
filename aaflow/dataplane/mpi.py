"""The ``mpi`` communicator: mpi4py on Arrow buffers."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from aaflow.dataplane.destinations import destinations
from aaflow.dataplane.rows import take_rows
from aaflow.dataplane.topk import top_rows
from aaflow.errors import CollectiveError, DependencyError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


class MpiCommunicator:
    """Ranks of one MPI job, over a duplicate of its communicator.

    Waiting sleeps between tests of the request: MPI's own waiting spins on the core that the operators of this rank
    compute on.
    """

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise DependencyError(f"communicator 'mpi' needs mpi4py and an MPI library: {error}") from error
        self._comm: MPI.Intracomm = MPI.COMM_WORLD.Dup()
        self.rank = self._comm.rank
        self.size = self._comm.size

    def shuffle(self, table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str]) -> pa.Table:
        """See :class:`Communicator`."""
        target = self.agree("shuffle", table.schema, lambda: destinations(table, by, self.size))
        order = np.argsort(target, kind="stable")
        ends = np.searchsorted(target[order], np.arange(self.size), side="right").tolist()
        parts = [take_rows(table, order[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        return pa.concat_tables(self._exchange(parts)).replace_schema_metadata(table.schema.metadata)

    def broadcast(self, table: pa.Table | None) -> pa.Table:
        """See :class:`Communicator`."""

        def given() -> pa.Table | None:
            if self.rank == 0 and table is None:
                raise ValueError("rank 0 has to give a table")
            return table

        mine = self.agree("broadcast", None, given)
        sent = _pack(mine) if mine is not None and self.rank == 0 else np.empty(0, np.uint8)
        size = np.array([len(sent)], np.int64)
        wait(self._comm.Ibcast(size, root=0))
        buffer = sent if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        wait(self._comm.Ibcast(buffer, root=0))
        return _unpack(buffer)

    def gather(self, table: pa.Table) -> list[pa.Table] | None:
        """See :class:`Communicator`."""
        self.agree("gather", table.schema, lambda: None)
        empty = table.schema.empty_table()
        received = self._exchange([table] + [empty] * (self.size - 1))
        return received if self.rank == 0 else None

    def all_gather(self, table: pa.Table) -> list[pa.Table]:
        """See :class:`Communicator`."""
        self.agree("all_gather", table.schema, lambda: None)
        return self._exchange([table] * self.size)

    def reduce_topk(
        self, table: pa.Table, k: int, order: Sequence[tuple[str, str]], group: str | None = None
    ) -> pa.Table | None:
        """See :class:`Communicator`."""
        mine = self.agree("reduce_topk", table.schema, lambda: top_rows(table, k, order, group))
        gathered = self.gather(mine)
        return top_rows(pa.concat_tables(gathered), k, order, group) if gathered is not None else None

    def barrier(self) -> None:
        """See :class:`Communicator`."""
        wait(self._comm.Ibarrier())

    def agree(self, operation: str, schema: pa.Schema | None, prepare: Callable[[], T]) -> T:
        """What ``prepare`` gives here, once it has worked on every rank and all have one schema.

        Args:
            operation: what the ranks are about to do together.
            schema: of this rank's table; None where ranks need not have the same.
            prepare: this rank's own work before anything is sent.

        Raises:
            CollectiveError: on every rank, where ``prepare`` raised on one or schemas differ.
        """
        result: T | None = None
        failure: Exception | None = None
        try:
            result = prepare()
        except Exception as error:
            failure = error
        said = f"{operation}\n{describe(schema)}" if schema is not None else operation
        record = np.zeros(40, np.uint8)
        record[:32] = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8)
        record[32] = failure is not None
        records = np.empty((self.size, 40), np.uint8)
        wait(self._comm.Iallgather(record, records))
        if not records[:, 32].any() and (records == record).all():
            return result  # type: ignore[return-value]
        texts = self._all_gather_text(str(failure) or repr(failure) if failure is not None else said)
        for rank in np.flatnonzero(records[:, 32]).tolist():
            raise CollectiveError.of(operation, rank, texts[rank]) from failure
        rank = int(np.flatnonzero((records[:, :32] != records[0, :32]).any(axis=1))[0])
        raise CollectiveError(difference(texts[0], texts[rank], rank), rank=rank)

    def _all_gather_text(self, text: str) -> list[str]:
        mine = np.frombuffer(text.encode(), np.uint8)
        sizes = np.empty(self.size, np.int64)
        wait(self._comm.Iallgather(np.array([len(mine)], np.int64), sizes))
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: len(mine)] = mine
        every = np.empty((self.size, len(padded)), np.uint8)
        wait(self._comm.Iallgather(padded, every))
        return [every[rank, : int(size)].tobytes().decode(errors="replace") for rank, size in enumerate(sizes)]

    def _exchange(self, tables: Sequence[pa.Table]) -> list[pa.Table]:
        """Send ``tables[r]`` to rank ``r``; give what every rank sent here, by rank."""
        packed = [_pack(table) if rank != self.rank else np.empty(0, np.uint8) for rank, table in enumerate(tables)]
        sizes = np.array([len(buffer) for buffer in packed], np.int64)
        incoming = np.empty(self.size, np.int64)
        wait(self._comm.Ialltoall(sizes, incoming))
        buffers = [np.empty(int(size), np.uint8) for size in incoming]
        others = [rank for rank in range(self.size) if rank != self.rank]
        requests = [self._comm.Irecv(buffers[rank], source=rank) for rank in others if incoming[rank]]
        requests += [self._comm.Isend(packed[rank], dest=rank) for rank in others if sizes[rank]]
        for request in requests:
            wait(request)
        return [tables[rank] if rank == self.rank else _unpack(buffers[rank]) for rank in range(self.size)]


def describe(schema: pa.Schema) -> str:
    """A schema as text, a line for each field, without metadata: what ranks compare."""
    text: str = schema.to_string(show_field_metadata=False, show_schema_metadata=False)
    return text


def difference(first: str, other: str, rank: int) -> str:
    """What rank 0 and ``rank`` are about to do differently."""
    ours, theirs = first.split("\n"), other.split("\n")
    if ours[0] != theirs[0]:
        return (
            f"rank 0 is in {ours[0]} and rank {rank} in {theirs[0]}: every rank calls the same operations in one order"
        )
    lines = itertools.zip_longest(ours, theirs, fillvalue="nothing more")
    has = next(pair for pair in lines if pair[0] != pair[1])
    return (
        f"{ours[0]}: rank {rank} can't take part: its table has another schema than rank 0's: "
        f"{has[1]!r} where rank 0 has {has[0]!r}"
    )


def wait(request: Any) -> None:
    """Wait for an MPI request without spinning: the naps grow with the wait, to 10 ms."""
    began = time.monotonic()
    while not request.Test():
        time.sleep(min(max((time.monotonic() - began) / 16, 20e-6), 10e-3))


def _pack(table: pa.Table) -> npt.NDArray[np.uint8]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return np.frombuffer(sink.getvalue(), np.uint8)


def _unpack(buffer: npt.NDArray[np.uint8]) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(buffer)).read_all()
