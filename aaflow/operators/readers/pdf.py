"""The text layer of PDF files, by pypdf."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from typing import BinaryIO

from pypdf import PdfReader
from pypdf.errors import DependencyError as PdfDependencyError

from aaflow.operators.readers.notices import Unreadable, over_limit
from aaflow.operators.readers.options import LoadOptions, Split
from aaflow.operators.readers.sources import open_seekable

# pypdf warns on stderr of every oddity in a file; what matters here becomes a notice.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)

#: What the document information may hold, by pypdf's names; the dates become ISO 8601.
_FIELDS = (
    *("title", "author", "subject", "keywords", "creator", "producer"),
    *("creation_date", "modification_date"),
)

#: The end-of-file mark stands in the last bytes of a whole file; many writers add some of their own behind it.
_TAIL = 2048


def read_pdf(split: Split, options: LoadOptions) -> tuple[str, dict[str, str]]:
    """Text of all pages, an empty line between them, and the fields of the document information.

    Raises:
        Unreadable: empty, truncated, damaged, encrypted, or without a text layer.
        OSError: the file can't be read.
    """
    with open_seekable(split) as file:
        _check_whole(file)
        try:
            reader = PdfReader(file, strict=False)
            if reader.is_encrypted and not reader.decrypt(""):
                raise Unreadable("encrypted PDF; save it without its password")
            text = _pages(reader, options.max_record_bytes)
            fields = _fields(reader)
        except (Unreadable, PermissionError):
            raise
        except PdfDependencyError:
            raise Unreadable("encrypted PDF (AES); save it without encryption, or pip install cryptography") from None
        except Exception as error:  # a damaged file raises whatever its bytes lead pypdf into
            raise Unreadable(f"damaged PDF ({type(error).__name__}: {str(error)[:160]}); save it again") from None
    if not text.strip():
        raise Unreadable("no text in this PDF: its pages are pictures; run OCR on it first")
    return text, fields


def _check_whole(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise Unreadable("empty")
    file.seek(0)
    if b"%PDF-" not in file.read(1024):
        raise Unreadable("not a PDF: it does not begin with %PDF-")
    file.seek(max(0, size - _TAIL))
    if b"%%EOF" not in file.read(_TAIL):
        raise Unreadable("truncated PDF: its end is missing; copy or download it again")
    file.seek(0)


def _pages(reader: PdfReader, limit: int) -> str:
    texts: list[str] = []
    length = 0
    for page in reader.pages:
        # A font without a Unicode map yields halves of surrogate pairs, which no UTF-8 text holds.
        text = page.extract_text().encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
        length += len(text.encode())
        if length > limit:
            raise over_limit(limit, "its text")
        texts.append(text.strip())
    return "\n\n".join(text for text in texts if text)


def _fields(reader: PdfReader) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name in _FIELDS:
        try:
            value = getattr(reader.metadata, name, None)
            value = value.isoformat() if isinstance(value, datetime) else value
            clean = " ".join(str(value or "").encode("utf-8", "replace").decode().split())
        except Exception:  # a damaged field is no reason to lose the text
            continue
        if clean:
            fields[name] = clean
    return fields
