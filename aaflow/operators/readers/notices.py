"""Notices: what could not be read and why, in words a person can act on."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from aaflow.hashing import partition_of_id
from aaflow.schema import NOTICES

#: More notices of one split than this are only counted: a file of rubbish must not fill memory and report.
RECORDS_LISTED = 10_000
#: Notices that are held without being handed on; about so many.
NOTICES_HELD = 1000


class Notices:
    """Collects rows of :data:`aaflow.schema.NOTICES`; :meth:`take` hands them over."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._of_split: int | None = None
        self._rows: list[tuple[str, str, int, str, int, str]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, reason: str, source: str, *, record: int = 0, doc_id: str | None = None, kind: str = "skipped"
    ) -> None:
        """One notice; a document without an id of its own goes by its ``source``."""
        if self._of_split is not None:
            self._of_split += 1
            if self._of_split > RECORDS_LISTED:
                return
        name = source if doc_id is None else doc_id
        self._rows.append((kind, name, partition_of_id(name, self._partitions), source, record, reason))

    @contextmanager
    def of_split(self, source: str, record: int) -> Iterator[None]:
        """Inside, no more than ``RECORDS_LISTED`` notices are kept; one at the end says how many are missing."""
        self._of_split = 0
        try:
            yield
        finally:
            more, self._of_split = self._of_split - RECORDS_LISTED, None
        if more > 0:
            self.add(f"{more} more notices of this file are not listed; is this its format?", source, record=record)

    def take(self) -> pa.RecordBatch | None:
        """What was collected since the last call, or None."""
        if not self._rows:
            return None
        columns = [pa.array(values, f.type) for values, f in zip(zip(*self._rows, strict=True), NOTICES, strict=True)]
        self._rows = []
        return pa.RecordBatch.from_arrays(columns, schema=NOTICES)


#: A reason that begins so is of the moment: what the index holds of the file stays, and the next run tries it again.
UNREADABLE = "unreadable:"


#: The reason for a file of records that can be read and holds none.
NO_RECORDS = "empty: it has no records"


class Unreadable(Exception):
    """Ends the reading of a file; its text is the reason of the notice."""


def reason_of(error: Exception, compression: str = "") -> str:
    """Why a file could not be read.

    Args:
        error: what reading raised.
        compression: of the file: most errors of a compressed file mean that it is damaged.
    """
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return invalid_text(error)
    if isinstance(error, PermissionError):
        return f"{UNREADABLE} permission denied; make it readable for the user who runs this"
    if isinstance(error, FileNotFoundError):
        return f"{UNREADABLE} it vanished after it was listed"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "link loop: the link leads back to itself"
    if isinstance(error, OSError) and error.errno:
        return f"{UNREADABLE} {os.strerror(error.errno)}"
    if compression or isinstance(error, (zlib.error, EOFError)):
        return f"damaged {compression} data ({_first_line(error)}); compress it again or unpack what is left of it"
    return f"can't be read: {_first_line(error)}"


def over_limit(limit: int, what: str = "the document") -> Unreadable:
    """The reason for a document or record that is too long to be held."""
    return Unreadable(f"{what} is longer than max_record_bytes ({limit}); raise that limit or cut the file up")


def invalid_text(error: UnicodeDecodeError, offset: int = 0) -> str:
    """The reason for bytes that are not in the encoding; ``offset`` is where the decoded bytes begin in the file."""
    at = offset + error.start
    hint = "if it has another encoding, name it with --encoding"
    if error.object[:2] in (b"\xff\xfe", b"\xfe\xff"):
        hint = "it looks like UTF-16: read it with --encoding utf-16"
    return f"not valid {error.encoding.upper()} at byte {at}; {hint}"


def shorten(value: object, limit: int = 80) -> str:
    """A value as it is shown in a reason."""
    shown = repr(value)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
