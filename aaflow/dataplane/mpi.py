"""The ``mpi`` communicator: mpi4py on Arrow buffers, through shared memory where ranks share a node."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.dataplane.agreement import agree, wait
from aaflow.dataplane.basic import basic_schema, basic_table, original_table
from aaflow.dataplane.destinations import destinations
from aaflow.dataplane.sections import Rows, Section, read_section
from aaflow.dataplane.topk import top_rows
from aaflow.dataplane.transport import WINDOW_BYTES, Copies, Outgoing, Transport
from aaflow.errors import DependencyError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


class MpiCommunicator:
    """Ranks of one MPI job, over a duplicate of its communicator.

    Tables that come from other ranks lie in memory that the node's ranks share and that is used again when nothing
    refers to them; operators that keep rows for long copy them. Waiting sleeps between tests of the request: MPI's own
    waiting spins on the core that the operators of this rank compute on.

    Args:
        color: ranks of one machine that give different numbers here take each other for ranks of other nodes.
        window_bytes: of the shared memory of each rank, at most.
    """

    def __init__(self, color: int = 0, window_bytes: int = WINDOW_BYTES) -> None:
        start_mpi()
        from mpi4py import MPI

        # What follows waits spinning for ranks that start late.
        wait(MPI.COMM_WORLD.Ibarrier())
        self._comm: MPI.Intracomm = MPI.COMM_WORLD.Dup()
        self.rank = self._comm.rank
        self.size = self._comm.size
        self._transport = Transport(MPI, self._comm, color, window_bytes)

    def shuffle(self, table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str]) -> pa.Table:
        """See :class:`Communicator`."""

        def prepare() -> list[Callable[[], Outgoing]]:
            rows = basic_table(table)
            targets = destinations(rows, by, self.size)
            return [
                partial(Rows, rows.slice(start, count), targets[start : start + count], self.size)
                for start, count in self._cuts(rows)
            ]

        if self.size == 1:
            agree(self._comm, "shuffle", table.schema, lambda: destinations(table, by, 1))
            return table
        received = self._transport.exchange("shuffle", table.schema, prepare)
        return _table([section for sections in received for section in sections], table.schema)

    def broadcast(self, table: pa.Table | None) -> pa.Table:
        """See :class:`Communicator`."""
        schema = self._broadcast_schema(table)
        mine = table if table is not None and self.rank == 0 else schema.empty_table()
        for step in _tree(self._transport.nodes):
            received = self._send("broadcast", mine, [step[self.rank]] if self.rank in step else [])
            if self.rank in step.values():
                mine = received[next(source for source, to in step.items() if to == self.rank)]
        return mine

    def gather(self, table: pa.Table) -> list[pa.Table] | None:
        """See :class:`Communicator`."""
        received = self._send("gather", table, [0])
        return received if self.rank == 0 else None

    def all_gather(self, table: pa.Table) -> list[pa.Table]:
        """See :class:`Communicator`."""
        return self._send("all_gather", table, range(self.size))

    def reduce_topk(
        self, table: pa.Table, k: int, order: Sequence[tuple[str, str]], group: str | None = None
    ) -> pa.Table | None:
        """See :class:`Communicator`."""
        mine = agree(self._comm, "reduce_topk", table.schema, lambda: top_rows(table, k, order, group))
        gathered = self.gather(mine)
        return top_rows(pa.concat_tables(gathered), k, order, group) if gathered is not None else None

    def barrier(self) -> None:
        """See :class:`Communicator`."""
        wait(self._comm.Ibarrier())

    def agree(self, operation: str, schema: pa.Schema | None, prepare: Callable[[], T]) -> T:
        """See :func:`aaflow.dataplane.agreement.agree`."""
        return agree(self._comm, operation, schema, prepare)

    def _send(self, operation: str, table: pa.Table, to: Sequence[int]) -> list[pa.Table]:
        """Send a whole table to some ranks; what came from each rank, and the own table where it is one of them."""
        others = [rank for rank in to if rank != self.rank]

        def whole(rows: pa.Table) -> Outgoing:
            return Copies(Rows(rows, np.zeros(rows.num_rows, np.int32), 1), others, self.size)

        def prepare() -> list[Callable[[], Outgoing]]:
            rows = basic_table(table)
            return [partial(whole, rows.slice(*cut)) for cut in self._cuts(rows)]

        received = self._transport.exchange(operation, table.schema, prepare)
        tables = [_table(sections, table.schema) for sections in received]
        if self.rank in to:
            tables[self.rank] = table
        return tables

    def _cuts(self, table: pa.Table) -> list[tuple[int, int]]:
        """Where the rows of each round begin, and how many they are; at least one round."""
        return list(cut_rows(table, 0, self._transport.round_bytes))

    def _broadcast_schema(self, table: pa.Table | None) -> pa.Schema:
        """The schema of rank 0's table."""

        def given() -> npt.NDArray[np.uint8]:
            if self.rank != 0:
                return np.empty(0, np.uint8)
            if table is None:
                raise ValueError("rank 0 has to give a table")
            return np.frombuffer(table.schema.serialize(), np.uint8)

        text = agree(self._comm, "broadcast", None, given)
        size = np.array([len(text)], np.int64)
        wait(self._comm.Ibcast(size))
        if self.rank != 0:
            text = np.empty(int(size[0]), np.uint8)
        wait(self._comm.Ibcast(text))
        return pa.ipc.read_schema(pa.py_buffer(text))


