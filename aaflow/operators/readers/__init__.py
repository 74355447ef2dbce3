"""Readers of every format: a piece of input becomes batches of documents and notices, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module

import pyarrow as pa

from aaflow.operators.readers.notices import NO_RECORDS, Notices, reason_of
from aaflow.operators.readers.options import Bookmark, LoadOptions, Split, splits
from aaflow.operators.readers.sources import local_path
from aaflow.operators.readers.whole import FILE_ERRORS, read_documents

__all__ = ["Bookmark", "LoadOptions", "Notices", "Split", "read", "read_documents", "read_records", "splits"]

RecordReader = Callable[[Split, LoadOptions, Notices, Bookmark], Iterator[pa.RecordBatch]]

_READERS: Mapping[str, tuple[str, str]] = {
    "json": ("jsonl", "read_json"),
    "jsonl": ("jsonl", "read_jsonl"),
    "csv": ("delimited", "read_delimited"),
    "tsv": ("delimited", "read_delimited"),
    "parquet": ("parquet", "read_parquet"),
}


def read(
    split: Split, options: LoadOptions, bookmark: Bookmark | None = None
) -> Iterator[tuple[pa.RecordBatch | None, pa.RecordBatch | None]]:
    """What one piece of input holds, as it is read.

    Args:
        split: the piece.
        options: how to read.
        bookmark: where the pieces before it ended; None: it is read by itself.

    Yields:
        Batches of ``schema.documents(options.metadata)`` and of ``schema.NOTICES``; either may be None. Nothing in the
        input raises: what can't be read is a notice that says why.
    """
    notices = Notices(options.partitions)
    if split.records:
        rows: Iterator[pa.RecordBatch | None] = read_records(split, options, notices, bookmark or Bookmark())
    else:
        rows = read_documents([split], options, notices)
    for batch in rows:
        yield batch, notices.take()
    if len(notices):
        yield None, notices.take()


def read_records(split: Split, options: LoadOptions, notices: Notices, bookmark: Bookmark) -> Iterator[pa.RecordBatch]:
    """Batches of the documents in one split of a file of records; what can't be read goes to ``notices``."""
    module, name = _READERS[split.format]
    reader: RecordReader = getattr(import_module(f"{__package__}.{module}"), name)
    rows = 0
    before = len(notices)
    with notices.of_split(split.source, split.start):
        try:
            for batch in reader(split, options, notices, bookmark):
                rows += batch.num_rows
                yield batch
        except Exception as error:
            # As for whole documents: what a store's client raises is unknown, other errors are ours.
            if local_path(split.uri) is not None and not isinstance(error, FILE_ERRORS):
                raise
            kept = f"; the {rows} records before it are kept" if rows else ""
            notices.add(reason_of(error, split.compression) + kept, split.source, record=split.start)
        if not rows and len(notices) == before and split.whole:
            notices.add(NO_RECORDS if split.size else "empty", split.source)
