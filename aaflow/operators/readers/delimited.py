"""CSV and TSV with quotes (RFC 4180): a header, then one document per row.

A kernel finds where rows begin and how many fields they have, so rows of the wrong width are known exactly and a row of
any length is passed over without being held; pyarrow reads what is left.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from aaflow.kernel import kernel
from aaflow.operators.readers.documents import finish
from aaflow.operators.readers.lines import BLOCK_BYTES
from aaflow.operators.readers.notices import Notices, Unreadable, invalid_text, over_limit
from aaflow.operators.readers.options import LoadOptions, Split
from aaflow.operators.readers.records import first_or_joined, named_columns, no_text, record_rows, text_names
from aaflow.operators.readers.sources import open_utf8

_BOM = b"\xef\xbb\xbf"
_FIELD_START, _PLAIN, _QUOTED, _QUOTE_IN_QUOTED = range(4)


def read_delimited(split: Split, options: LoadOptions, notices: Notices) -> Iterator[pa.RecordBatch]:
    """Batches of the rows of a file; the key is a row's number, from 0 behind the header, blank lines not counted.

    Raises:
        Unreadable: empty, no header, or no text column.
        OSError: and what decompression and decoding raise.
    """
    with open_utf8(split, options) as stream:
        first = stream.read(BLOCK_BYTES)
        if not first:
            raise Unreadable("empty")
        first = first.removeprefix(_BOM)
        delimiter = _delimiter(first, split.format)
        table: _Table | None = None
        for rows in _row_blocks(stream, first, delimiter, options.max_record_bytes):
            if table is None:
                header, rows = _header(rows, delimiter)
                table = _Table(split, options, notices, delimiter, header)
            yield from table.read(rows)


@dataclass(frozen=True)
class _RowBlock:
    """Whole rows: row i is ``data[bounds[i]:bounds[i + 1]]`` and has ``fields[i]`` fields.

    ``problem`` says why the row behind the last one could not be kept.
    """

    data: bytes
    bounds: npt.NDArray[np.int64]
    fields: npt.NDArray[np.int64]
    problem: str | None = None


def _row_blocks(stream: Any, first: bytes, delimiter: bytes, limit: int) -> Iterator[_RowBlock]:
    data, skipping, quoted = first, False, _FIELD_START
    while True:
        chunk = stream.read(BLOCK_BYTES)
        if skipping:
            # The row goes on: nothing of it is kept but whether its end is inside quotes.
            bounds, _, quoted = _scan(data, delimiter, quoted, not chunk, 1)
            if len(bounds) < 2:
                if not chunk:
                    return
                data = chunk
                continue
            data, skipping = data[bounds[1] :], False
        bounds, fields, state = _scan(data, delimiter, _FIELD_START, not chunk, -1)
        rest = data[bounds[-1] :]
        if not chunk:
            yield _RowBlock(data, bounds, fields, "a quoted field is never closed" if state == _QUOTED else None)
            return
        if len(rest) > limit + 2:
            reason = str(over_limit(limit, "the row"))
            if state == _QUOTED:
                reason += "; a quoted field in it may not be closed"
            yield _RowBlock(data, bounds, fields, reason)
            data, skipping, quoted = chunk, True, state
            continue
        if len(fields):
            yield _RowBlock(data, bounds, fields)
        data = rest + chunk


def _scan(data: bytes, delimiter: bytes, state: int, at_end: bool, limit: int) -> tuple[Any, Any, int]:
    """Bounds and widths of the rows that are complete in ``data`` (``limit`` of them, -1: all), the last state."""
    view = np.frombuffer(data, dtype=np.uint8)
    count = np.count_nonzero(view == ord("\n")) + np.count_nonzero(view == ord("\r")) + 1
    bounds, fields = np.zeros(count + 1, dtype=np.int64), np.zeros(count, dtype=np.int64)
    rows, state = _rows_of(view, delimiter[0], state, at_end, limit, bounds, fields)
    return bounds[: rows + 1], fields[:rows], state


@kernel
def _rows_of(data: Any, delimiter: Any, state: Any, at_end: Any, limit: Any, bounds: Any, fields: Any) -> Any:
    """Ends of rows to ``bounds[1:]``, their widths to ``fields``; returns the number of rows and the last state."""
    rows, width, begin = 0, 1, 0
    size = data.shape[0]
    for at in range(size):
        byte = data[at]
        if state == 2:
            if byte == 34:
                state = 3
        elif byte == 34:
            # A quote opens a field at its beginning, goes on with it behind another quote, is a letter elsewhere.
            if state != 1:
                state = 2
        elif byte == delimiter:
            width += 1
            state = 0
        elif byte == 10 or (byte == 13 and at + 1 < size and data[at + 1] != 10):
            rows += 1
            bounds[rows] = at + 1
            fields[rows - 1] = width
            width, state, begin = 1, 0, at + 1
            if rows == limit:
                return rows, state
        elif byte != 13:
            state = 1
    if at_end and begin < size and state != 2:
        rows += 1
        bounds[rows] = size
        fields[rows - 1] = width
    return rows, state


def _delimiter(first: bytes, kind: str) -> bytes:
    """A tab for tsv; for csv a comma, or the semicolon where the header has some and no comma."""
    if kind == "tsv":
        return b"\t"
    header = first.split(b"\n", 1)[0]
    return b";" if b";" in header and b"," not in header else b","


def _header(rows: _RowBlock, delimiter: bytes) -> tuple[list[str], _RowBlock]:
    """The names of the columns, in the first row that is not blank, and the rows behind it."""
    for row in range(len(rows.fields)):
        line = rows.data[rows.bounds[row] : rows.bounds[row + 1]]
        if line.strip():
            if b"\0" in line:
                raise Unreadable("binary content (NUL in the header)")
            try:
                names = next(_python_rows(line, delimiter))
            except csv.Error as error:
                raise Unreadable(f"its header can't be read: {error}") from None
            rest = _RowBlock(rows.data, rows.bounds[row + 1 :], rows.fields[row + 1 :], rows.problem)
            return [name.strip() for name in names], rest
    raise Unreadable(f"no header: {rows.problem}" if rows.problem else "empty: it has neither header nor rows")


def _python_rows(data: bytes, delimiter: bytes) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(data.decode(), newline=""), delimiter=delimiter.decode())


class _Table:
    """Turns the rows of one file into documents."""

    def __init__(
        self, split: Split, options: LoadOptions, notices: Notices, delimiter: bytes, header: list[str]
    ) -> None:
        self._split, self._options, self._notices = split, options, notices
        self._delimiter = delimiter
        # The first column of a name counts; the others get names that nobody asks for.
        self._names = [n if n not in header[:i] else f"{n}\0{i}" for i, n in enumerate(header)]
        present = [n for n in self._names if "\0" not in n]
        self._text = text_names(split, options, present, present)
        self._wanted = [n for n in dict.fromkeys([*self._text, *named_columns(options)]) if n in present]
        self._row = 0

    def read(self, rows: _RowBlock) -> Iterator[pa.RecordBatch]:
        starts, ends = rows.bounds[:-1], rows.bounds[1:]
        content = _without_line_end(rows.data, starts, ends)
        there = content > 0
        starts, ends, fields, content = starts[there], ends[there], rows.fields[there], content[there]
        numbers = np.arange(self._row, self._row + len(starts))
        self._row += len(starts)
        good = self._check(rows.data, starts, ends, fields, content)
        if rows.problem is not None:
            self._skip(self._row, rows.problem)
            self._row += 1
        if not good.any():
            return
        data = _select(rows.data, starts, ends, good)
        columns = self._parse(data, int(good.sum()))
        texts = [columns[name] for name in self._text]
        columns = {n: pc.if_else(pc.equal(c, ""), pa.scalar(None, pa.string()), c) for n, c in columns.items()}
        text = first_or_joined(self._options, self._text, texts)
        ready = record_rows(self._split, self._options, columns, text, pa.array(numbers[good]))
        yield from finish(ready, self._options, self._notices, no_text(self._options))

    def _check(self, data: bytes, starts: Any, ends: Any, fields: Any, content: Any) -> npt.NDArray[np.bool_]:
        """Which rows can be read; the others are noticed."""
        width, limit = len(self._names), self._options.max_record_bytes
        good: npt.NDArray[np.bool_] = (fields == width) & (content <= limit)
        for at in np.flatnonzero(content > limit).tolist():
            self._skip(self._row - len(starts) + at, str(over_limit(limit, "the row")))
        for at in np.flatnonzero((fields != width) & (content <= limit)).tolist():
            reason = f"{fields[at]} fields where the header has {width}; quote fields that hold the delimiter"
            self._skip(self._row - len(starts) + at, reason)
        if not _is_text(data):
            for at in np.flatnonzero(good).tolist():
                reason_or_none = _row_problem(data[starts[at] : ends[at]])
                if reason_or_none is not None:
                    self._skip(self._row - len(starts) + at, reason_or_none)
                    good[at] = False
        return good

    def _skip(self, row: int, reason: str) -> None:
        self._notices.add(reason, self._split.source, record=row, doc_id=f"{self._split.source}#{row}")

    def _parse(self, data: bytes, rows: int) -> dict[str, pa.Array]:
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


def _without_line_end(data: bytes, starts: Any, ends: Any) -> npt.NDArray[np.int64]:
    """Bytes of each row without the newline and carriage return that end it."""
    view = np.frombuffer(data, dtype=np.uint8)
    for byte in b"\n\r":
        ends = ends - ((ends > starts) & (view[ends - 1] == byte))
    length: npt.NDArray[np.int64] = ends - starts
    return length


def _select(data: bytes, starts: Any, ends: Any, good: npt.NDArray[np.bool_]) -> bytes:
    if good.all():
        return data[starts[0] : ends[-1]]
    return b"".join(data[s:e] for s, e in zip(starts[good].tolist(), ends[good].tolist(), strict=True))


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
