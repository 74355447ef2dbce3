"""CSV and TSV with quotes (RFC 4180): a header, then one document per row.

A kernel finds where rows begin and how many fields they have, so rows of the wrong width are known exactly and a row of
any length is passed over without being held; pyarrow reads what is left.

A row belongs to the split in whose range its first byte lies. Its number and the quotes before it are known from the
file's beginning only: who reads a split passes over what lies before it, or goes on from the bookmark that the split
before left. So each rank goes through a file once, however many splits of it are its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from aaflow.operators.readers.documents import finish
from aaflow.operators.readers.notices import NO_RECORDS, Notices, Unreadable, invalid_text
from aaflow.operators.readers.options import MIB, ROW_START, Bookmark, LoadOptions, Split
from aaflow.operators.readers.records import first_or_joined, named_columns, no_text, record_rows, text_names
from aaflow.operators.readers.rows import NEVER_CLOSED, RowBlock, RowReader, row_bounds, step, too_long
from aaflow.operators.readers.sources import open_utf8

_BOM = b"\xef\xbb\xbf"

#: A header of this many bytes is read whatever the limit is; so many are looked at for the delimiter.
_HEAD_BYTES = 4 * MIB


def read_delimited(
    split: Split, options: LoadOptions, notices: Notices, bookmark: Bookmark
) -> Iterator[pa.RecordBatch]:
    """Batches of a split's rows; the key is a row's number, from 0 behind the header, blank lines not counted.

    Raises:
        Unreadable: empty, no header, or no text column; in the first split of a file only.
        OSError: and what decompression and decoding raise.
    """
    end = None if split.whole else split.end
    limit = options.max_record_bytes
    with open_utf8(split, options) as stream:
        try:
            rows = RowReader(stream, bookmark, limit, _begin(stream, split, limit, bookmark))
            table = _Table(split, options, notices, bookmark)
        except (Unreadable, UnicodeDecodeError):
            if split.start:
                return  # the first split says it
            raise
        rows.pass_to(split.start, end)
        for block in rows.blocks(end):
            yield from table.read(block)
    if not split.whole:
        if split.end == split.size and not bookmark.row:
            notices.add(NO_RECORDS, split.source)
        bookmark.uri, bookmark.reached = split.uri, split.end


def _begin(stream: Any, split: Split, limit: int, bookmark: Bookmark) -> bytes:
    """Go to the bookmark, or lay it behind the header if it is of no use; returns what was read beyond it already."""
    goes_on = bookmark.uri == split.uri and bookmark.reached <= split.start
    bookmark.uri = ""  # of use again once the split was read to its end
    if goes_on:
        stream.seek(bookmark.offset)
        return b""
    first = _first_line(stream)
    data = first.removeprefix(_BOM)
    offset, delimiter, at_end = len(first) - len(data), _delimiter(data, split.format), False
    while True:
        bounds, _ = row_bounds(data, delimiter, at_end=at_end)
        for start, end in pairwise(bounds.tolist()):
            if data[start:end].strip():
                bookmark.header, bookmark.delimiter = _names(data[start:end], delimiter), delimiter
                bookmark.offset, bookmark.row, bookmark.state = offset + end, 0, ROW_START
                return data[end:]
        data, offset = data[bounds[-1] :], offset + int(bounds[-1])
        if len(data) > max(limit, _HEAD_BYTES) + 2:
            raise Unreadable(f"no header: {too_long(data, delimiter, limit)}")
        if at_end:
            raise Unreadable(f"no header: {NEVER_CLOSED}" if data else "empty: it has neither header nor rows")
        more = stream.read(step(len(data)))
        data, at_end = data + more, not more


def _first_line(stream: Any) -> bytes:
    """What a stream begins with, up to its first newline and beyond, or ``_HEAD_BYTES``."""
    data: bytes = stream.read(step(0))
    if not data:
        raise Unreadable("empty")
    while b"\n" not in data and len(data) < _HEAD_BYTES and (more := stream.read(step(len(data)))):
        data += more
    return data


def _delimiter(first: bytes, kind: str) -> bytes:
    """A tab for tsv; for csv a comma, or the semicolon where the header has some and no comma."""
    if kind == "tsv":
        return b"\t"
    header = first.split(b"\n", 1)[0]
    return b";" if b";" in header and b"," not in header else b","


def _names(line: bytes, delimiter: bytes) -> tuple[str, ...]:
    """The names of the columns that a header holds."""
    if b"\0" in line:
        raise Unreadable("binary content (NUL in the header)")
    try:
        names = next(csv.reader(io.StringIO(line.decode(), newline=""), delimiter=delimiter.decode()))
    except csv.Error as error:
        raise Unreadable(f"its header can't be read: {error}") from None
    return tuple(name.strip() for name in names)


class _Table:
    """Turns rows of one file into documents."""

    def __init__(self, split: Split, options: LoadOptions, notices: Notices, bookmark: Bookmark) -> None:
        self._split, self._options, self._notices = split, options, notices
        self._delimiter, header = bookmark.delimiter, bookmark.header
        # The first column of a name counts; the others get names that nobody asks for.
        self._names = [n if n not in header[:i] else f"{n}\0{i}" for i, n in enumerate(header)]
        present = [n for n in self._names if "\0" not in n]
        self._text = text_names(split, options, present, present)
        self._wanted = [n for n in dict.fromkeys([*self._text, *named_columns(options)]) if n in present]

    def read(self, rows: RowBlock) -> Iterator[pa.RecordBatch]:
        good = self._check(rows)
        if rows.problem is not None:
            self._skip(rows.first + len(good), rows.problem)
        if not good.any():
            return
        data = _select(rows, good)
        columns = self._parse(data, int(good.sum()))
        texts = [columns[name] for name in self._text]
        columns = {n: pc.if_else(pc.equal(c, ""), pa.scalar(None, pa.string()), c) for n, c in columns.items()}
        text = first_or_joined(self._options, self._text, texts)
        ready = record_rows(self._split, self._options, columns, text, pa.array(rows.first + np.flatnonzero(good)))
        yield from finish(ready, self._options, self._notices, no_text(self._options))

    def _check(self, rows: RowBlock) -> npt.NDArray[np.bool_]:
        """Which rows can be read; the others are noticed."""
        width, limit = len(self._names), self._options.max_record_bytes
        fits = rows.sizes <= limit
        good: npt.NDArray[np.bool_] = (rows.fields == width) & fits
        for at in np.flatnonzero(~fits).tolist():
            self._skip(rows.first + at, too_long(rows.row(at), self._delimiter, limit))
        for at in np.flatnonzero((rows.fields != width) & fits).tolist():
            reason = f"{rows.fields[at]} fields where the header has {width}; quote fields that hold the delimiter"
            self._skip(rows.first + at, reason)
        if not _is_text(rows.data):
            for at in np.flatnonzero(good).tolist():
                reason_or_none = _row_problem(rows.row(at))
                if reason_or_none is not None:
                    self._skip(rows.first + at, reason_or_none)
                    good[at] = False
        return good

    def _skip(self, row: int, reason: str) -> None:
        self._notices.add(reason, self._split.source, record=row, doc_id=f"{self._split.source}#{row}")

    def _parse(self, data: bytes, rows: int) -> dict[str, pa.Array]:
        if data.startswith(_BOM):
            data = _BOM + data  # pyarrow takes off the first, but only a file begins with one
        try:
            table = pacsv.read_csv(
                pa.BufferReader(data),
                read_options=pacsv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=self._names),
                parse_options=pacsv.ParseOptions(delimiter=self._delimiter.decode(), newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(self._wanted, pa.string()),
                    include_columns=self._wanted,
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            raise Unreadable(f"not readable as CSV: {str(error).splitlines()[0][:200]}") from None
        if table.num_rows != rows:  # the kernel counts as pyarrow does; never give a row another row's number
            raise Unreadable(f"not readable as CSV: {rows} rows were found, but pyarrow reads {table.num_rows}")
        return {name: table[name].combine_chunks() for name in self._wanted}


def _select(rows: RowBlock, good: npt.NDArray[np.bool_]) -> bytes:
    if good.all():
        return rows.data[rows.starts[0] : rows.ends[-1]]
    return b"".join(rows.row(at) for at in np.flatnonzero(good).tolist())


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def _row_problem(row: bytes) -> str | None:
    if b"\0" in row:
        return "binary content (NUL)"
    try:
        row.decode()
    except UnicodeDecodeError as error:
        return f"{invalid_text(error)} (counted from the row's beginning)"
    return None
