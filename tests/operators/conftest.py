"""Ranks of one group as threads of this process, and the items that operators take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from aaflow.dataplane.communicator import Communicator, SerialCommunicator
from aaflow.dataplane.destinations import destinations

Ranks = Callable[[int, Callable[[Communicator], Any]], list[Any]]


class Member(SerialCommunicator):
    """A rank of a group whose members are threads: they lay tables on a board and meet at a barrier."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(board)  # type: ignore[misc]
        self._board, self._barrier = board, barrier

    def shuffle(self, table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str]) -> pa.Table:
        where = destinations(table, by, self.size)
        parts = self._exchanged([table.filter(pa.array(where == rank)) for rank in range(self.size)])
        return pa.concat_tables([sent[self.rank] for sent in parts])

    def broadcast(self, table: pa.Table | None) -> pa.Table:
        return self._exchanged(table)[0]

    def gather(self, table: pa.Table) -> list[pa.Table] | None:
        everyone = self._exchanged(table)
        return everyone if self.rank == 0 else None

    def all_gather(self, table: pa.Table) -> list[pa.Table]:
        return self._exchanged(table)

    def _exchanged(self, mine: Any) -> list[Any]:
        self._board[self.rank] = mine
        self._barrier.wait()
        everyone = list(self._board)
        self._barrier.wait()
        return everyone


@pytest.fixture(scope="session")
def on_ranks() -> Ranks:
    """Does a thing on so many ranks at once; gives what each returned."""

    def run(size: int, work: Callable[[Communicator], Any]) -> list[Any]:
        barrier, board = threading.Barrier(size, timeout=30), [None] * size

        def member(rank: int) -> Any:
            try:
                return work(Member(rank, board, barrier))
            except BaseException:
                barrier.abort()
                raise

        with ThreadPoolExecutor(size) as pool:
            return [done.result() for done in [pool.submit(member, rank) for rank in range(size)]]

    return run
