"""One document per document id, one chunk per chunk id: which rows win, whatever order they came in.

A document id that occurs in two records belongs to the lowest (source, record); a chunk id that occurs twice is kept
where (source, record, ordinal) is lowest.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.schema import NOTICES

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


def changes(table: pa.Table, columns: list[str]) -> Mask:
    """Whether a row differs from the one before it in any of ``columns``; true for the first."""
    mask = np.ones(table.num_rows, dtype=np.bool_)
    if table.num_rows > 1:
        mask[1:] = False
        for name in columns:
            column = table[name].combine_chunks()
            mask[1:] |= pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy(zero_copy_only=False)
    return mask


def document_starts(rows: pa.Table) -> Indices:
    """The first row of every (document, source, record) of rows that are sorted by them, and then the end."""
    return np.append(np.flatnonzero(changes(rows, ["doc_id", "source", "record"])), rows.num_rows).astype(np.int64)


def losing_documents(documents: pa.Table) -> tuple[Mask, pa.Array]:
    """Which rows of ``documents`` (doc_id, source, record) are not the first of their id, and why, as one text each."""
    losers, first = _losers(documents, "doc_id", ["source", "record"])
    lost = documents.filter(pa.array(losers))
    winners = documents.take(pa.array(first[losers]))
    reason = pc.binary_join_element_wise(
        "duplicate document id, first at record", winners["record"].cast(pa.string()), " "
    )
    elsewhere = pc.binary_join_element_wise(reason, winners["source"], " of ")
    return losers, pc.if_else(pc.equal(lost["source"], winners["source"]), reason, elsewhere)


def losing_chunks(rows: pa.Table) -> Mask:
    """Which of ``rows`` (chunk_id, source, record, ordinal) repeat a chunk id."""
    return _losers(rows, "chunk_id", ["source", "record", "ordinal"])[0]


def _losers(table: pa.Table, key: str, order: list[str]) -> tuple[Mask, Indices]:
    """Rows that are not the lowest by ``order`` of their ``key``, and the row that is, for every row."""
    rows = table.num_rows
    if pc.count_distinct(table[key]).as_py() == rows:
        return np.zeros(rows, dtype=np.bool_), np.arange(rows)
    sorting = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in [key, *order]]).to_numpy()
    starts = changes(table.select([key]).take(pa.array(sorting)), [key])
    losers, first = np.empty(rows, dtype=np.bool_), np.empty(rows, dtype=np.int64)
    losers[sorting] = ~starts
    first[sorting] = sorting[np.flatnonzero(starts)][np.cumsum(starts) - 1]
    return losers, first


def sort_and_reduce(rows: pa.Table, partition: int) -> tuple[pa.Table, pa.Table]:
    """``rows`` of one unit in the order of a segment, without repeated documents and chunks; notices of the former."""
    keys = ["doc_id", "source", "record", "ordinal", "chunk_id"]
    order = pc.sort_indices(rows.select(keys), sort_keys=[(name, "ascending") for name in keys])
    if not np.array_equal(order.to_numpy(), np.arange(len(order))):
        rows = rows.take(order)
    starts = document_starts(rows)
    documents = rows.select(["doc_id", "source", "record"]).take(pa.array(starts[:-1]))
    losers, reasons = losing_documents(documents)
    if losers.any():
        rows = rows.filter(pa.array(~np.repeat(losers, np.diff(starts))))
    repeated = losing_chunks(rows)
    if repeated.any():
        rows = rows.filter(pa.array(~repeated))
    return rows, duplicate_notices(documents.filter(pa.array(losers)), reasons, partition)


def duplicate_notices(documents: pa.Table, reasons: pa.Array, partition: int) -> pa.Table:
    """The ``skipped`` notices of ``documents`` that lost."""
    count = documents.num_rows
    columns = {
        "kind": pa.repeat("skipped", count),
        "doc_id": documents["doc_id"],
        "partition": pa.repeat(pa.scalar(partition, pa.int32()), count),
        "source": documents["source"],
        "record": documents["record"],
        "reason": reasons,
    }
    return cast(pa.Table, pa.table([columns[field.name] for field in NOTICES], schema=NOTICES))
