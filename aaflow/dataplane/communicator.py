"""Communicator: what the ranks of a task group do together with Arrow tables. No pickle: Arrow IPC buffers only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from aaflow.errors import DependencyError

if TYPE_CHECKING:
    from mpi4py import MPI


class Communicator(Protocol):
    """The ranks of one task group. Every operation is collective: all ranks call it, in the same order."""

    rank: int
    size: int

    def broadcast(self, table: pa.Table | None) -> pa.Table:
        """Rank 0's table on every rank; the others pass None."""
        ...

    def gather(self, table: pa.Table) -> list[pa.Table] | None:
        """Every rank's table, by rank, on rank 0; None elsewhere."""
        ...

    def exchange(self, tables: Sequence[pa.Table]) -> list[pa.Table]:
        """Send ``tables[r]`` to rank ``r``; give what every rank sent here, by rank.

        Args:
            tables: one table a rank, all of one schema.
        """
        ...


class SerialCommunicator:
    """One rank alone."""

    rank = 0
    size = 1

    def broadcast(self, table: pa.Table | None) -> pa.Table:
        """See :class:`Communicator`."""
        if table is None:
            raise ValueError("rank 0 has to give a table to broadcast")
        return table

    def gather(self, table: pa.Table) -> list[pa.Table] | None:
        """See :class:`Communicator`."""
        return [table]

    def exchange(self, tables: Sequence[pa.Table]) -> list[pa.Table]:
        """See :class:`Communicator`."""
        return list(tables)


class MpiCommunicator:
    """Ranks of one MPI job, over a duplicate of its communicator.

    Messages are Arrow IPC streams in byte buffers. Waiting sleeps between tests of the request: MPI's own waiting
    spins on the core that the operators of this rank compute on.
    """

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise DependencyError(f"communicator 'mpi' needs mpi4py and an MPI library: {error}") from error
        self._mpi = MPI
        self._comm: MPI.Intracomm = MPI.COMM_WORLD.Dup()
        self.rank = self._comm.rank
        self.size = self._comm.size

    def broadcast(self, table: pa.Table | None) -> pa.Table:
        """See :class:`Communicator`."""
        sent = _pack(table) if table is not None and self.rank == 0 else np.empty(0, np.uint8)
        size = np.array([len(sent)], np.int64)
        _wait(self._comm.Ibcast(size, root=0))
        buffer = sent if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        _wait(self._comm.Ibcast(buffer, root=0))
        return _unpack(buffer)

    def gather(self, table: pa.Table) -> list[pa.Table] | None:
        """See :class:`Communicator`."""
        empty = table.schema.empty_table()
        received = self.exchange([table] + [empty] * (self.size - 1))
        return received if self.rank == 0 else None

    def exchange(self, tables: Sequence[pa.Table]) -> list[pa.Table]:
        """See :class:`Communicator`."""
        packed = [_pack(table) if rank != self.rank else np.empty(0, np.uint8) for rank, table in enumerate(tables)]
        sizes = np.array([len(buffer) for buffer in packed], np.int64)
        incoming = np.empty(self.size, np.int64)
        _wait(self._comm.Ialltoall(sizes, incoming))
        buffers = [np.empty(int(size), np.uint8) for size in incoming]
        others = [rank for rank in range(self.size) if rank != self.rank]
        requests = [self._comm.Irecv(buffers[rank], source=rank) for rank in others if incoming[rank]]
        requests += [self._comm.Isend(packed[rank], dest=rank) for rank in others if sizes[rank]]
        for request in requests:
            _wait(request)
        return [tables[rank] if rank == self.rank else _unpack(buffers[rank]) for rank in range(self.size)]


def communicator(backend: str) -> Communicator:
    """The communicator of this process's task group.

    Raises:
        DependencyError: the backend can't be imported.
        ValueError: its name is unknown.
    """
    if backend == "serial":
        return SerialCommunicator()
    if backend == "mpi":
        return MpiCommunicator()
    raise ValueError(f"communicator {backend!r} is unknown: use 'serial' or 'mpi'")


def _pack(table: pa.Table) -> np.ndarray[Any, np.dtype[np.uint8]]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return np.frombuffer(sink.getvalue(), np.uint8)


def _unpack(buffer: np.ndarray[Any, np.dtype[np.uint8]]) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(buffer)).read_all()


def _wait(request: Any) -> None:
    """Wait for an MPI request without spinning: the naps grow to 1 ms, so a late peer costs under 2 % of a core."""
    nap = 20e-6
    while not request.Test():
        time.sleep(nap)
        nap = min(nap * 1.5, 1e-3)
