"""The rows of CSV and TSV: where they begin, how many fields they have, and how to pass over those not asked for.

Whether a newline ends a row depends on the quotes before it, so the rows of a file can be found from its beginning
only. But to pass over rows, nothing of them has to be held: what a byte is in is one of a few states.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aaflow.kernel import inlined, kernel, load64, trailing_zeros
from aaflow.operators.readers.lines import BLOCK_BYTES
from aaflow.operators.readers.notices import over_limit
from aaflow.operators.readers.options import ROW_START, Bookmark

#: Least bytes that are read at once to find the end of a row.
_STEP = 1 << 16

# What the next byte is in, beside the first of a row (ROW_START). Behind a carriage return that was the last byte at
# hand, the next byte says whether the row has ended or a newline is to come.
_FIELD_START, _PLAIN, _QUOTED, _QUOTE_IN_QUOTED, _AFTER_RETURN = range(1, 6)

NEVER_CLOSED = "a quoted field is never closed"


@dataclass(frozen=True)
class RowBlock:
    """Whole rows that are not blank: row i is ``data[starts[i]:ends[i]]`` and has ``fields[i]`` fields.

    Attributes:
        data: bytes.
        starts: int64 [rows].
        ends: int64 [rows], line ends included.
        sizes: int64 [rows], bytes of the rows without their line ends.
        fields: int64 [rows].
        first: number of the first row.
        problem: why the row behind the last one could not be kept.
    """

    data: bytes
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    fields: npt.NDArray[np.int64]
    first: int
    problem: str | None

    def row(self, at: int) -> bytes:
        """The bytes of row ``at``."""
        return self.data[self.starts[at] : self.ends[at]]


class RowReader:
    """Goes through a stream once, from where a bookmark lies.

    Args:
        stream: has ``read(size)``; what it gives comes behind ``ahead``.
        bookmark: where ``ahead`` begins; moved along.
        limit: longest row in bytes that is kept.
        ahead: bytes that were read already.
    """

    def __init__(self, stream: Any, bookmark: Bookmark, limit: int, ahead: bytes = b"") -> None:
        self._stream, self._at, self._limit = stream, bookmark, limit
        self._ahead = io.BytesIO(ahead)
        self._held = b""  # from the bookmark on

    def pass_to(self, start: int, end: int | None) -> None:
        """Go on to the first row that begins at ``start`` or behind it, or to about ``end`` if none does before."""
        at = self._at
        while (at.state != ROW_START or at.offset < start) and (end is None or at.offset < end):
            to = start if at.offset < start else end
            data = self._held or self._read(BLOCK_BYTES if to is None else min(BLOCK_BYTES, to - at.offset))
            if not data:
                at.state = ROW_START  # the file ends, and with it its last row
                return
            view = np.frombuffer(data, dtype=np.uint8)
            passed, at.state, rows = _pass(view, at.delimiter[0], at.state, max(start - at.offset, 0))
            at.offset, at.row = at.offset + passed, at.row + rows
            self._held = data[passed:]

    def blocks(self, end: int | None) -> Iterator[RowBlock]:
        """The rows that begin before ``end`` (None: all), from the bookmark on, where one begins.

        A row over the limit is passed over once that is known: no more than the limit and two blocks are held.
        """
        at = self._at
        while end is None or at.offset < end:
            chunk = self._read(self._step(end))
            data = self._held + chunk
            bounds, fields = row_bounds(data, at.delimiter, at_end=not chunk)
            count = len(fields) if end is None else int(np.searchsorted(bounds[:-1], end - at.offset))
            starts, ends, sizes, fields = _without_blank(data, bounds[: count + 1], fields[:count])
            self._held, first = data[bounds[count] :], at.row
            at.offset, at.row = at.offset + int(bounds[count]), first + len(fields)
            problem = self._problem(at_end=not chunk) if end is None or at.offset < end else None
            if len(fields) or problem is not None:
                yield RowBlock(data, starts, ends, sizes, fields, first, problem)
            if problem is not None:
                self.pass_to(at.offset + 1, end)
            elif not chunk:
                return

    def _read(self, size: int) -> bytes:
        data: bytes = self._ahead.read(size) or self._stream.read(size)
        return data

    def _step(self, end: int | None) -> int:
        """How much to read: up to ``end``, then for the rest of the row that lies there."""
        missing = BLOCK_BYTES if end is None else end - self._at.offset - len(self._held)
        return min(BLOCK_BYTES, missing if missing > 0 else step(len(self._held)))

    def _problem(self, *, at_end: bool) -> str | None:
        """Why the row that begins at the bookmark, and has no end in what is held, can't be kept."""
        if len(self._held) > self._limit + 2:
            return too_long(self._held, self._at.delimiter, self._limit)
        return NEVER_CLOSED if at_end and self._held else None


def step(held: int) -> int:
    """Bytes to read on where ``held`` bytes don't hold the end of a row: few at first, so that little is read twice."""
    return min(BLOCK_BYTES, max(_STEP, held))


def too_long(row: bytes, delimiter: bytes, limit: int) -> str:
    """The reason for a row of more than ``limit`` bytes; it depends on no more than the first ``limit`` + 3 of them."""
    _, state, _ = _pass(np.frombuffer(row[: limit + 3], dtype=np.uint8), delimiter[0], ROW_START, limit + 4)
    reason = str(over_limit(limit, "the row"))
    return f"{reason}; a quoted field in it may not be closed" if state == _QUOTED else reason


