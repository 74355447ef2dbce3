"""What the ranks of test_communicator do."""

from __future__ import annotations

import sys

import pyarrow as pa

from aaflow.dataplane.communicator import communicator


def table(rank: int, rows: int) -> pa.Table:
    return pa.table(
        {
            "rank": pa.array([rank] * rows, pa.int32()),
            "text": pa.array([f"row {row} of {rank}: ü" if row % 3 else None for row in range(rows)]),
            "vector": pa.array([[float(rank), float(row)] for row in range(rows)], pa.list_(pa.float32(), 2)),
        }
    )


comm = communicator(sys.argv[1])

got = comm.broadcast(table(0, 5) if comm.rank == 0 else None)
assert got.equals(table(0, 5))

gathered = comm.gather(table(comm.rank, comm.rank + 1))
if comm.rank == 0:
    assert gathered is not None
    assert [t.num_rows for t in gathered] == [rank + 1 for rank in range(comm.size)]
    assert all(t.equals(table(rank, rank + 1)) for rank, t in enumerate(gathered))
else:
    assert gathered is None

# Rank r sends r + 10 * target rows to each target; zero rows and many chunks among them.
sent = [table(comm.rank, comm.rank + 10 * target) for target in range(comm.size)]
sent = [pa.concat_tables([t.slice(0, 3), t.slice(3)]) for t in sent]
received = comm.exchange(sent)
for rank, t in enumerate(received):
    assert t.combine_chunks().equals(table(rank, rank + 10 * comm.rank)), (comm.rank, rank)

sys.stdout.write(f"rank{comm.rank}-of-{comm.size}-fine\n")
