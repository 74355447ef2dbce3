"""Documents of changed files that the index holds as they are: they need no new vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.hashing import sha256_rows
from aaflow.index import Index
from aaflow.operators.operator import Item
from aaflow.schema import NOTICES

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class KnownDocuments:
    """128-bit keys of (document id, content hash, source, record) that an index holds, sorted; uint64 [documents, 2].

    Source and record are part of it: a record that moved in its file keeps its id where a column names it, but its rows
    say where it lay, so they are written again.
    """

    keys: Keys

    @classmethod
    def of(cls, index: Index) -> KnownDocuments:
        """The documents of an index's generation, but for those that lost chunks as duplicates.

        Those chunks may have to come back, so such a document is made anew.
        """
        parts = [index.documents(partition) for partition in range(index.spec.partitions)]
        documents, notices = pa.concat_tables(parts), index.notices()
        lost = notices["doc_id"].filter(pc.equal(notices["kind"], "duplicate")).combine_chunks()
        return cls.of_documents(documents.filter(pc.invert(pc.is_in(documents["doc_id"], lost))))

    @classmethod
    def of_documents(cls, documents: pa.Table) -> KnownDocuments:
        """Those of rows with doc_id, doc_hash, source and record."""
        table = documents.combine_chunks()
        keys = _keys([table[name].combine_chunks() for name in ("doc_id", "doc_hash", "source", "record")])
        return cls(keys[np.argsort(keys[:, 0], kind="stable")])

    def holds(self, rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which documents of a batch are known as they are; bool [rows]."""
        asked = _keys([rows[name] for name in ("doc_id", "content_hash", "source", "record")])
        at = np.minimum(np.searchsorted(self.keys[:, 0], asked[:, 0]), len(self.keys) - 1)
        return np.asarray((self.keys[at] == asked).all(axis=1))


class Unchanged:
    """Turns documents that the index holds as they are into ``kept`` notices."""

    def __init__(self, known: KnownDocuments) -> None:
        self._known = known

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        for item in items:
            if item.rows is None or not item.rows.num_rows:
                yield item
                continue
            known = self._known.holds(item.rows)
            if not known.any():
                yield item
                continue
            kept = _kept(item.rows.filter(pa.array(known)))
            notices = kept if item.notices is None else _joined(item.notices, kept)
            yield replace(item, rows=item.rows.filter(pa.array(~known)), notices=notices)


def _keys(columns: list[pa.Array]) -> Keys:
    hashes = sha256_rows(columns, 16)
    data = np.frombuffer(hashes.buffers()[1], np.uint64)
    return data[hashes.offset * 2 : (hashes.offset + len(hashes)) * 2].reshape(-1, 2)


def _kept(rows: pa.RecordBatch) -> pa.RecordBatch:
    count = rows.num_rows
    columns = {name: rows[name] for name in ("doc_id", "partition", "source", "record")}
    columns |= {"kind": pa.repeat("kept", count), "reason": pa.repeat("", count)}
    return pa.record_batch([columns[name] for name in NOTICES.names], schema=NOTICES)


def _joined(first: pa.RecordBatch, second: pa.RecordBatch) -> pa.RecordBatch:
    return pa.Table.from_batches([first, second], NOTICES).combine_chunks().to_batches()[0]
