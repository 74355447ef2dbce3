"""Shuffles of Dask and Ray, each at its best: ``python -m measure.clusters (dask|ray) RANKS ROWS TIMES``.

Both have as many worker processes as there are ranks, one thread each, and every worker holds its rows in memory
before the clock starts; it stops when every worker has all rows that go to it. Prints as :mod:`measure.ranks` does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa

from measure import rows


def main() -> None:
    """Measure one."""
    name, ranks, count, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    with tempfile.TemporaryDirectory(prefix="aaflow-bench-") as scratch:
        print(json.dumps({"seconds": {"dask": dask, "ray": ray}[name](ranks, count, times, scratch)}))


def dask(ranks: int, count: int, times: int, scratch: str) -> list[float]:
    """Dask's peer-to-peer shuffle of a data frame in Arrow's types, by its ids, in memory.

    pandas has no name for lists of fixed size, so that vectors are binary values of the same bytes. Nothing is
    spilled, and what P2P would write to disk it keeps.
    """
    import dask
    import dask.dataframe as frames
    from distributed import Client, LocalCluster, wait

    memory = {f"distributed.worker.memory.{each}": False for each in ("target", "spill", "pause", "terminate")}
    with (
        dask.config.set({**memory, "distributed.p2p.storage.disk": False, "dataframe.convert-string": False}),
        LocalCluster(
            n_workers=ranks, threads_per_worker=1, dashboard_address=None, memory_limit=0, local_directory=scratch
        ) as cluster,
        Client(cluster) as client,
    ):
        workers = sorted(client.scheduler_info()["workers"])
        parts = [client.submit(_frame, count, ranks, seed, workers=[at]) for seed, at in enumerate(workers)]
        wait(parts)
        frame = frames.from_delayed(parts, meta=_frame(1, ranks, 0), verify_meta=False).persist()
        wait(frame)
        seconds = []
        for number in range(times):
            moved = None
            # The same partitions by another name: else Dask would remember that it has shuffled them.
            held = frame.map_partitions(_renamed, number, meta=frame._meta).persist()
            wait(held)
            began = time.perf_counter()
            moved = held.shuffle("id", npartitions=ranks, shuffle_method="p2p").persist()
            wait(moved)
            seconds.append(time.perf_counter() - began)
        assert moved is not None
        had, got = ([client.submit(_frame_sums, each) for each in client.futures_of(of)] for of in (frame, moved))
        _same("dask", client.gather(had), client.gather(got))
        return seconds


def _frame(count: int, ranks: int, seed: int) -> Any:
    import pandas

    table = rows.table(count, ranks, seed)
    column = table["vector"].chunk(0)
    raw = pa.Array.from_buffers(pa.binary(rows.DIMENSION * 4), count, [None, column.values.buffers()[1]])
    table = table.set_column(table.schema.get_field_index("vector"), "vector", raw.cast(pa.large_binary()))
    return table.to_pandas(types_mapper=pandas.ArrowDtype)


def _renamed(frame: Any, number: int) -> Any:
    return frame


def _frame_sums(frame: Any) -> list[int]:
    return rows.sums(pa.Table.from_pandas(frame, preserve_index=False))


def ray(ranks: int, count: int, times: int, scratch: str) -> list[float]:
    """Actors that hold a table each, split it with pyarrow's ``take`` and get their parts from Ray's object store.

    What an actor gets points into shared memory. The shuffles of Ray Data were slower than this when it was chosen.
    """
    # Without its monitor Ray doesn't end workers for the memory that others use.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0"}
    import ray

    store = 4 * ranks * count * rows.ROW_BYTES + (1 << 28)
    ray.init(
        num_cpus=ranks,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=store,
        _temp_dir=scratch,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    )
    try:
        actors = [ray.remote(num_cpus=1)(_Actor).remote(count, ranks, seed) for seed in range(ranks)]
        had = ray.get([actor.had.remote() for actor in actors])
        seconds = []
        for _ in range(times):
            ray.get([actor.forget.remote() for actor in actors])
            began = time.perf_counter()
            parts = [actor.split.options(num_returns=ranks).remote(ranks) for actor in actors]
            ray.get([actor.join.remote(*(of[to] for of in parts)) for to, actor in enumerate(actors)])
            seconds.append(time.perf_counter() - began)
            del parts
        _same("ray", had, ray.get([actor.got.remote(rank) for rank, actor in enumerate(actors)]))
        return seconds
    finally:
        ray.shutdown()


class _Actor:
    """A rank in Ray."""

    def __init__(self, count: int, ranks: int, seed: int) -> None:
        pa.set_cpu_count(1)
        self._table = rows.table(count, ranks, seed)
        self._moved: pa.Table | None = None

    def split(self, ranks: int) -> list[pa.Table]:
        destinations = self._table["to"].chunk(0).to_numpy()
        return [self._table.take(np.flatnonzero(destinations == rank)) for rank in range(ranks)]

    def join(self, *parts: pa.Table) -> None:
        self._moved = pa.concat_tables(parts)

    def forget(self) -> None:
        self._moved = None

    def had(self) -> list[int]:
        return rows.sums(self._table)

    def got(self, rank: int) -> list[int]:
        assert self._moved is not None
        assert (self._moved["to"].to_numpy() == rank).all()
        return rows.sums(self._moved)


def _same(name: str, had: list[list[int]], got: list[list[int]]) -> None:
    if np.sum(had, axis=0).tolist() != np.sum(got, axis=0).tolist():
        sys.exit(f"{name}: rows are lost or changed")


if __name__ == "__main__":
    main()
