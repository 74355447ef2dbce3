"""Spool: the items of a rank on disk, for operators that must see all of them before they give the first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.ipc

from aaflow.operators.operator import Item
from aaflow.schema import NOTICES


class Head(NamedTuple):
    """An item without its batches: whether it has rows and notices says which batches of the files are its."""

    tranche: int
    partition: int
    rows: bool
    notices: bool
    last: bool


class Spool:
    """Items in two Arrow IPC files, written first and then read memory-mapped; a context manager.

    The files have no names, so that they go with their rank, however it ends.

    Args:
        folder: where the files are made.
        schema: of the rows.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._rows = _BatchFile(folder, schema)
        self._notices = _BatchFile(folder, NOTICES)
        self._heads: list[Head] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()
        self._notices.close()

    def add(self, item: Item) -> None:
        """Write an item."""
        rows, notices = bool(item.rows), bool(item.notices)
        if item.rows:
            self._rows.write(item.rows)
        if item.notices:
            self._notices.write(item.notices)
        self._heads.append(Head(item.tranche, item.partition, rows, notices, item.last))

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The batches of rows; nothing can be added any more."""
        return self._rows.read()

    def notices(self) -> Iterator[pa.RecordBatch]:
        """The batches of notices; nothing can be added any more."""
        return self._notices.read()

    def items(self) -> Iterator[Item]:
        """What was added, without empty batches."""
        rows, notices = self.rows(), self.notices()
        for head in self._heads:
            yield Item(
                head.tranche,
                head.partition,
                next(rows) if head.rows else None,
                next(notices) if head.notices else None,
                head.last,
            )


class _BatchFile:
    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._path = f"/proc/self/fd/{self._file.fileno()}"
        self._sink = pa.OSFile(self._path, "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)
        self._reader: pa.ipc.RecordBatchFileReader | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def read(self) -> Iterator[pa.RecordBatch]:
        if self._reader is None:
            self._writer.close()
            self._sink.close()
            self._reader = pa.ipc.open_file(pa.memory_map(self._path))
        reader = self._reader
        return (reader.get_batch(number) for number in range(reader.num_record_batches))

    def close(self) -> None:
        self._sink.close()
        self._file.close()
        self._reader = None
