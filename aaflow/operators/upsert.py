"""``upsert``: bulk writes of embedded chunks, one durable commit per (tranche, partition)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from aaflow.index import Stage
from aaflow.operators.operator import Item
from aaflow.schema import NOTICES


class Upsert:
    """Gathers the rows of a (tranche, partition) and commits them when the unit is complete.

    A chunk id that occurs twice is kept once, the one of the lowest (source, record, ordinal); see
    :meth:`aaflow.index.Stage.commit`.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`; gives the rows on once they are durable."""
        rows: dict[tuple[int, int], list[pa.RecordBatch]] = {}
        notices: dict[tuple[int, int], list[pa.RecordBatch]] = {}
        for item in items:
            unit = (item.tranche, item.partition)
            if item.rows is not None and item.rows.num_rows:
                rows.setdefault(unit, []).append(item.rows)
            if item.notices is not None and item.notices.num_rows:
                notices.setdefault(unit, []).append(item.notices)
            if not item.last or item.partition < 0:  # the end of a tranche is no unit of commit
                continue
            batches, told = rows.pop(unit, []), notices.pop(unit, [])
            self._stage.commit(
                *unit,
                pa.Table.from_batches(batches) if batches else None,
                pa.Table.from_batches(told, NOTICES) if told else None,
            )
            for batch in batches:
                yield Item(*unit, batch)
