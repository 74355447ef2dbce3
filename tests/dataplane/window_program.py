"""What ranks of one node share, and what crosses between nodes: four ranks that take each other for two nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from mpi4py import MPI

from aaflow.dataplane.mpi import MpiCommunicator

world: MPI.Intracomm = MPI.COMM_WORLD


def shared_memory() -> int:
    """Bytes of shared memory that this process has touched."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssShmem")]
    return int(line.split()[1]) << 10


def table(rank: int, rows: int = 2000) -> tuple[pa.Table, np.ndarray[Any, np.dtype[np.int32]]]:
    numbers = np.arange(rows) + rank * rows
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers, 64).astype(np.float32)), 64)
    return pa.table({"n": numbers, "vector": vectors}), (numbers * 7 % world.size).astype(np.int32)


def check(got: pa.Table, rank: int) -> None:
    expected = np.concatenate([table(source)[0]["n"].to_numpy()[table(source)[1] == rank] for source in range(4)])
    assert got["n"].to_numpy().tolist() == expected.tolist()
    assert (got["vector"].combine_chunks().flatten().to_numpy() == np.repeat(expected, 64)).all()


class Counting:
    """A communicator that counts what it sends."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.sent: list[int] = []

    def Isend(self, message: Any, peer: int, tag: int) -> MPI.Request:
        self.sent.append(peer)
        return self.comm.Isend(message, peer, tag)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.comm, name)


# Ranks 0 and 2 are one node, 1 and 3 the other.
comm = MpiCommunicator(color=world.rank % 2)
counting = Counting(comm._comm)
comm._comm = comm._transport._comm = counting  # type: ignore[assignment]
mine, targets = table(comm.rank)
check(comm.shuffle(mine, targets), comm.rank)
sent = world.allgather(counting.sent)
senders = [rank for rank, peers in enumerate(sent) for _ in peers]
assert sorted(rank % 2 for rank in senders) == [0, 1], f"one message leaves each node: {sent}"
counting.sent.clear()
comm.broadcast(mine if comm.rank == 0 else None)
assert sum(len(peers) for peers in world.allgather(counting.sent)) == 1, "a broadcast crosses to a node once"

# One node: nothing is sent, and memory that was given back is used again.
comm = MpiCommunicator()
counting = Counting(comm._comm)
comm._comm = comm._transport._comm = counting  # type: ignore[assignment]
held = comm.shuffle(mine, targets)
for _ in range(10):  # MPI's own queues grow at first
    check(comm.shuffle(mine, targets), comm.rank)
before = shared_memory()
for _ in range(10):
    check(comm.shuffle(mine, targets), comm.rank)
assert shared_memory() - before < mine.nbytes // 2, "every shuffle touched new memory"
check(held, comm.rank)
del comm
check(held, world.rank)
assert counting.sent == []
