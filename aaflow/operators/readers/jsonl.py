"""JSON: files of JSON lines by byte range, and whole JSON files whose top is an array or an object.

A block of good lines goes through pyarrow's parser at once. Where that can't vouch for every line (one is malformed, or
a value has another type than the column), the block is read again line by line, which gives the same rows for good
lines and a reason for each bad one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.json as pj

from aaflow.operators.readers.documents import finish
from aaflow.operators.readers.lines import Block, Overlong, line_blocks
from aaflow.operators.readers.notices import Notices, Unreadable, invalid_text, over_limit, shorten
from aaflow.operators.readers.options import TEXT_COLUMNS, Bookmark, LoadOptions, Split
from aaflow.operators.readers.records import first_or_joined, named_columns, no_text, record_rows
from aaflow.operators.readers.sources import open_utf8, read_whole
from aaflow.operators.readers.text import decode
from aaflow.schema import metadata_type

_BOM = b"\xef\xbb\xbf"
#: A file that is an array is held whole: it may be as large as so many of the longest records.
_ARRAY_RECORDS = 8


def read_jsonl(split: Split, options: LoadOptions, notices: Notices, _: Bookmark) -> Iterator[pa.RecordBatch]:
    """Batches of the records whose lines begin in the split's byte range; the key is a line's byte offset.

    Raises:
        OSError: and what decompression and decoding raise.
    """
    end = None if split.whole else split.end
    reader = _BlockReader(split, options, notices)
    with open_utf8(split, options) as stream:
        for block in line_blocks(stream, split.start, end, options.max_record_bytes):
            if isinstance(block, Overlong):
                reader.skip(block.offset, str(over_limit(options.max_record_bytes, "the line")))
            else:
                yield from reader.read(block)


def read_json(split: Split, options: LoadOptions, notices: Notices, _: Bookmark) -> Iterator[pa.RecordBatch]:
    """Batches of the elements of a JSON array, keyed by their number, or the one document that a JSON object is.

    Raises:
        Unreadable: empty, too long, malformed, or neither an array nor an object.
        OSError: and what decompression and decoding raise.
    """
    try:
        data = read_whole(split, _ARRAY_RECORDS * options.max_record_bytes)
    except Unreadable as error:
        if "max_record_bytes" not in str(error):
            raise
        longest = f"{_ARRAY_RECORDS} times max_record_bytes ({options.max_record_bytes})"
        raise Unreadable(f"the file is longer than {longest}; as JSON lines (.jsonl) it is read in pieces") from None
    try:
        top = _parse(decode(data, options).encode())
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        hint = "; if each line is a JSON value, read it with --format jsonl" if data.count(b"\n") > 1 else ""
        raise Unreadable(f"{_malformed(error)}{hint}") from None
    reader = _BlockReader(split, options, notices)
    if isinstance(top, dict):
        rows = reader.rows([top], [0])
        source = pa.array([split.source], pa.string())
        yield from finish(replace(rows, doc_id=source), options, notices, no_text(options))
    elif isinstance(top, list):
        yield from reader.elements(top)
    else:
        raise Unreadable(f"its top is {_kind(top)}; records are an array of objects, a document is an object")


@dataclass
class _BlockReader:
    split: Split
    options: LoadOptions
    notices: Notices

    def __post_init__(self) -> None:
        self._text = list(self.options.text_columns or TEXT_COLUMNS)
        self._id_type = pa.string()

    def read(self, block: Block) -> Iterator[pa.RecordBatch]:
        data = block.data
        if block.offset == 0 and data.startswith(_BOM):
            block = Block(len(_BOM), data[len(_BOM) :])
        starts, ends = _line_bounds(block.data)
        rows = self._fast(block, starts, ends)
        if rows is None:
            rows = self.rows(*self._line_by_line(block, starts, ends))
        yield from finish(rows, self.options, self.notices, no_text(self.options))

    def elements(self, top: Sequence[Any]) -> Iterator[pa.RecordBatch]:
        values, numbers = [], []
        for number, value in enumerate(top):
            if isinstance(value, dict):
                values.append(value)
                numbers.append(number)
            else:
                self.skip(number, _not_an_object(value))
        yield from finish(self.rows(values, numbers), self.options, self.notices, no_text(self.options))

    def skip(self, position: int, reason: str) -> None:
        source = self.split.source
        self.notices.add(reason, source, record=position, doc_id=f"{source}#{position}")

    def rows(self, values: Sequence[Mapping[str, Any]], positions: Sequence[int]) -> Any:
        """Rows from parsed objects, by the rules that :meth:`_fast` keeps too: scalars count by their JSON text."""
        names = dict.fromkeys(named_columns(self.options))
        columns = {n: pa.array([_json_text(v.get(n)) for v in values], pa.string()) for n in names}
        if self.options.id_column is not None:
            ids = [_scalar_text(v.get(self.options.id_column)) for v in values]
            columns[self.options.id_column] = pa.array(ids, pa.string())
        texts = [pa.array([_scalar_text(v.get(n)) for v in values], pa.string()) for n in self._text]
        text = first_or_joined(self.options, self._text, texts)
        if self.options.text_columns is None:
            text = pa.array(
                [self._all_strings(v, t) for v, t in zip(values, text.to_pylist(), strict=True)], pa.string()
            )
        return record_rows(self.split, self.options, columns, text, pa.array(positions, pa.int64()))

    def _all_strings(self, value: Mapping[str, Any], text: str | None) -> str | None:
        if text is not None or not value.keys().isdisjoint(TEXT_COLUMNS):
            return text
        parts = (v for n, v in value.items() if isinstance(v, str) and v.strip() and n != self.options.id_column)
        return "\n\n".join(parts)

    def _fast(self, block: Block, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Any:
        """Rows by pyarrow's parser, or None where each line has to be looked at.

        The parser does not say which line a row came from and is laxer than JSON lines are. But where every line that
        is not empty begins with ``{`` and ends with ``}``, and there are as many rows as such lines, row i is line i:
        a value can't go on into the next line, as ``}`` newline ``{`` is no JSON but between two values.
        """
        if not _plausible(block.data, starts, ends, self.options.max_record_bytes):
            return None
        full = starts[ends > starts]
        table = self._arrow_table(block.data)
        if table is None or table.num_rows != len(full):
            return None
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        text = first_or_joined(self.options, self._text, [columns[name] for name in self._text])
        if self.options.text_columns is None and text.null_count:
            return None  # which columns such a row has decides its text
        return record_rows(self.split, self.options, columns, text, pa.array(full + block.offset))

    def _arrow_table(self, data: bytes) -> pa.Table | None:
        # A key is a string or a number, the same in most files all the way: what fitted last is tried first.
        other = pa.int64() if self._id_type == pa.string() else pa.string()
        for id_type in (self._id_type, other) if self.options.id_column else (self._id_type,):
            try:
                table = pj.read_json(
                    pa.BufferReader(data),
                    read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
                    parse_options=pj.ParseOptions(
                        explicit_schema=self._arrow_schema(id_type), unexpected_field_behavior="ignore"
                    ),
                )
            except (pa.ArrowInvalid, UnicodeDecodeError):
                continue
            self._id_type = id_type
            return table
        return None

    def _arrow_schema(self, id_type: pa.DataType) -> pa.Schema:
        # Only types that JSON has: the parser's own reading of dates is not the one of `fit`.
        kinds = {
            f.name: pa.string() if pa.types.is_temporal(f.type) else f.type
            for f in metadata_type(self.options.metadata)
        }
        if self.options.id_column is not None:
            kinds[self.options.id_column] = id_type
        return pa.schema({**kinds, **dict.fromkeys(self._text, pa.string())})

    def _line_by_line(
        self, block: Block, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> tuple[list[dict[str, Any]], list[int]]:
        values, positions = [], []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            line = block.data[start:end].strip(b" \t\r")
            if not line:
                continue
            value = self._line(line, end - start, block.offset + start)
            if value is not None:
                values.append(value)
                positions.append(block.offset + start)
        return values, positions

    def _line(self, line: bytes, length: int, position: int) -> dict[str, Any] | None:
        try:
            if length > self.options.max_record_bytes:
                raise over_limit(self.options.max_record_bytes, "the line")
            if b"\0" in line:
                raise Unreadable("binary content (NUL), not a line of JSON")
            line.decode()
            value = _parse(line)
            if not isinstance(value, dict):
                raise Unreadable(_not_an_object(value))
        except Unreadable as error:
            self.skip(position, str(error))
        except UnicodeDecodeError as error:
            self.skip(position, invalid_text(error, position))
        except ValueError as error:
            self.skip(position, _malformed(error))
        else:
            return value
        return None


def _line_bounds(data: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each line begins and ends, its newline and a carriage return before it left out."""
    view = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(view == ord("\n"))
    if not len(ends) or ends[-1] != len(view) - 1:
        ends = np.append(ends, len(view))
    starts = np.concatenate(([0], ends[:-1] + 1))
    ends = ends - ((ends > starts) & (view[ends - 1] == ord("\r")))
    return starts, ends


def _plausible(data: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], limit: int) -> bool:
    full = ends > starts
    view = np.frombuffer(data, dtype=np.uint8)
    if (view[starts[full]] != ord("{")).any() or (view[ends[full] - 1] != ord("}")).any():
        return False
    if (ends - starts > limit).any() or b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parse(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        # Not JSON, but what Python and pandas write for missing numbers, and pyarrow reads.
        if b"NaN" in line or b"Infinity" in line:
            try:
                value = json.loads(line)
            except RecursionError:
                raise ValueError("nested too deeply") from None
            _dump(value).encode()  # refuses halves of surrogate pairs
            return value
        raise


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _scalar_text(value: Any) -> str | None:
    return None if isinstance(value, (list, dict)) else _json_text(value)


def _malformed(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"malformed JSON at {where}: {error.msg}"
    return f"malformed JSON: {error}"


def _not_an_object(value: Any) -> str:
    return f"a record has to be a JSON object; this is {_kind(value)}: {shorten(value, 40)}"


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a truth value", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")
