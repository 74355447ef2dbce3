"""Files that are one document each, gathered into batches."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module

import pyarrow as pa

from aaflow.operators.readers.documents import BATCH_BYTES, BATCH_ROWS, Rows, finish
from aaflow.operators.readers.notices import NOTICES_HELD, Notices, Unreadable, reason_of
from aaflow.operators.readers.options import LoadOptions, Split
from aaflow.operators.readers.sources import local_path
from aaflow.schema import metadata_type

#: Gives a file's text and what it says of itself, by name.
Reader = Callable[[Split, LoadOptions], tuple[str, dict[str, str]]]

#: What reading a file raises because of the file, not of the program.
FILE_ERRORS = (Unreadable, OSError, UnicodeError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)

# By name: a corpus without PDFs doesn't wait for the import of a PDF parser.
_READERS: Mapping[str, tuple[str, str]] = {
    "txt": ("text", "read_text"),
    "md": ("text", "read_text"),
    "rst": ("text", "read_text"),
    "html": ("html", "read_html"),
    "pdf": ("pdf", "read_pdf"),
}


def read_documents(splits: Iterable[Split], options: LoadOptions, notices: Notices) -> Iterator[pa.RecordBatch | None]:
    """Batches of documents, one row per file of ``splits``, in their order; None where many notices wait."""
    readers: dict[str, Reader] = {}
    held: list[_Document] = []
    size = 0
    for split in splits:
        if split.format not in readers:
            module, name = _READERS[split.format]
            readers[split.format] = getattr(import_module(f"{__package__}.{module}"), name)
        try:
            text, fields = readers[split.format](split, options)
        except Exception as error:
            # A store's client raises what it likes; an error that no local file explains is ours.
            if local_path(split.uri) is not None and not isinstance(error, FILE_ERRORS):
                raise
            notices.add(reason_of(error, split.compression), split.source)
            if len(notices) >= NOTICES_HELD:
                yield None
            continue
        held.append((split, text, fields))
        size += len(text)
        if len(held) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield from finish(_rows(held, options), options, notices, _BLANK)
            held, size = [], 0
    if held:
        yield from finish(_rows(held, options), options, notices, _BLANK)


_BLANK = "no text: only white space"


_Document = tuple[Split, str, dict[str, str]]


def _rows(held: list[_Document], options: LoadOptions) -> Rows:
    source = pa.array([split.source for split, _, _ in held], pa.string())
    names = [field.name for field in metadata_type(options.metadata)]
    return Rows(
        doc_id=source,
        source=source,
        record=pa.repeat(pa.scalar(0, pa.int64()), len(held)),
        text=pa.array([text for _, text, _ in held], pa.string()),
        source_type=pa.array([split.format for split, _, _ in held], pa.string()),
        metadata={name: pa.array([fields.get(name) for _, _, fields in held], pa.string()) for name in names},
    )
