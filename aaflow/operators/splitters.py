"""Splitters: where the chunks of a document begin and end, as kernels over the UTF-8 of a column.

A document is cut into sections (the whole, by delimiter, by Markdown headings), and a section of more than ``size``
units into chunks. What a unit is, a count per byte says: how many units begin there (characters, or tokens of a model).
A chunk ends at the best boundary in its last half: paragraph, line, sentence, word, else where it is full.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.errors import DependencyError
from aaflow.kernel import copy, inlined, kernel, load8, load64, view
from aaflow.operators.embedders import folder

#: Units that begin at one byte, at most: eight of them are added in one byte.
_DENSEST = 31

Indices = npt.NDArray[np.int64]
Units = npt.NDArray[np.uint8]

#: Characters of a text that a tokenizer gets at once, and bytes of one batch of them: both bound its memory.
_TOKENISED_CHARACTERS = 1 << 18
_TOKENISED_BYTES = 1 << 22


@dataclass(frozen=True)
class Texts:
    """The rows of a column: row i is ``data[offsets[i]:offsets[i + 1]]``; uint8 and int64 [rows + 1]."""

    data: npt.NDArray[np.uint8]
    offsets: Indices

    @classmethod
    def of(cls, column: pa.Array) -> Texts:
        """The rows of a string column without nulls; shares its memory."""
        flat = view(column)
        first, last = int(flat.offsets[0]), int(flat.offsets[-1])
        return cls(flat.data[first:last], flat.offsets - first)


@dataclass(frozen=True)
class Spans:
    """Pieces of rows, ordered by row and start; all int64 [pieces].

    Attributes:
        row: the row that each piece is of.
        start: its first byte, counted from the beginning of the row.
        end: the byte after its last.
    """

    row: Indices
    start: Indices
    end: Indices

    def __len__(self) -> int:
        return len(self.row)

    def where(self, chosen: Any) -> Spans:
        """The pieces that a slice or mask of pieces chooses."""
        return Spans(self.row[chosen], self.start[chosen], self.end[chosen])

    def ordinals(self) -> npt.NDArray[np.int32]:
        """The number of each piece within its row, from 0; int32 [pieces]."""
        places = np.arange(len(self))
        begins = np.concatenate([[True], np.diff(self.row) != 0])[: len(self)]
        ordinals: npt.NDArray[np.int32] = (places - np.maximum.accumulate(places * begins)).astype(np.int32)
        return ordinals


@dataclass(frozen=True)
class Blocks:
    """Places that stay in one chunk where they fit one: int64 [blocks] of positions in ``Texts.data``, ascending."""

    start: Indices
    end: Indices


NO_BLOCKS = Blocks(np.empty(0, np.int64), np.empty(0, np.int64))


def whole(texts: Texts) -> Spans:
    """Every row as one piece."""
    lengths = np.diff(texts.offsets)
    return Spans(np.arange(len(lengths), dtype=np.int64), np.zeros(len(lengths), np.int64), lengths)


def by_delimiter(texts: Texts, delimiter: str) -> Spans:
    """Rows cut at every occurrence of a delimiter, which belongs to no piece."""
    mark = np.frombuffer(delimiter.encode(), np.uint8)
    return _spans(_delimited(texts.data, texts.offsets, mark))


def by_heading(texts: Texts) -> tuple[Spans, Blocks]:
    """Rows cut before every Markdown heading (``#`` to ``######``) outside fenced code, and the fenced blocks."""
    pieces, fences = _headed(texts.data, texts.offsets)
    return _spans(pieces), Blocks(fences[:, 0].copy(), fences[:, 1].copy())


def characters(texts: Texts) -> Units:
    """1 where a character begins."""
    begins: Units = ((texts.data & 0xC0) != 0x80).view(np.uint8)
    return begins


def pack(texts: Texts, sections: Spans, units: Units, size: int, overlap: int, blocks: Blocks = NO_BLOCKS) -> Spans:
    """Cut sections of more than ``size`` units; trim ASCII white space; drop what is blank by Unicode.

    Args:
        texts: the rows.
        sections: pieces of them.
        units: how many units begin at each byte; uint8 as long as ``texts.data``.
        size: units of a chunk at most (one character of more units is a chunk all the same).
        overlap: units that a chunk repeats of the one before it, at most; it begins at a word.
        blocks: what isn't cut if it has no more than ``size`` units.
    """
    fit = _fitting(units, blocks.start, blocks.end, size) if len(blocks.start) else np.zeros(0, np.bool_)
    ranges = (sections.row, sections.start, sections.end, blocks.start[fit], blocks.end[fit])
    densest = int(units.max(initial=1))
    packed = _spans(_pack(texts.data, texts.offsets, units, *ranges, densest, size, overlap))
    return packed.where(_with_text(texts.data, texts.offsets[packed.row], packed.start, packed.end))


def texts_of(texts: Texts, spans: Spans) -> pa.StringArray:
    """The text of every piece; together less than 2 GiB."""
    offsets = np.zeros(len(spans) + 1, np.int64)
    np.cumsum(spans.end - spans.start, out=offsets[1:])
    buffer = pa.allocate_buffer(int(offsets[-1]))
    _gather(texts.data, texts.offsets[spans.row] + spans.start, offsets, np.frombuffer(buffer, np.uint8))
    return pa.Array.from_buffers(pa.string(), len(spans), [None, pa.py_buffer(offsets.astype(np.int32)), buffer])


class Tokens:
    """The tokens of a model's own tokenizer as units, without the special ones that a model adds.

    Raises:
        InputError: the model is unknown or has no fast tokenizer.
        DependencyError: a package of the extra ``models`` is missing.
    """

    def __init__(self, model: str) -> None:
        path = folder.tokenizer_file(folder.find(model))
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DependencyError("splitting by tokens needs tokenizers: pip install 'aaflow[models]'") from error
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def units(self, texts: Texts) -> Units:
        """How many tokens begin at each byte.

        Rows of many characters are tokenised in parts, cut as chunks are, so that memory stays bounded.
        """
        units = np.zeros(len(texts.data), np.uint8)
        begins = characters(texts)
        parts = pack(texts, whole(texts), begins, _TOKENISED_CHARACTERS, 0)
        for batch in _batches(parts):
            encodings = self._tokenizer.encode_batch(texts_of(texts, batch).to_pylist(), add_special_tokens=False)
            for row, start, end, encoding in zip(batch.row, batch.start, batch.end, encodings, strict=True):
                first, last = texts.offsets[row] + start, texts.offsets[row] + end
                places = np.flatnonzero(begins[first:last])
                starts = np.fromiter((token[0] for token in encoding.offsets), np.int64, len(encoding.offsets))
                counts = np.bincount(places[starts], minlength=int(last - first))
                units[first:last] = np.minimum(counts, _DENSEST)
        return units


def _batches(spans: Spans) -> Iterator[Spans]:
    group = np.cumsum(spans.end - spans.start) // _TOKENISED_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(spans)]
    for first, last in itertools.pairwise(cuts):
        yield spans.where(slice(first, last))


def _spans(pieces: npt.NDArray[np.int64]) -> Spans:
    return Spans(pieces[:, 0].copy(), pieces[:, 1].copy(), pieces[:, 2].copy())


# --- kernels ---------------------------------------------------------------------------------------------------------


@kernel
def _gather(data: Any, starts: Any, offsets: Any, out: Any) -> None:
    for piece in range(starts.shape[0]):
        copy(out, offsets[piece], data, starts[piece], offsets[piece + 1] - offsets[piece])


@kernel
def _append(pieces: Any, count: int, row: int, start: int, end: int) -> Any:
    """``pieces`` (int64 [capacity, 3]) with one more at ``count``, grown where it was full."""
    if count == pieces.shape[0]:
        larger = np.empty((2 * count, 3), np.int64)
        larger[:count] = pieces
        pieces = larger
    pieces[count, 0], pieces[count, 1], pieces[count, 2] = row, start, end
    return pieces


@kernel
def _delimited(data: Any, offsets: Any, mark: Any) -> Any:
    pieces = np.empty((64, 3), np.int64)
    count, width = 0, mark.shape[0]
    for row in range(offsets.shape[0] - 1):
        begin, end = offsets[row], offsets[row + 1]
        start, at = begin, begin
        while at + width <= end:
            same = 0
            while same < width and data[at + same] == mark[same]:
                same += 1
            if same < width:
                at += 1
                continue
            pieces = _append(pieces, count, row, start - begin, at - begin)
            count += 1
            at += width
            start = at
        pieces = _append(pieces, count, row, start - begin, end - begin)
        count += 1
    return pieces[:count]


@inlined
def _blank(byte: Any) -> Any:
    return byte == 32 or 9 <= byte <= 13


@inlined
def _run(data: Any, at: int, end: int, byte: int) -> Any:
    """How often ``byte`` stands in a row from ``at``."""
    run = 0
    while at + run < end and data[at + run] == byte:
        run += 1
    return run


@inlined
def _only_blank(data: Any, at: int, end: int) -> Any:
    while at < end and _blank(data[at]):
        at += 1
    return at == end


@kernel
def _headed(data: Any, offsets: Any) -> Any:
    """Sections (row, start, end) and fences (absolute start and end) of Markdown: CommonMark 0.31, 4.2 and 4.5."""
    pieces, fences = np.empty((64, 3), np.int64), np.empty((64, 3), np.int64)
    count, fenced = 0, 0
    for row in range(offsets.shape[0] - 1):
        begin, end = offsets[row], offsets[row + 1]
        start, line = begin, begin
        mark, marks, opened = 0, 0, begin  # of the fence that is open, if marks > 0
        while line < end:
            after = line
            while after < end and data[after] != 10:
                after += 1
            at = line + min(_run(data, line, after, 32), 4)
            if at - line < 4 and at < after:
                byte = data[at]
                if marks:
                    run = _run(data, at, after, mark)
                    if run >= marks and _only_blank(data, at + run, after):
                        fences = _append(fences, fenced, opened, min(after + 1, end), 0)
                        fenced += 1
                        marks = 0
                elif byte == 96 or byte == 126:
                    run = _run(data, at, after, byte)
                    plain = run >= 3
                    if byte == 96:  # a line of inline code is no fence
                        for rest in range(at + run, after):
                            plain = plain and data[rest] != 96
                    if plain:
                        mark, marks, opened = int(byte), run, line
                elif byte == 35:
                    run = _run(data, at, after, 35)
                    stop = at + run
                    if run <= 6 and (stop == after or data[stop] == 32 or data[stop] == 9) and line > start:
                        pieces = _append(pieces, count, row, start - begin, line - begin)
                        count += 1
                        start = line
            line = after + 1
        pieces = _append(pieces, count, row, start - begin, end - begin)
        count += 1
    return pieces[:count], fences[:fenced]


@kernel
def _with_text(data: Any, begins: Any, starts: Any, ends: Any) -> Any:
    """Which pieces have a character that is no white space (Unicode, and the byte order mark)."""
    found = np.zeros(starts.shape[0], np.bool_)
    for piece in range(starts.shape[0]):
        at, end = begins[piece] + starts[piece], begins[piece] + ends[piece]
        while at < end:
            width = _space(data, at, end)
            if width == 0:
                found[piece] = True
                break
            at += width
    return found


@inlined
def _space(data: Any, at: int, end: int) -> Any:
    """Bytes of the white space character at ``at``; 0 if it is another one."""
    first = data[at]
    if _blank(first) or 28 <= first <= 31:
        return 1
    if first == 0xC2 and at + 1 < end:
        return 2 if data[at + 1] == 0x85 or data[at + 1] == 0xA0 else 0
    if at + 2 >= end:
        return 0
    second, third = data[at + 1], data[at + 2]
    if first == 0xE2 and second == 0x80:  # U+2000 to U+200B, U+2028, U+2029, U+202F
        return 3 if third <= 0x8B or third == 0xA8 or third == 0xA9 or third == 0xAF else 0
    if first == 0xE2 and second == 0x81:
        return 3 if third == 0x9F else 0
    ogham = first == 0xE1 and second == 0x9A and third == 0x80
    ideographic = first == 0xE3 and second == 0x80 and third == 0x80
    mark = first == 0xEF and second == 0xBB and third == 0xBF
    return 3 if ogham or ideographic or mark else 0


@kernel
def _fitting(units: Any, starts: Any, ends: Any, size: int) -> Any:
    """Which blocks have at most ``size`` units."""
    fit = np.zeros(starts.shape[0], np.bool_)
    for block in range(starts.shape[0]):
        used, at = 0, starts[block]
        while at < ends[block] and used <= size:
            used += units[at]
            at += 1
        fit[block] = used <= size
    return fit


@inlined
def _advance(units: Any, at: int, end: int, used: int, limit: int) -> Any:
    """The byte before which, from ``at``, ``used`` grows to ``limit`` at most, and what it is there."""
    while at + 8 <= end:
        eight = np.int64((load64(units, at) * np.uint64(0x0101010101010101)) >> np.uint64(56))
        if used + eight > limit:
            break
        used += eight
        at += 8
    while at < end and used + units[at] <= limit:
        used += units[at]
        at += 1
    return at, used


@inlined
def _below(values: Any, bound: int) -> Any:
    """How many of these sorted integers are less than ``bound``; for np.searchsorted numba would import scipy."""
    low, high = 0, values.shape[0]
    while low < high:
        middle = (low + high) // 2
        if values[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _cut(data: Any, units: Any, start: int, floor: int, end: int, size: int, block_starts: Any, block_ends: Any) -> Any:
    """Where the chunk that begins at ``start`` ends: a boundary beyond ``floor``, up to which all is in chunks.

    It is ``floor`` or less only if what follows can't be in one chunk with what stands before ``floor``.
    """
    half, used = _advance(units, start, end, 0, size // 2)
    limit, used = _advance(units, half, end, used, size)
    if limit == end:
        return end
    if limit == start:
        limit += 1
        while limit < end and units[limit] == 0:
            limit += 1
    block = _below(block_starts, start)
    paragraph, line, sentence, word = -1, -1, -1, -1
    for at in range(max(half, floor) + 1, limit + 1):
        byte = load8(data, at - 1)
        if not _blank(byte):
            continue
        while block < block_starts.shape[0] and block_ends[block] <= at:
            block += 1
        if block < block_starts.shape[0] and block_starts[block] < at:
            continue  # inside a block
        word = at
        before = load8(data, at - 2) if at - 2 >= start else 0
        if byte == 10:
            line = at
            if before == 10:
                paragraph = at
        if before == 46 or before == 33 or before == 63:
            sentence = at
    block = _below(block_ends, limit + 1)
    if block < block_starts.shape[0] and start < block_starts[block] < limit:
        return block_starts[block]
    for boundary in (paragraph, line, sentence, word):
        if boundary >= 0:
            return boundary
    return limit


@kernel
def _back(data: Any, units: Any, start: int, end: int, overlap: int) -> Any:
    """Where the chunk after ``[start, end)`` begins: at most ``overlap`` units before ``end``, at a word."""
    at, used = end, 0
    while at > start + 1 and used + units[at - 1] <= overlap:
        at -= 1
        used += units[at]
    word = at
    while word < end and not _blank(data[word - 1]):
        word += 1
    if word < end or _blank(data[end - 1]):
        return word
    # The chunk was cut inside a word longer than the overlap: begin inside it, at a character.
    while at < end and (data[at] & 0xC0) == 0x80:
        at += 1
    return at


@kernel
def _pack(
    data: Any, offsets: Any, units: Any, rows: Any, starts: Any, ends: Any, block_starts: Any, block_ends: Any,
    densest: int, size: int, overlap: int,
) -> Any:  # fmt: skip
    pieces = np.empty((max(64, rows.shape[0]), 3), np.int64)
    count = 0
    for section in range(rows.shape[0]):
        begin = offsets[rows[section]]
        start, end = begin + starts[section], begin + ends[section]
        while end > start and _blank(data[end - 1]):
            end -= 1
        floor = start
        while start < end:
            while start < end and _blank(data[start]):
                start += 1
            cut = end
            if (end - start) * densest > size:
                cut = _cut(data, units, start, floor, end, size, block_starts, block_ends)
            if cut <= floor:
                start = floor
                continue
            stop = cut
            while stop > start and _blank(data[stop - 1]):
                stop -= 1
            pieces = _append(pieces, count, rows[section], start - begin, stop - begin)
            count += 1
            floor = cut
            while floor < end and _blank(data[floor]):
                floor += 1
            start = _back(data, units, start, cut, overlap) if overlap and cut < end else cut
            block = _below(block_ends, start + 1)
            if block < block_starts.shape[0] and block_starts[block] < start:
                start = min(block_ends[block], cut)  # half a block is no context
    return pieces[:count]
