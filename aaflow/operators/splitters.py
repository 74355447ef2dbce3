"""Splitters: where the chunks of a document begin and end, as kernels over the UTF-8 of a column.

Each works in two steps: the document is cut into sections (the whole, by delimiter, by Markdown headings), and a section
of more than ``size`` characters into chunks, at the best boundary in reach: paragraph, line, sentence, word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.kernel import kernel, view

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """Pieces of the rows of a column; all int64 [pieces], ordered by row and start.

    Attributes:
        row: the row that each piece is of.
        start: its first byte, counted from the beginning of the row.
        end: the byte after its last.
        first_ordinal: pieces of the first row that stand before these.
    """

    row: Indices
    start: Indices
    end: Indices
    first_ordinal: int = 0

    def ordinals(self) -> npt.NDArray[np.int32]:
        """The number of each piece within its row, from 0; int32 [pieces]."""
        if not len(self.row):
            return np.empty(0, np.int32)
        begins = np.flatnonzero(np.concatenate([[True], np.diff(self.row) != 0]))
        counts = np.diff(np.concatenate([begins, [len(self.row)]]))
        ordinals = np.arange(len(self.row)) - np.repeat(begins, counts)
        ordinals[: counts[0]] += self.first_ordinal
        return ordinals.astype(np.int32)

    def before(self, piece: int) -> int:
        """How many pieces of the row of ``piece`` stand before it."""
        return int(self.ordinals()[piece])


def whole(text: pa.Array) -> Spans:
    """Every row as one piece."""
    flat = view(text)
    lengths = flat.offsets[1:] - flat.offsets[:-1]
    return Spans(np.arange(len(text), dtype=np.int64), np.zeros(len(text), np.int64), lengths)


def by_delimiter(text: pa.Array, delimiter: str) -> Spans:
    """Rows cut at every occurrence of a delimiter, which belongs to no piece."""
    flat = view(text)
    mark = np.frombuffer(delimiter.encode(), np.uint8)
    return Spans(*_delimited(flat.data, flat.offsets, mark))


def by_heading(text: pa.Array) -> Spans:
    """Rows cut before every Markdown heading (``#`` to ``######``) that stands outside a fenced block."""
    flat = view(text)
    return Spans(*_headed(flat.data, flat.offsets))


def pack(text: pa.Array, sections: Spans, size: int, overlap: int) -> Spans:
    """Cut sections of more than ``size`` characters; trim white space; drop what is empty then.

    Args:
        text: the column.
        sections: pieces of its rows.
        size: characters of a chunk at most.
        overlap: characters that a chunk repeats of the one before it, at most; it begins at a word.
    """
    flat = view(text)
    return Spans(*_pack(flat.data, flat.offsets, sections.row, sections.start, sections.end, size, overlap))


def texts_of(text: pa.Array, spans: Spans) -> pa.StringArray:
    """The text of every piece."""
    flat = view(text)
    offsets = np.zeros(len(spans.row) + 1, np.int64)
    np.cumsum(spans.end - spans.start, out=offsets[1:])
    data = np.empty(int(offsets[-1]), np.uint8)
    _gather(flat.data, flat.offsets[spans.row] + spans.start, offsets, data)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(spans.row), buffers)


