"""From raw columns to rows of the documents schema, the same way for every format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from aaflow.hashing import partition_of, sha256_rows
from aaflow.operators.readers.notices import Notices, over_limit, shorten
from aaflow.operators.readers.options import MIB, LoadOptions
from aaflow.schema import documents, metadata_type

#: A text has to have a character beside these; RE2 and Python read it alike.
NOT_BLANK = r"[^\t\n\f\r ]"

BATCH_ROWS = 4096
BATCH_BYTES = 4 * MIB

_DATE = r"^\d{4}-\d\d-\d\d$"
_ZONED = r":\d\d(?:\.\d+)?(?:Z|[+-]\d\d(?::?\d\d)?)$"
_TYPE_NAMES = {
    "bool": "truth value",
    "date32[day]": "date",
    "int64": "whole number",
    "double": "number",
    "timestamp[us, tz=UTC]": "time",
}


@dataclass(frozen=True)
class Rows:
    """Documents before their text is checked and their metadata typed; columns of one length.

    Attributes:
        doc_id: string, not null.
        source: string, not null.
        record: int64, byte offset or row number.
        text: string; null or blank where there is none.
        source_type: string, the format.
        metadata: raw columns of any type, by field name; what is left out is null.
    """

    doc_id: pa.Array
    source: pa.Array
    record: pa.Array
    text: pa.Array
    source_type: pa.Array
    metadata: Mapping[str, pa.Array] = field(default_factory=dict)

    def filter(self, keep: pa.Array) -> Rows:
        """The rows where ``keep`` is true."""
        return Rows(
            self.doc_id.filter(keep),
            self.source.filter(keep),
            self.record.filter(keep),
            self.text.filter(keep),
            self.source_type.filter(keep),
            {name: column.filter(keep) for name, column in self.metadata.items()},
        )


def finish(rows: Rows, options: LoadOptions, notices: Notices, no_text: str) -> Iterator[pa.RecordBatch]:
    """Batches of ``schema.documents(options.metadata)``; rows without text become notices with reason ``no_text``."""
    rows = _with_text(rows, options, notices, no_text)
    count = len(rows.doc_id)
    if not count:
        return
    kind = metadata_type(options.metadata)
    columns = [
        fit(rows.metadata[f.name], f.type, partial(_conflict, rows, f, notices))
        if f.name in rows.metadata
        else pa.nulls(count, f.type)
        for f in kind
    ]
    metadata = pa.StructArray.from_arrays(columns, fields=list(kind))
    hashes = sha256_rows([rows.text, metadata])
    partition = partition_of(rows.doc_id, options.partitions)
    scope = pa.repeat(pa.scalar(options.scope, pa.string()), count)
    arrays = [rows.doc_id, partition, rows.source, rows.record, rows.text, hashes, rows.source_type, scope, metadata]
    yield from cut(pa.RecordBatch.from_arrays(arrays, schema=documents(options.metadata)))


def cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of at most ``BATCH_ROWS`` rows and about ``BATCH_BYTES`` bytes."""
    step = BATCH_ROWS
    if batch.nbytes > BATCH_BYTES:
        step = max(1, min(step, batch.num_rows * BATCH_BYTES // batch.nbytes))
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step)


def fit(column: pa.Array, kind: pa.DataType, conflict: Callable[[int, object], None]) -> pa.Array:
    """``column`` as type ``kind``; what does not fit is null and given to ``conflict`` as (row, value).

    Numbers fit where no digit is lost, strings where they read as the type does (dates and times as ISO 8601, times
    without a zone are UTC); a blank string is null in every type but string.
    """
    if column.type == kind:
        return column
    fitted = _cast_numbers(column, kind)
    if fitted is None:
        text = strings(column)
        fitted = text if pa.types.is_string(kind) else _parse_trimmed(text, kind)
        lost = pc.and_(pc.is_valid(column), pc.is_null(fitted))
        if not pa.types.is_string(kind):
            lost = pc.and_not(lost, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), False))
        for at in pc.indices_nonzero(lost).to_pylist():
            conflict(at, column[at].as_py())
    return fitted


def strings(column: pa.Array) -> pa.Array:
    """A column of any scalar type as strings; bytes that are not UTF-8 and nested values become null."""
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if pa.types.is_dictionary(kind):
        return strings(column.cast(kind.value_type))
    if pa.types.is_nested(kind):
        return pa.nulls(len(column), pa.string())
    return _cast_each(column, pa.string())


def _cast_numbers(column: pa.Array, kind: pa.DataType) -> pa.Array | None:
    numbers = _is_number(column.type) and _is_number(kind)
    if not numbers and not (pa.types.is_temporal(column.type) and pa.types.is_temporal(kind)):
        return None
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _parse_trimmed(text: pa.Array, kind: pa.DataType) -> pa.Array:
    text = pc.utf8_trim_whitespace(text)
    if pa.types.is_date32(kind):  # pyarrow before 14 reads times of strings, but no dates
        days = pc.if_else(pc.match_substring_regex(text, _DATE), text, pa.scalar(None, pa.string()))
        return _cast_each(days, pa.timestamp("s")).cast(kind)
    if not pa.types.is_timestamp(kind):
        return _cast_each(text, kind)
    zoned = pc.match_substring_regex(text, _ZONED)
    none = pa.scalar(None, pa.string())
    with_zone = _cast_each(pc.if_else(zoned, text, none), kind)
    without = _cast_each(pc.if_else(zoned, none, text), pa.timestamp(kind.unit))
    return pc.coalesce(with_zone, without.cast(kind))


def _cast_each(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A cast where only the values that don't fit become null, found by halving."""
    try:
        return column.cast(kind)
    except pa.ArrowNotImplementedError:
        return pa.nulls(len(column), kind)
    except pa.ArrowInvalid:
        if len(column) == 1:
            return pa.nulls(1, kind)
        half = len(column) // 2
        return pa.concat_arrays([_cast_each(column[:half], kind), _cast_each(column[half:], kind)])


def _with_text(rows: Rows, options: LoadOptions, notices: Notices, no_text: str) -> Rows:
    limit = options.max_record_bytes
    there = pc.fill_null(pc.match_substring_regex(rows.text, NOT_BLANK), False)
    long = pc.fill_null(pc.greater(pc.binary_length(rows.text), limit), False)
    for wrong, reason in ((pc.invert(there), no_text), (long, str(over_limit(limit, "its text")))):
        if pc.any(wrong).as_py():
            _skip(rows.filter(wrong), notices, reason)
    keep = pc.and_not(there, long)
    return rows if pc.all(keep).as_py() else rows.filter(keep)


def _skip(rows: Rows, notices: Notices, reason: str) -> None:
    for doc_id, source, record in zip(
        rows.doc_id.to_pylist(), rows.source.to_pylist(), rows.record.to_pylist(), strict=True
    ):
        notices.add(reason, source, record=record, doc_id=doc_id)


def _conflict(rows: Rows, want: pa.Field, notices: Notices, at: int, value: object) -> None:
    kind = _TYPE_NAMES.get(str(want.type), str(want.type))
    notices.add(
        f"metadata field {want.name!r}: {shorten(value)} is not a {kind}; it became null",
        rows.source[at].as_py(),
        record=rows.record[at].as_py(),
        doc_id=rows.doc_id[at].as_py(),
        kind="conflict",
    )
