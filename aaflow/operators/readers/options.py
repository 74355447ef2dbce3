"""What ``load`` is told, and one piece of input: pure data that the listing and every reader share."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from aaflow.errors import InputError
from aaflow.schema import metadata_type

MIB = 1 << 20

#: File name endings of each format.
EXTENSIONS: Mapping[str, str] = {
    "txt": "txt",
    "text": "txt",
    "md": "md",
    "markdown": "md",
    "rst": "rst",
    "html": "html",
    "htm": "html",
    "xhtml": "html",
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
    "pdf": "pdf",
}
FORMATS = tuple(dict.fromkeys(EXTENSIONS.values()))

#: Formats whose rows are documents of their own.
RECORD_FORMATS = frozenset({"json", "jsonl", "csv", "tsv", "parquet"})

#: Those whose files are cut at any byte where they are plain UTF-8.
CUT_BY_BYTES = frozenset({"jsonl", "csv", "tsv"})

#: File name endings of each compression.
COMPRESSIONS = ("gz", "bz2", "xz", "zst")

#: Columns that are a record's text when none are named: the first that is there and not blank.
TEXT_COLUMNS = ("text", "content", "body", "abstract")


@dataclass(frozen=True)
class LoadOptions:
    """How inputs are listed and read.

    Attributes:
        partitions: number of partitions of the index.
        text_columns: columns of a record that are its text, joined by an empty line. None: the first of
            :data:`TEXT_COLUMNS` that is not blank, else all string columns but the id.
        id_column: column whose value is a record's key; None: its byte offset (jsonl) or row number.
        metadata: metadata field to type name (see :func:`aaflow.schema.metadata_type`), read from columns of that name.
        scope: written to every document.
        encoding: of text and records; HTML and PDF say their own.
        format: read every file as this format whatever its name; None: by the file name's ending.
        max_record_bytes: a document or record of more bytes is skipped.
        split_bytes: files of records are cut into pieces of about this many bytes.
        hidden: whether files and folders whose names begin with a dot are listed.

    Raises:
        InputError: a value can't be used; the text names it.
    """

    partitions: int = 64
    text_columns: tuple[str, ...] | None = None
    id_column: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    scope: str = ""
    encoding: str = "utf-8"
    format: str | None = None
    max_record_bytes: int = 16 * MIB
    split_bytes: int = 32 * MIB
    hidden: bool = False

    def __post_init__(self) -> None:
        for name in ("partitions", "max_record_bytes", "split_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"load: {name} is {getattr(self, name)}; it must be at least 1")
        if self.format is not None and self.format not in FORMATS:
            raise InputError(f"load: unknown format {self.format!r}; use {', '.join(FORMATS)}")
        if self.text_columns is not None and not self.text_columns:
            raise InputError("load: text_columns is empty; name at least one column or leave it out")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise InputError(f"load: unknown encoding {self.encoding!r}; use one that Python knows") from None
        try:
            metadata_type(self.metadata)
        except ValueError as error:
            raise InputError(f"load: {error}") from None

    @property
    def utf8(self) -> bool:
        """Whether the text is UTF-8, whichever way its name is spelled."""
        return codecs.lookup(self.encoding).name in ("utf-8", "ascii")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "metadata": dict(self.metadata)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoadOptions:
        """The inverse of :meth:`to_json`; what is left out keeps its default.

        Raises:
            InputError: an unknown name, or a value that can't be used.
        """
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise InputError(f"load: unknown option {', '.join(sorted(unknown))}")
        values = dict(data)
        if values.get("text_columns") is not None:
            values["text_columns"] = tuple(values["text_columns"])
        return cls(**values)


@dataclass(frozen=True)
class Split:
    """One row of :data:`aaflow.schema.LISTING`: a file, or a range of a file of records.

    ``end`` is -1 where the size isn't known before it is read.
    """

    root: str
    source: str
    uri: str
    format: str
    compression: str
    size: int
    mtime_ns: int
    start: int
    end: int
    records: bool
    partition: int
    tranche: int

    @property
    def whole(self) -> bool:
        """Whether it is all of its file."""
        return self.start == 0 and self.end in (-1, self.size)


#: State of a bookmark at the beginning of a row.
ROW_START = 0


@dataclass
class Bookmark:
    """How far a file was read whose records can be found from its beginning only (CSV, TSV).

    Who reads splits one after the other keeps one for all of them. Where the splits of a file come by rising ``start``,
    each goes on where the one before it ended; else the file is gone through from its beginning again.

    Attributes:
        uri: the file; empty at first.
        reached: end of the last split that was read.
        offset: byte of the file that was come to: the first row that begins at ``reached`` or behind it.
        row: number of that row.
        state: ``ROW_START``, or what ``offset`` is in where that row was not come to.
        delimiter: one byte.
        header: names of the columns.
    """

    uri: str = ""
    reached: int = 0
    offset: int = 0
    row: int = 0
    state: int = ROW_START
    delimiter: bytes = b""
    header: tuple[str, ...] = ()


def splits(table: pa.Table) -> Iterator[Split]:
    """The rows of a listing, in its order; one per file, so Python objects are affordable."""
    names = [f.name for f in fields(Split)]
    for batch in table.select(names).to_batches(max_chunksize=4096):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield Split(*values)
