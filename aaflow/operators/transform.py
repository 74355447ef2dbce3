"""``transform``: documents become chunks, with offsets back into the document."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import DependencyError, InputError
from aaflow.hashing import sha256, sha256_rows
from aaflow.operators import splitters
from aaflow.operators.operator import Item
from aaflow.operators.splitters import Spans, Texts
from aaflow.schema import NOTICES, chunks

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
        size: of a chunk at most, in characters, or in tokens (a model adds its special ones to these).
        overlap: what a chunk repeats of the one before it, at most, in the same unit; None: a tenth of ``size``.
        delimiter: text that parts chunks; belongs to none.
        normalise: of a chunk's text: ``none``, ``nfc`` (Unicode NFC), ``whitespace`` (NFC, and runs of white space
            become one space). Documents are split before, so that offsets are those of the source.
        model: whose tokens count.

    Raises:
        InputError: a value can't be used; the text names it.
    """

    splitter: str = "characters"
    size: int = 1000
    overlap: int | None = None
    delimiter: str = "\n\n"
    normalise: str = "none"
    model: str | None = None

    def __post_init__(self) -> None:
        if self.splitter not in SPLITTERS:
            raise InputError(f"transform: unknown splitter {self.splitter!r}; use {', '.join(SPLITTERS)}")
        if self.normalise not in NORMALISATIONS:
            raise InputError(f"transform: unknown normalisation {self.normalise!r}; use {', '.join(NORMALISATIONS)}")
        if self.size < 1 or not 0 <= self.repeated < self.size:
            raise InputError(f"transform: size {self.size} and overlap {self.repeated}; use 0 <= overlap < size")
        if self.splitter == "tokens" and not self.model:
            raise InputError("transform: splitter 'tokens' needs the model whose tokens count")
        if self.splitter == "delimiter" and not self.delimiter:
            raise InputError("transform: splitter 'delimiter' needs a delimiter of at least one character")

    @property
    def repeated(self) -> int:
        """The overlap in force."""
        return self.size // 10 if self.overlap is None else self.overlap

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "overlap": self.repeated}

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
    """Splits the documents of every item into chunks; a document without any is reported as skipped.

    Raises:
        DependencyError: this pyarrow does not normalise as it should.
    """

    def __init__(self, options: TransformOptions) -> None:
        self._options = options
        if options.normalise != "none" and pc.utf8_normalize(pa.array(["e\u0301"]), form="NFC")[0].as_py() != "\u00e9":
            raise DependencyError(
                f"transform: normalise={options.normalise!r} needs a newer pyarrow than {pa.__version__} of "
                f"{sys.executable}, whose NFC is NFD: upgrade it, or use normalise='none'"
            )
        self._tokens = splitters.Tokens(options.model) if options.splitter == "tokens" and options.model else None

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        for item in items:
            if item.rows is None or not item.rows.num_rows:
                yield replace(item, rows=None)
                continue
            texts = Texts.of(item.rows.column("text"))
            spans = self._split(texts)
            ordinals = spans.ordinals()
            parts = _parts(item.rows, spans)
            for part in parts[:-1]:
                rows = self._chunks(item.rows, texts, spans.where(part), ordinals[part])
                yield Item(item.tranche, item.partition, rows)
            # What ends the item goes with its last rows, for nothing of it may come after that.
            last = self._chunks(item.rows, texts, spans.where(parts[-1]), ordinals[parts[-1]]) if parts else None
            yield replace(item, rows=last, notices=_joined(item.notices, _without_chunks(item.rows, spans)))

    def _split(self, texts: Texts) -> Spans:
        options = self._options
        sections, blocks, size = splitters.whole(texts), splitters.NO_BLOCKS, options.size
        if options.splitter == "markdown":
            sections, blocks = splitters.by_heading(texts)
        elif options.splitter == "delimiter":
            sections = splitters.by_delimiter(texts, options.delimiter)
        elif options.splitter == "whole":
            size = len(texts.data) + 1
        units = splitters.characters(texts) if self._tokens is None else self._tokens.units(texts)
        return splitters.pack(texts, sections, units, size, options.repeated, blocks)

    def _chunks(
        self, documents: pa.RecordBatch, texts: Texts, spans: Spans, ordinals: npt.NDArray[np.int32]
    ) -> pa.RecordBatch:
        row = pa.array(spans.row)
        text = _normalised(splitters.texts_of(texts, spans), self._options.normalise)
        taken = {name: documents.column(name).take(row) for name in _TAKEN}
        start = pa.array(spans.start)
        columns = {
            **taken,
            "chunk_id": sha256_rows([taken["doc_id"], start, text], 16),
            "ordinal": pa.array(ordinals),
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
    plain = chunks()
    return plain.set(plain.get_field_index("metadata"), documents.field("metadata"))


def _normalised(text: pa.Array, how: str) -> pa.Array:
    if how == "none":
        return text
    text = pc.utf8_normalize(text, form="NFC")
    if how == "nfc":
        return text
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(text, r"[\s\p{Z}\v\x85]+", " "))


def _parts(documents: pa.RecordBatch, spans: Spans) -> list[slice]:
    """Runs of pieces whose rows fit one batch: their texts, and what each repeats of its document."""
    if not len(spans):
        return []
    repeated = sum(_sizes(documents.column(name)) for name in _TAKEN)
    group = np.cumsum(spans.end - spans.start + repeated[spans.row]) // BATCH_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
    return [slice(first, last) for first, last in itertools.pairwise(cuts)]


def _sizes(column: pa.Array) -> Any:
    """Bytes of the strings in every row, those of a struct's fields too; int64 [rows], or 0 where there are none."""
    if pa.types.is_struct(column.type):
        return sum(_sizes(child) for child in column.flatten())
    if pa.types.is_string(column.type):
        return pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return 0


def _without_chunks(documents: pa.RecordBatch, spans: Spans) -> pa.RecordBatch | None:
    """Notices of documents that gave no chunk; None where all did."""
    silent = np.ones(documents.num_rows, np.bool_)
    silent[spans.row] = False
    if not silent.any():
        return None
    rows = documents.filter(pa.array(silent))
    columns = {name: rows.column(name) for name in ("doc_id", "partition", "source", "record")}
    columns["kind"] = pa.repeat("skipped", rows.num_rows)
    columns["reason"] = pa.repeat("no text after normalisation", rows.num_rows)
    return pa.RecordBatch.from_arrays([columns[name] for name in NOTICES.names], schema=NOTICES)


def _joined(first: pa.RecordBatch | None, second: pa.RecordBatch | None) -> pa.RecordBatch | None:
    if first is None or second is None:
        return second if first is None else first
    return pa.Table.from_batches([first, second], NOTICES).combine_chunks().to_batches()[0]
