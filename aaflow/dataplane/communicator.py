"""Communicator: what the ranks of a task group do together with Arrow tables. No pickle: Arrow buffers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.dataplane.destinations import destinations
from aaflow.dataplane.topk import top_rows
from aaflow.errors import CollectiveError


class Communicator(Protocol):
    """The ranks of one task group. Every operation is collective: all ranks call it, in the same order.

    Tables have columns of any type, any number of chunks and any number of bytes; the schema is the same on every rank
    (but for its metadata) and the result has it. Where a rank can't take part (schemas that differ, a column that is
    not there), every rank raises :class:`aaflow.errors.CollectiveError`, which names that rank and the cause, and
    nothing was sent.
    """

    rank: int
    size: int

    def shuffle(self, table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str]) -> pa.Table:
        """Send every row to a rank; give the rows that came here.

        Args:
            table: the rows of this rank.
            by: the destination of every row, int32 [rows]; or names of key columns: rows whose keys are equal meet on
                one rank (see :func:`aaflow.dataplane.destinations.hash_rows`).

        Returns:
            Rows by the rank they come from, each rank's in the order it had them.
        """
        ...

    def broadcast(self, table: pa.Table | None) -> pa.Table:
        """Rank 0's table on every rank; what the others pass is ignored."""
        ...

    def gather(self, table: pa.Table) -> list[pa.Table] | None:
        """Every rank's table, by rank, on rank 0; None elsewhere."""
        ...

    def all_gather(self, table: pa.Table) -> list[pa.Table]:
        """Every rank's table, by rank, on every rank."""
        ...

    def reduce_topk(
        self, table: pa.Table, k: int, order: Sequence[tuple[str, str]], group: str | None = None
    ) -> pa.Table | None:
        """The first ``k`` rows of all ranks' tables, on rank 0; None elsewhere.

        Args:
            table: the rows of this rank.
            k: how many rows.
            order: pairs of column and ``"ascending"`` or ``"descending"``. Rows that tie come by rank and then in the
                order of their table; nulls and NaN come last.
            group: a column: ``k`` rows for each of its values, sorted by it.
        """
        ...

    def barrier(self) -> None:
        """Return when every rank has come here."""
        ...


class SerialCommunicator:
    """One rank alone."""

    rank = 0
    size = 1

    def shuffle(self, table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str]) -> pa.Table:
        """See :class:`Communicator`."""
        try:
            destinations(table, by, 1)
        except (ValueError, TypeError) as error:
            raise CollectiveError.of("shuffle", 0, error) from error
        return table

    def broadcast(self, table: pa.Table | None) -> pa.Table:
        """See :class:`Communicator`."""
        if table is None:
            raise CollectiveError.of("broadcast", 0, ValueError("rank 0 has to give a table"))
        return table

    def gather(self, table: pa.Table) -> list[pa.Table] | None:
        """See :class:`Communicator`."""
        return [table]

    def all_gather(self, table: pa.Table) -> list[pa.Table]:
        """See :class:`Communicator`."""
        return [table]

    def reduce_topk(
        self, table: pa.Table, k: int, order: Sequence[tuple[str, str]], group: str | None = None
    ) -> pa.Table | None:
        """See :class:`Communicator`."""
        try:
            return top_rows(table, k, order, group)
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise CollectiveError.of("reduce_topk", 0, error) from error

    def barrier(self) -> None:
        """See :class:`Communicator`."""


def communicator(backend: str) -> Communicator:
    """The communicator of this process's task group.

    Raises:
        DependencyError: the backend can't be imported.
        ValueError: its name is unknown.
    """
    if backend == "serial":
        return SerialCommunicator()
    if backend == "mpi":
        from aaflow.dataplane.mpi import MpiCommunicator

        return MpiCommunicator()
    if backend == "cylon":
        from aaflow.dataplane.cylon import CylonCommunicator

        return CylonCommunicator()
    raise ValueError(f"communicator {backend!r} is unknown: use 'serial', 'mpi' or 'cylon'")
