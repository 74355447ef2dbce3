"""Parquet files by ranges of rows, which begin and end with row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aaflow.operators.readers.documents import finish, strings
from aaflow.operators.readers.notices import Notices, Unreadable
from aaflow.operators.readers.options import MIB, Bookmark, LoadOptions, Split
from aaflow.operators.readers.records import first_or_joined, named_columns, no_text, record_rows, text_names
from aaflow.operators.readers.sources import open_seekable

#: Of a batch, at most: rows, and bytes on average.
_READ_ROWS, _READ_BYTES = 1024, 32 * MIB


def read_parquet(split: Split, options: LoadOptions, notices: Notices, _: Bookmark) -> Iterator[pa.RecordBatch]:
    """Batches of the rows in the split's range of rows; the key is a row's number.

    Raises:
        Unreadable: empty, damaged, or without a text column.
        OSError: the file can't be read.
    """
    with open_seekable(split) as file:
        if not file.read(1):
            raise Unreadable("empty")
        file.seek(0)
        try:
            yield from _read(pq.ParquetFile(file), split, options, notices)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise Unreadable(f"damaged parquet file: {str(error).splitlines()[0][:200]}") from None


def _read(file: pq.ParquetFile, split: Split, options: LoadOptions, notices: Notices) -> Iterator[pa.RecordBatch]:
    schema = file.schema_arrow
    names = text_names(split, options, schema.names, [f.name for f in schema if _is_text(f.type)])
    wanted = [n for n in dict.fromkeys([*names, *named_columns(options)]) if n in schema.names]
    groups, row = row_groups(file.metadata, split.start, -1 if split.whole else split.end)
    step = _rows_at_once(file.metadata, groups, wanted)
    for batch in file.iter_batches(batch_size=step, row_groups=groups, columns=wanted, use_threads=False):
        columns = {name: batch.column(name) for name in wanted}
        text = first_or_joined(options, names, [strings(columns[name]) for name in names])
        position = pa.array(np.arange(row, row + batch.num_rows))
        row += batch.num_rows
        yield from finish(record_rows(split, options, columns, text, position), options, notices, no_text(options))


def _rows_at_once(metadata: pq.FileMetaData, groups: Sequence[int], wanted: Sequence[str]) -> int:
    """Rows of a batch, so that those of long texts hold a bounded number of bytes, as far as the footer knows."""
    most = 1.0
    for group in map(metadata.row_group, groups):
        columns = map(group.column, range(group.num_columns))
        size = sum(each.total_uncompressed_size for each in columns if each.path_in_schema.split(".")[0] in wanted)
        most = max(most, size / max(group.num_rows, 1))
    return max(1, min(_READ_ROWS, int(_READ_BYTES / most)))


def row_groups(metadata: pq.FileMetaData, start: int, end: int) -> tuple[list[int], int]:
    """The row groups that begin in rows ``[start, end)`` (-1: to the last), and the number of their first row."""
    groups: list[int] = []
    first, row = 0, 0
    for group in range(metadata.num_row_groups):
        if start <= row and (end < 0 or row < end):
            first = first if groups else row
            groups.append(group)
        row += metadata.row_group(group).num_rows
    return groups, first


def row_ranges(metadata: pq.FileMetaData, size: int, split_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold whole row groups and about ``split_bytes`` of the file's ``size`` bytes."""
    start, row, total = 0, 0, max(metadata.num_rows, 1)
    for group in range(metadata.num_row_groups):
        row += metadata.row_group(group).num_rows
        # [0, size) means the whole file, in bytes.
        if (row - start) * size >= split_bytes * total and (start, row) != (0, size):
            yield start, row
            start = row
    if row > start or not row:
        yield (start, row) if start else (0, size)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return str(kind) in ("string", "large_string", "string_view")  # pyarrow before 16 has no name for a view
