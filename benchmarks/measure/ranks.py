"""A rank of an MPI job that shuffles a table: ``python -m measure.ranks NAME ROWS TIMES``, under mpiexec.

Every rank makes ``ROWS`` rows, each with the rank that it shall go to. They are moved as often as asked for, each time
from a barrier until the last rank has its table; rank 0 prints ``seconds`` of each time, ``cpu`` seconds of all ranks
in all of them together, and what every rank had and got (:func:`measure.rows.sums`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from measure import rows

Shuffle = Callable[[pa.Table, npt.NDArray[np.int32]], pa.Table]


def main() -> None:
    """Be one rank."""
    name, count, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    cores = sorted(os.sched_getaffinity(0))
    rank = int(os.environ.get("PMI_RANK", "0"))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    pa.set_cpu_count(1)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    shuffle = SHUFFLES[name](comm)
    table = rows.table(count, comm.size, seed=rank)
    destinations = table["to"].chunk(0).to_numpy()
    seconds, spent = [], 0.0
    for _ in range(times):
        moved = None
        comm.Barrier()
        began, cpu = time.perf_counter(), time.process_time()
        moved = shuffle(table, destinations)
        spent += time.process_time() - cpu
        comm.Barrier()
        seconds.append(time.perf_counter() - began)
    assert moved is not None
    right = bool((moved["to"].to_numpy() == rank).all())
    told = comm.gather((rows.sums(table), rows.sums(moved), right, spent))
    if told is not None:
        had, got, placed, cpus = zip(*told, strict=True)
        if not all(placed) or np.sum(had, axis=0).tolist() != np.sum(got, axis=0).tolist():
            sys.exit(f"{name}: rows are lost, changed or with the wrong rank")
        print(json.dumps({"seconds": seconds, "cpu": sum(cpus)}))


def by_communicator(backend: str) -> Callable[[Any], Shuffle]:
    """The shuffle of one of aaflow's communicators."""

    def make(comm: Any) -> Shuffle:
        from aaflow.dataplane.communicator import communicator

        return communicator(backend).shuffle

    return make


def pickled(comm: Any) -> Shuffle:
    """A table per destination by pyarrow's ``take``, and mpi4py's ``alltoall``, which pickles them."""

    def shuffle(table: pa.Table, destinations: npt.NDArray[np.int32]) -> pa.Table:
        parts = [table.take(np.flatnonzero(destinations == rank)) for rank in range(comm.size)]
        return pa.concat_tables(comm.alltoall(parts))

    return shuffle


def pickled_out_of_band(comm: Any) -> Shuffle:
    """The same with mpi4py's ``alltoall`` of pickle 5, whose columns go out of band."""
    from mpi4py.util import pkl5

    return pickled(pkl5.Intracomm(comm))


SHUFFLES: dict[str, Callable[[Any], Shuffle]] = {
    "mpi": by_communicator("mpi"),
    "cylon": by_communicator("cylon"),
    "pickle": pickled,
    "pickle 5 out of band": pickled_out_of_band,
}

if __name__ == "__main__":
    main()