def row_bounds(data: bytes, delimiter: bytes, *, at_end: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows that are complete in ``data``, which begins with one.

    Args:
        data: bytes.
        delimiter: one byte.
        at_end: whether nothing comes behind ``data``, so that its end is that of a row.

    Returns:
        Where each row begins, and where the last one ends, int64 [rows + 1]; how many fields they have, int64 [rows].
    """
    view = np.frombuffer(data, dtype=np.uint8)
    count = np.count_nonzero(view == ord("\n")) + np.count_nonzero(view == ord("\r")) + 1
    bounds, fields = np.zeros(count + 1, dtype=np.int64), np.zeros(count, dtype=np.int64)
    rows = _rows_of(view, delimiter[0], at_end, bounds, fields)
    return bounds[: rows + 1], fields[:rows]


def _without_blank(data: bytes, bounds: Any, fields: Any) -> tuple[Any, Any, Any, Any]:
    """Starts, ends, sizes without line ends, and fields, of the rows that are more than a line end."""
    view = np.frombuffer(data, dtype=np.uint8)
    starts, content_ends = bounds[:-1], bounds[1:]
    for byte in b"\n\r":
        content_ends = content_ends - ((content_ends > starts) & (view[content_ends - 1] == byte))
    sizes = content_ends - starts
    there = sizes > 0
    return starts[there], bounds[1:][there], sizes[there], fields[there]


@kernel
def _rows_of(data: Any, delimiter: Any, at_end: Any, bounds: Any, fields: Any) -> Any:
    """Ends of rows to ``bounds[1:]``, their widths to ``fields``; returns the number of rows."""
    rows, width, begin, state = 0, 1, 0, _FIELD_START
    size = data.shape[0]
    for at in range(size):
        byte = data[at]
        if state == _QUOTED:
            if byte == 34:
                state = _QUOTE_IN_QUOTED
        elif byte == 34:
            # A quote opens a field at its beginning, goes on with it behind another quote, is a letter elsewhere.
            if state != _PLAIN:
                state = _QUOTED
        elif byte == delimiter:
            width += 1
            state = _FIELD_START
        elif byte == 10 or (byte == 13 and at + 1 < size and data[at + 1] != 10):
            rows += 1
            bounds[rows] = at + 1
            fields[rows - 1] = width
            width, state, begin = 1, _FIELD_START, at + 1
        elif byte != 13:
            state = _PLAIN
    if at_end and begin < size and state != _QUOTED:
        rows += 1
        bounds[rows] = size
        fields[rows - 1] = width
    return rows


_ONES = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_QUOTES = np.uint64(0x2222222222222222)
_NEWLINES = np.uint64(0x0A0A0A0A0A0A0A0A)
_RETURNS = np.uint64(0x0D0D0D0D0D0D0D0D)
_ZERO = np.uint64(0)


@kernel
def _pass(data: Any, delimiter: Any, state: Any, stop: Any) -> Any:
    """Pass over rows, by the rules of ``_rows_of``, up to the first that begins at ``stop`` or behind it, else all.

    Returns how many bytes were passed, the state there, and how many rows that aren't blank began before.
    """
    size, at, rows = data.shape[0], 0, 0
    if state == _AFTER_RETURN and size:
        at, state = (1 if data[0] == 10 else 0), ROW_START
    while at < size and (state != ROW_START or at < stop):
        if state == _QUOTED:
            at = _quote_from(data, at)
            if at + 2 < size and data[at + 1] == delimiter and data[at + 2] == 34:
                at += 3  # the next field is quoted too
            elif at < size:
                at, state = at + 1, _QUOTE_IN_QUOTED
        elif state == _QUOTE_IN_QUOTED and data[at] == 34:
            at, state = at + 1, _QUOTED
        else:
            rows += state == ROW_START and data[at] != 10 and data[at] != 13
            at, state = _unquoted_to(data, delimiter, at, state)
    return at, state, rows


@inlined
def _unquoted_to(data: Any, delimiter: Any, begin: Any, state: Any) -> Any:
    """The byte behind the row's end, or behind the quote that opens a field, and the state there."""
    size = data.shape[0]
    opens = begin if state in (ROW_START, _FIELD_START) else -1
    at = _special_from(data, begin)
    while at < size:
        byte = data[at]
        if byte == 10:
            return at + 1, ROW_START
        if byte == 13:
            if at + 1 == size:
                return size, _AFTER_RETURN
            return (at + 2 if data[at + 1] == 10 else at + 1), ROW_START
        if at == opens or (at > begin and data[at - 1] == delimiter):
            return at + 1, _QUOTED
        at = _special_from(data, at + 1)
    return size, (_FIELD_START if data[size - 1] == delimiter else _PLAIN)


@inlined
def _zeros(word: Any) -> Any:
    """The lowest high bit of a byte that is set here is that of the lowest byte that is 0; others may be wrong."""
    return (word - _ONES) & ~word


@inlined
def _quote_from(data: Any, at: Any) -> Any:
    """Where the next quote is, from ``at`` on."""
    size = data.shape[0]
    while at + 8 <= size:
        found = _zeros(load64(data, at) ^ _QUOTES) & _HIGH
        if found != _ZERO:
            return at + (trailing_zeros(found) >> 3)
        at += 8
    while at < size and data[at] != 34:
        at += 1
    return at


@inlined
def _special_from(data: Any, at: Any) -> Any:
    """Where the next quote, newline or carriage return is, from ``at`` on."""
    size = data.shape[0]
    while at + 8 <= size:
        word = load64(data, at)
        found = (_zeros(word ^ _QUOTES) | _zeros(word ^ _NEWLINES) | _zeros(word ^ _RETURNS)) & _HIGH
        if found != _ZERO:
            return at + (trailing_zeros(found) >> 3)
        at += 8
    while at < size and data[at] != 34 and data[at] != 10 and data[at] != 13:
        at += 1
    return at