class TokenSplitter:
    """Chunks of at most ``size`` tokens of a model, counted by its own tokenizer."""

    def __init__(self, model: str, size: int, overlap: int) -> None:
        from tokenizers import Tokenizer

        from aaflow.operators.embedders.base import model_folder

        self._tokenizer = Tokenizer.from_file(str(model_folder(model) / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._size = size
        self._overlap = overlap

    def split(self, text: pa.Array) -> Spans:
        """The chunks of every row."""
        rows, starts, ends = [], [], []
        # The tokenizer takes Python strings: one a document, not one a token.
        for row, document in enumerate(text.to_pylist()):
            found = np.array(self._tokenizer.encode(document, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
            data = np.frombuffer(document.encode(), np.uint8)
            places = np.append(np.flatnonzero((data & 0xC0) != 0x80), len(data))
            first = np.arange(0, max(len(found) - self._overlap, min(len(found), 1)), self._size - self._overlap)
            last = np.minimum(first + self._size, len(found)) - 1
            rows.append(np.full(len(first), row, np.int64))
            starts.append(places[found[first, 0]])
            ends.append(places[found[last, 1]])
        if not rows:
            return whole(text)
        return Spans(np.concatenate(rows), np.concatenate(starts), np.concatenate(ends))


# --- kernels ---------------------------------------------------------------------------------------------------------


@kernel
def _gather(data: Any, starts: Any, offsets: Any, out: Any) -> None:
    for piece in range(starts.shape[0]):
        start, length = starts[piece], offsets[piece + 1] - offsets[piece]
        out[offsets[piece] : offsets[piece + 1]] = data[start : start + length]


@kernel
def _grown(array: Any) -> Any:
    larger = np.empty((array.shape[0] * 2, 3), np.int64)
    larger[: array.shape[0]] = array
    return larger


@kernel
def _delimited(data: Any, offsets: Any, mark: Any) -> Any:
    pieces = np.empty((64, 3), np.int64)
    count, width = 0, mark.shape[0]
    for row in range(offsets.shape[0] - 1):
        begin, end = offsets[row], offsets[row + 1]
        start, at = begin, begin
        while at <= end:
            found = at + width <= end
            if found:
                for byte in range(width):
                    if data[at + byte] != mark[byte]:
                        found = False
                        break
            if found or at == end:
                if count == pieces.shape[0]:
                    pieces = _grown(pieces)
                pieces[count, 0], pieces[count, 1], pieces[count, 2] = row, start - begin, at - begin
                count += 1
                start = at + width
                at = start if found else end + 1
            else:
                at += 1
    return pieces[:count, 0].copy(), pieces[:count, 1].copy(), pieces[:count, 2].copy()


@kernel
def _headed(data: Any, offsets: Any) -> Any:
    pieces = np.empty((64, 3), np.int64)
    count = 0
    for row in range(offsets.shape[0] - 1):
        begin, end = offsets[row], offsets[row + 1]
        start, line, fenced = begin, begin, False
        while line < end:
            after = line
            while after < end and data[after] != 10:
                after += 1
            marks = 0
            while line + marks < after and data[line + marks] == 35:
                marks += 1
            heading = not fenced and 1 <= marks <= 6 and line + marks < after and data[line + marks] == 32
            if heading and line > start:
                if count == pieces.shape[0]:
                    pieces = _grown(pieces)
                pieces[count, 0], pieces[count, 1], pieces[count, 2] = row, start - begin, line - begin
                count += 1
                start = line
            if line + 3 <= after and (data[line] == 96 or data[line] == 126):
                if data[line + 1] == data[line] and data[line + 2] == data[line]:
                    fenced = not fenced
            line = after + 1
        if count == pieces.shape[0]:
            pieces = _grown(pieces)
        pieces[count, 0], pieces[count, 1], pieces[count, 2] = row, start - begin, end - begin
        count += 1
    return pieces[:count, 0].copy(), pieces[:count, 1].copy(), pieces[:count, 2].copy()


@kernel
def _blank(byte: Any) -> Any:
    return byte == 32 or 9 <= byte <= 13


@kernel
def _starts_character(byte: Any) -> Any:
    return (byte & 0xC0) != 0x80


@kernel
def _cut(data: Any, start: Any, end: Any, size: Any) -> Any:
    """The byte where a chunk that begins at ``start`` ends: after at most ``size`` characters, at the best boundary.

    A boundary in the last half of the chunk wins by its kind: paragraph, line, sentence, word; else the chunk is full.
    """
    at, characters = start, 0
    paragraph, line, sentence, word = np.int64(-1), np.int64(-1), np.int64(-1), np.int64(-1)
    while at < end:
        if _starts_character(data[at]):
            if characters == size:
                break
            characters += 1
        if 2 * characters > size:
            byte = data[at]
            if byte == 10:
                line = at + 1
                if at > start and data[at - 1] == 10:
                    paragraph = at + 1
            if _blank(byte):
                word = at + 1
                if at > start and (data[at - 1] == 46 or data[at - 1] == 33 or data[at - 1] == 63):
                    sentence = at + 1
        at += 1
    if at == end:
        return end
    if paragraph >= 0:
        return paragraph
    if line >= 0:
        return line
    if sentence >= 0:
        return sentence
    return word if word >= 0 else at


@kernel
def _back(data: Any, start: Any, end: Any, overlap: Any) -> Any:
    """The byte where the next chunk begins: at most ``overlap`` characters before ``end``, at a word; after ``start``."""
    at, characters = end, 0
    while at > start + 1 and characters < overlap:
        at -= 1
        if _starts_character(data[at]):
            characters += 1
    while at > start + 1 and not _starts_character(data[at]):
        at += 1
        if at == end:
            return end
    word = at
    while word < end and not _blank(data[word]):
        word += 1
    found = word + 1 if word < end else at
    return found if start < found <= end and overlap else end


@kernel
def _pack(data: Any, offsets: Any, rows: Any, starts: Any, ends: Any, size: Any, overlap: Any) -> Any:
    pieces = np.empty((max(64, rows.shape[0]), 3), np.int64)
    count = 0
    for section in range(rows.shape[0]):
        begin = offsets[rows[section]]
        start, end = begin + starts[section], begin + ends[section]
        while start < end:
            while start < end and _blank(data[start]):
                start += 1
            cut = _cut(data, start, end, size)
            stop = cut
            while stop > start and _blank(data[stop - 1]):
                stop -= 1
            if stop > start:
                if count == pieces.shape[0]:
                    pieces = _grown(pieces)
                pieces[count, 0], pieces[count, 1], pieces[count, 2] = rows[section], start - begin, stop - begin
                count += 1
            start = _back(data, start, cut, overlap) if cut < end else end
    return pieces[:count, 0].copy(), pieces[:count, 1].copy(), pieces[:count, 2].copy()
