"""``upsert``: bulk writes of embedded chunks, one durable commit per (tranche, partition)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from aaflow.index import Stage
from aaflow.operators.operator import Item
from aaflow.schema import NOTICES

Unit = tuple[int, int]


class Upsert:
    """Gathers the rows of a (tranche, partition) and commits them when the unit is complete.

    A chunk id that occurs twice is kept once, the one of the lowest (source, record, ordinal); see
    :meth:`aaflow.index.Stage.commit`.

    Args:
        stage: takes the commits.
        workers: units that are committed at the same time: one computes while another waits for the disk.
    """

    def __init__(self, stage: Stage, workers: int = 1) -> None:
        self._stage = stage
        self._workers = workers

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`; gives the rows on once they are durable."""
        running: deque[Future[list[Item]]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="upsert") as pool:
            for unit, rows, notices in _units(items):
                running.append(pool.submit(self._commit, unit, rows, notices))
                if len(running) > self._workers:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()

    def _commit(self, unit: Unit, rows: list[pa.RecordBatch], notices: list[pa.RecordBatch]) -> list[Item]:
        self._stage.commit(
            *unit,
            pa.Table.from_batches(rows) if rows else None,
            pa.Table.from_batches(notices, NOTICES) if notices else None,
        )
        return [Item(*unit, batch) for batch in rows]


def _units(items: Iterator[Item]) -> Iterator[tuple[Unit, list[pa.RecordBatch], list[pa.RecordBatch]]]:
    """The rows and notices of every unit that is complete."""
    rows: dict[Unit, list[pa.RecordBatch]] = {}
    notices: dict[Unit, list[pa.RecordBatch]] = {}
    for item in map(Item.owned, items):
        unit = (item.tranche, item.partition)
        if item.rows is not None and item.rows.num_rows:
            rows.setdefault(unit, []).append(item.rows)
        if item.notices is not None and item.notices.num_rows:
            notices.setdefault(unit, []).append(item.notices)
        if item.last and item.partition >= 0:  # the end of a tranche is no unit of commit
            yield unit, rows.pop(unit, []), notices.pop(unit, [])
