"""``transform``: documents become chunks, with offsets back into the document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import InputError
from aaflow.hashing import sha256, sha256_rows
from aaflow.operators import splitters
from aaflow.operators.operator import Item
from aaflow.schema import NOTICES

SPLITTERS = ("characters", "tokens", "markdown", "delimiter", "whole")
NORMALISATIONS = ("none", "nfc", "whitespace")
#: Bytes of text in one batch that goes out, at most (offsets of a string column are 32 bits).
BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class TransformOptions:
    """How documents are split.

    Attributes:
        splitter: ``characters``, ``tokens`` of ``model``, ``markdown`` (a heading begins a chunk), ``delimiter``, or
            ``whole`` documents.
        size: of a chunk at most, in characters, or in tokens.
        overlap: what a chunk repeats of the one before it, at most, in the same unit.
        delimiter: text that parts chunks; belongs to none.
        normalise: of a chunk's text: ``none``, ``nfc`` (Unicode NFC), ``whitespace`` (NFC, and runs of white space
            become one space).
        model: whose tokens count.

    Raises:
        InputError: a value can't be used; the text names it.
    """

    splitter: str = "characters"
    size: int = 1000
    overlap: int = 100
    delimiter: str = "\n\n"
    normalise: str = "none"
    model: str | None = None

    def __post_init__(self) -> None:
        if self.splitter not in SPLITTERS:
            raise InputError(f"transform: unknown splitter {self.splitter!r}; use {', '.join(SPLITTERS)}")
        if self.normalise not in NORMALISATIONS:
            raise InputError(f"transform: unknown normalisation {self.normalise!r}; use {', '.join(NORMALISATIONS)}")
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise InputError(f"transform: size {self.size} and overlap {self.overlap}; use 0 <= overlap < size")
        if self.splitter == "tokens" and not self.model:
            raise InputError("transform: splitter 'tokens' needs the model whose tokens count")
        if self.splitter == "delimiter" and not self.delimiter:
            raise InputError("transform: splitter 'delimiter' needs a delimiter of at least one character")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TransformOptions:
        """The inverse of :meth:`to_json`; what is left out keeps its default.

        Raises:
            InputError: an unknown name, or a value that can't be used.
        """
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(f"transform: unknown option {', '.join(sorted(unknown))}")
        return cls(**data)


class Transform:
    """Splits the documents of every item into chunks."""

    def __init__(self, options: TransformOptions) -> None:
        self._options = options
        self._tokens: splitters.TokenSplitter | None = None

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        for item in items:
            if item.rows is None or not item.rows.num_rows:
                yield replace(item, rows=None)
                continue
            spans = self._split(item.rows.column("text"))
            empty = _without_chunks(item.rows, spans)
            if empty is not None:
                item = replace(item, notices=_joined(item.notices, empty))
            parts = list(_parts(spans))
            for part in parts[:-1]:
                yield Item(item.tranche, item.partition, self._chunks(item.rows, part))
            yield replace(item, rows=self._chunks(item.rows, parts[-1]) if parts else None)

    def _split(self, text: pa.Array) -> splitters.Spans:
        options = self._options
        if options.splitter == "tokens":
            if self._tokens is None:
                assert options.model is not None
                self._tokens = splitters.TokenSplitter(options.model, options.size, options.overlap)
            return self._tokens.split(text)
        if options.splitter == "markdown":
            sections = splitters.by_heading(text)
        elif options.splitter == "delimiter":
            sections = splitters.by_delimiter(text, options.delimiter)
        else:
            sections = splitters.whole(text)
        size = np.iinfo(np.int64).max // 4 if options.splitter == "whole" else options.size
        return splitters.pack(text, sections, size, options.overlap)

    def _chunks(self, documents: pa.RecordBatch, spans: splitters.Spans) -> pa.RecordBatch:
        row = pa.array(spans.row)
        text = _normalised(splitters.texts_of(documents.column("text"), spans), self._options.normalise)
        taken = {name: documents.column(name).take(row) for name in _TAKEN}
        start = pa.array(spans.start)
        columns = {
            **taken,
            "chunk_id": sha256_rows([taken["doc_id"], start, text], 16),
            "ordinal": pa.array(spans.ordinals()),
            "start": start,
            "end": pa.array(spans.end),
            "text": text,
            "content_hash": sha256(text),
            "doc_hash": documents.column("content_hash").take(row),
        }
        schema = _chunk_schema(documents.schema)
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


_TAKEN = ("doc_id", "partition", "source", "record", "source_type", "scope", "metadata")


def _chunk_schema(documents: pa.Schema) -> pa.Schema:
    """The schema of chunks whose metadata are those of the documents."""
    from aaflow.schema import chunks

    plain = chunks()
    return plain.set(plain.get_field_index("metadata"), documents.field("metadata"))


def _normalised(text: pa.Array, how: str) -> pa.Array:
    if how == "none":
        return text
    text = pc.utf8_normalize(text, form="NFC")
    return text if how == "nfc" else pc.replace_substring_regex(text, r"\s+", " ")


def _parts(spans: splitters.Spans) -> Iterator[splitters.Spans]:
    """Spans in runs whose texts fit one batch."""
    if not len(spans.row):
        return
    group = np.cumsum(spans.end - spans.start) // BATCH_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        yield splitters.Spans(spans.row[first:last], spans.start[first:last], spans.end[first:last], spans.before(first))


def _without_chunks(documents: pa.RecordBatch, spans: splitters.Spans) -> pa.RecordBatch | None:
    """Notices of documents that gave no chunk; None where all did."""
    silent = np.ones(documents.num_rows, np.bool_)
    silent[spans.row] = False
    if not silent.any():
        return None
    rows = documents.filter(pa.array(silent))
    columns = {name: rows.column(name) for name in ("doc_id", "partition", "source", "record")}
    columns["kind"] = pa.repeat("skipped", rows.num_rows)
    columns["reason"] = pa.repeat("no text: nothing but white space", rows.num_rows)
    return pa.RecordBatch.from_arrays([columns[name] for name in NOTICES.names], schema=NOTICES)


def _joined(first: pa.RecordBatch | None, second: pa.RecordBatch) -> pa.RecordBatch:
    if first is None:
        return second
    return pa.Table.from_batches([first, second], NOTICES).combine_chunks().to_batches()[0]