@functools.cache
def start_mpi() -> None:
    """Import MPI, which starts it; at its end this process waits for all others of the job without spinning.

    Raises:
        DependencyError: there is no mpi4py, or no library that it can load.
    """
    try:
        if _is_pypi_mpich_under_pmi2():
            _avoid_its_traps()
        from mpi4py import MPI  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise DependencyError(f"communicator 'mpi' needs mpi4py and an MPI library: {error}") from error
    atexit.register(_wait_for_all)  # before MPI_Finalize, in which Open MPI's processes use their cores


def _table(sections: Sequence[Section], schema: pa.Schema) -> pa.Table:
    """The rows of all sections, as a table of the types that were sent."""
    if not sections:
        return schema.empty_table()
    basic = basic_schema(schema)
    return original_table(pa.concat_tables([read_section(section, basic) for section in sections]), schema)


def cut_rows(table: pa.Table, start: int, limit: int) -> Iterator[tuple[int, int]]:
    """Runs of rows of at most ``limit`` bytes; a row that has more is one of its own."""
    if table.num_rows <= 1 or size_of(table) <= limit:
        yield start, table.num_rows
        return
    half = table.num_rows // 2
    yield from cut_rows(table.slice(0, half), start, limit)
    yield from cut_rows(table.slice(half), start + half, limit)


def size_of(table: pa.Table) -> int:
    """Bytes of a table's rows. Of chunks that have any: pyarrow 9 crashes on ``nbytes`` of one without buffers."""
    return sum(chunk.nbytes for column in table.columns for chunk in column.chunks if len(chunk))


def _is_pypi_mpich_under_pmi2() -> bool:
    if {"SLURM_STEP_ID", "PMI_FD", "PMI_JOBID"} <= os.environ.keys():  # Hydra under Slurm has no such PMI_JOBID
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return bool(importlib.metadata.distribution("mpich"))
    return False


def _avoid_its_traps() -> None:
    """Have MPICH from PyPI start and end where Slurm's pmi2 plugin started this rank; the environment's word counts.

    It must not use UCX: that plugin reads a request of PMI-1 up to 1024 bytes and takes the rest for the next one
    (``handle_pmi1_cmd`` in Slurm's ``mpi/pmi2/pmi1.c``). MPICH puts its UCX address with what lies behind it in memory,
    511 bytes a request and two digits a byte other than 0 (``MPIDI_UCX_comm_addr_exchange``): by what that memory held
    before, ranks find each other, fail or wait for ever. OFI's addresses are short. It can't do PMI-2, which has no
    such limit.

    Of OFI's providers it must not use ``sockets``, its choice before ``tcp``: ranks may wait in ``MPI_Init`` for ever
    (see pmodels/mpich#5437), of 8 on 4 busy nodes in one of ten starts. With ``tcp`` they start, but ``MPI_Finalize``
    fails (``fabricclose``: busy), so it is left out (:func:`_leave`).
    """
    import mpi4py

    os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
    os.environ.setdefault("FI_PROVIDER", "^sockets")
    mpi4py.rc.finalize = False
    atexit.register(_leave)


def _wait_for_all() -> None:
    from mpi4py import MPI

    if MPI.Is_initialized() and not MPI.Is_finalized():
        wait(MPI.COMM_WORLD.Ibarrier())


def _leave() -> None:
    """End without ``MPI_Finalize``: what it does is to wait for all ranks, and to remove the names of shared memory."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        mapped = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if " /dev/shm/mpich_" in line}
    for path in mapped:
        with contextlib.suppress(FileNotFoundError):  # another rank of this node was first
            os.unlink(path)


def _tree(nodes: Sequence[Sequence[int]]) -> Iterator[dict[int, int]]:
    """Who sends to whom, step by step: each node's first rank gets it from another node's, the others from their node.

    The ranks that have it double in every step.
    """
    for groups in ([[ranks[0] for ranks in nodes]], nodes):
        have = 1
        while have < max(len(group) for group in groups):
            yield {group[at]: group[at + have] for group in groups for at in range(min(have, len(group) - have))}
            have *= 2
