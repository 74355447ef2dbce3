"""Search over partitions: who searches what, and how local answers become one."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import VectorIndexError
from aaflow.index.duplicates import Mask
from aaflow.index.exact import Found
from aaflow.index.segment import Block, Floats, Rows
from aaflow.index.spec import IndexSpec
from aaflow.schema import hits


def deal_partitions(rows_per_partition: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal partitions to ranks so that their rows are balanced: the largest first, to the rank with the fewest rows.

    Returns:
        The partitions of every rank, rising; every partition occurs once.
    """
    loads = [(0, 0, rank) for rank in range(ranks)]
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for partition in sorted(range(len(rows_per_partition)), key=lambda p: (-rows_per_partition[p], p)):
        rows, count, rank = loads[0]
        heapq.heapreplace(loads, (rows + rows_per_partition[partition], count + 1, rank))
        dealt[rank].append(partition)
    return [sorted(partitions) for partitions in dealt]


def merge_hits(tables: Sequence[pa.Table], k: int) -> pa.Table:
    """The best ``k`` hits of every query among local answers, which name disjoint chunks.

    Merging is associative: merged answers may be merged again. Schema as :func:`aaflow.schema.hits`.

    Raises:
        ValueError: there are no tables.
    """
    if not tables:
        raise ValueError("merging hits needs at least one table, which may be empty")
    merged = pa.concat_tables(tables)
    keys = [("query_id", "ascending"), ("score", "descending"), ("chunk_id", "ascending")]
    merged = merged.take(pc.sort_indices(merged, sort_keys=keys))
    rank = _ranks(merged["query_id"].to_numpy())
    merged = merged.set_column(merged.schema.get_field_index("rank"), merged.schema.field("rank"), pa.array(rank))
    return merged.filter(pa.array(rank < k)).combine_chunks()


def _ranks(query: Rows) -> Any:
    """The place of every row in the run of its query, int32."""
    if not len(query):
        return np.empty(0, dtype=np.int32)
    first = np.flatnonzero(np.append(True, query[1:] != query[:-1]))
    return (np.arange(len(query)) - np.repeat(first, np.diff(np.append(first, len(query))))).astype(np.int32)


def check_queries(vectors: Any, dimension: int, k: int) -> Floats:
    """``vectors`` as contiguous float32 [q, dimension].

    Raises:
        VectorIndexError: another shape, a number that is not finite, or ``k`` below 1.
    """
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise VectorIndexError(f"queries have shape {list(queries.shape)}; this index takes [queries, {dimension}]")
    if not np.isfinite(queries).all():
        raise VectorIndexError("a query vector has values that are not finite")
    if k < 1:
        raise VectorIndexError(f"a search is for at least 1 hit, not {k}")
    return queries


def allowed_rows(block: Block, dead: Rows, where: Mapping[str, Any] | None) -> Mask | None:
    """Which rows of ``block`` may be found; None for all.

    Args:
        block: the rows.
        dead: tombstoned rows of the whole segment, rising.
        where: column or metadata field to the value it must have, or a list of such values.

    Raises:
        VectorIndexError: there is no such field, or a value has another type.
    """
    low, high = np.searchsorted(dead, (block.first, block.first + block.batch.num_rows))
    if where is None and low == high:
        return None
    allowed = np.ones(block.batch.num_rows, dtype=np.bool_)
    allowed[dead[low:high] - block.first] = False
    for name, value in (where or {}).items():
        column = _field(block.batch, name)
        try:
            values = pa.array(value if isinstance(value, (list, tuple)) else [value]).cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise VectorIndexError(f"{name} is {column.type}, which {value!r} is not: {error}") from error
        allowed &= pc.is_in(column, values).to_numpy(zero_copy_only=False)
    return allowed


def _field(batch: pa.RecordBatch, name: str) -> pa.Array:
    metadata = batch.column("metadata")
    if name in ("source", "doc_id", "source_type", "scope"):
        return batch.column(name)
    if metadata.type.get_field_index(name) < 0:
        fields = ", ".join(field.name for field in metadata.type)
        raise VectorIndexError(f"no field {name!r} to search by: use source, doc_id, source_type, scope, {fields}")
    return pc.struct_field(metadata, name)


def hits_table(found: Found, blocks: Sequence[Block], spec: IndexSpec, k: int) -> pa.Table:
    """The rows of ``found`` as :func:`aaflow.schema.hits`; reads nothing of the others."""
    target = hits(spec.metadata)
    tables = [target.empty_table()]
    columns = [field.name for field in target if field.name not in ("query_id", "rank", "score", "partition")]
    for number in np.unique(found.block):
        chosen = found.block == number
        batch, partition = blocks[number].batch, blocks[number].partition
        rows = batch.select(columns).take(pa.array(found.row[chosen]))
        values = {name: rows.column(name) for name in columns}
        values["query_id"] = pa.array(found.query[chosen].astype(np.int32))
        values["rank"] = pa.repeat(pa.scalar(0, pa.int32()), len(rows))
        values["score"] = pa.array(found.score[chosen])
        values["partition"] = pa.repeat(pa.scalar(partition, pa.int32()), len(rows))
        tables.append(pa.table([values[name] for name in target.names], schema=target))
    return merge_hits(tables, k)
