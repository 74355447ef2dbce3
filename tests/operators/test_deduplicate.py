"""``deduplicate`` against plain Python, for any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.dataplane.communicator import Communicator, SerialCommunicator
from aaflow.errors import WorkflowError
from aaflow.operators import deduplicate
from aaflow.operators.deduplicate import Deduplicate
from aaflow.operators.operator import Item
from aaflow.workflow import Workflow

DOCUMENTS, CHUNKS = schema.documents(), schema.chunks()
Row = tuple[str, int]  # document, content


def hash_of(content: int) -> bytes:
    return hashlib.sha256(str(content).encode()).digest()


def documents(rows: Sequence[Row]) -> pa.RecordBatch:
    plain = {"partition": 0, "record": 0, "text": "t", "source_type": "txt", "scope": "", "metadata": {}}
    full = [{**plain, "doc_id": name, "source": name, "content_hash": hash_of(content)} for name, content in rows]
    return pa.RecordBatch.from_pylist(full, DOCUMENTS)


def chunks(rows: Sequence[tuple[str, int, int]]) -> pa.RecordBatch:
    """Chunks (document, ordinal, content)."""
    plain = {
        "chunk_id": b"c" * 16, "partition": 0, "record": 0, "start": 0, "end": 1, "text": "t", "doc_hash": b"d" * 32,
        "source_type": "txt", "scope": "", "metadata": {},
    }  # fmt: skip
    full = [
        {**plain, "doc_id": name, "source": name, "ordinal": ordinal, "content_hash": hash_of(content)}
        for name, ordinal, content in rows
    ]
    return pa.RecordBatch.from_pylist(full, CHUNKS)


def notices(kind: str, name: str, reason: str = "") -> pa.RecordBatch:
    row = {"kind": kind, "doc_id": name, "partition": 0, "source": name, "record": 0, "reason": reason}
    return pa.RecordBatch.from_pylist([row], schema.NOTICES)


def told(items: Sequence[Item]) -> list[tuple[str, str]]:
    rows = [row for item in items if item.notices is not None for row in item.notices.to_pylist()]
    return [(row["doc_id"], row["reason"]) for row in rows if row["kind"] == "duplicate"]


def names(items: Sequence[Item], *columns: str) -> list[Any]:
    rows = [row for item in items if item.rows is not None for row in item.rows.to_pylist()]
    return [tuple(row[column] for column in columns) if len(columns) > 1 else row[columns[0]] for row in rows]


class Index:
    """Documents that an index holds."""

    def __init__(self, rows: Sequence[Row], read: Sequence[str] = ()) -> None:
        self._table = pa.Table.from_batches([documents(rows)])
        self._read = pa.array(read, pa.string())
        self.asked: list[tuple[list[str], list[str]]] = []

    def __len__(self) -> int:
        return self._table.num_rows

    def rows(self, kept: pa.Array, unreadable: pa.Array) -> Iterator[pa.Table]:
        self.asked.append((kept.to_pylist(), unreadable.to_pylist()))
        leaving = self._read.filter(pc.invert(pc.is_in(self._read, unreadable)))
        source = self._table["source"]
        yield self._table.filter(pc.or_(pc.invert(pc.is_in(source, leaving)), pc.is_in(source, kept)))


def run(tmp_path: Path, items: Sequence[Item], held: Any = None, rows: pa.Schema = DOCUMENTS) -> list[Item]:
    return list(Deduplicate(rows, tmp_path / "spool", SerialCommunicator(), [0], held)(iter(items)))


small = st.lists(
    st.tuples(st.integers(0, 30).map("d{:02}".format), st.integers(0, 6)), max_size=20, unique_by=lambda row: row[0]
)


@given(small, st.integers(1, 3), st.sampled_from([1, 4, 1 << 22]), st.data())
def test_the_lowest_document_of_a_content_stays_on_any_ranks(
    tmp_path_factory: pytest.TempPathFactory, on_ranks: Any, rows: list[Row], ranks: int, each: int, data: Any
) -> None:
    dealt = data.draw(st.lists(st.integers(0, ranks - 1), min_size=len(rows), max_size=len(rows)))
    size = data.draw(st.integers(1, 5))
    folder = tmp_path_factory.mktemp("spool")

    def work(communicator: Communicator) -> tuple[list[Item], list[Item]]:
        mine = [row for row, rank in zip(rows, dealt, strict=True) if rank == communicator.rank]
        items = [Item(0, -1, documents(mine[at : at + size])) for at in range(0, len(mine), size)]
        items.append(Item(0, -1, last=True))
        return items, list(Deduplicate(DOCUMENTS, folder, communicator, [0])(iter(items)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deduplicate, "ROUND_ROWS", each)
        done = on_ranks(ranks, work)
    first = {content: min(name for name, other in rows if other == content) for _, content in rows}
    for came, got in done:
        assert [(item.tranche, item.partition, item.last) for item in got] == [
            (item.tranche, item.partition, item.last) for item in came
        ]
        assert names(got, "doc_id") == [name for name in names(came, "doc_id") if name in first.values()]
        lost = [name for name in names(came, "doc_id") if name not in first.values()]
        content = dict(rows)
        assert told(got) == [(name, f"duplicate of {first[content[name]]}") for name in lost]
    assert list(folder.iterdir()) == []


def test_units_keep_their_rows_notices_and_ends(tmp_path: Path) -> None:
    kept = notices("kept", "k")
    items = [
        Item(0, 3, documents([("b", 1), ("c", 2)]), kept),
        Item(0, 3, last=True),
        Item(0, -1, documents([])),
        Item(1, 5, documents([("a", 1)])),
        Item(1, 5, notices=kept, last=True),
    ]
    given = run(tmp_path, items)
    assert [(item.tranche, item.partition, item.last) for item in given] == [
        (0, 3, False), (0, 3, True), (0, -1, False), (1, 5, False), (1, 5, True),
    ]  # fmt: skip
    assert names(given, "doc_id") == ["c", "a"]
    assert given[0].notices is not None
    assert given[0].notices["doc_id"].to_pylist() == ["k", "b"]
    assert told(given) == [("b", "duplicate of a")]


def test_of_one_document_id_the_lowest_record_stays(tmp_path: Path) -> None:
    table = pa.Table.from_batches([documents([("x", 1)] * 3)])
    (batch,) = table.set_column(3, DOCUMENTS.field("record"), pa.array([7, 2, 9])).to_batches()
    assert names(run(tmp_path, [Item(0, 0, batch)]), "record") == [2]


def test_chunks_go_by_document_and_ordinal_and_a_document_gets_one_notice(tmp_path: Path) -> None:
    items = [
        Item(0, 0, chunks([("b", 0, 1), ("b", 1, 2), ("b", 2, 5)])),
        Item(0, 0, chunks([("b", 3, 3), ("a", 0, 9), ("a", 1, 2), ("a", 2, 9), ("c", 0, 1), ("c", 1, 3)])),
    ]
    given = run(tmp_path, items, rows=CHUNKS)
    assert names(given, "doc_id", "ordinal") == [("b", 0), ("b", 2), ("b", 3), ("a", 0), ("a", 1)]
    assert told(given) == [
        ("b", "1 of its chunks are duplicates, the first of a"),
        ("a", "1 of its chunks are duplicates, the first of a"),
        ("c", "2 of its chunks are duplicates, the first of b"),
    ]


def test_what_the_index_holds_wins_unless_it_is_read_again_and_not_kept(tmp_path: Path) -> None:
    items = [Item(0, 0, documents([("a", 1), ("b", 2), ("c", 3), ("y", 9)]), notices("kept", "x"))]
    index = Index([("z", 1), ("y", 2), ("x", 3)], read=["y", "x"])
    given = run(tmp_path, items, index)
    assert index.asked == [(["x"], [])]
    assert names(given, "doc_id") == ["b", "y"]
    assert told(given) == [("a", "duplicate of z"), ("c", "duplicate of x")]


def test_a_source_that_cannot_be_read_stays_as_it_was_and_its_new_rows_do_not_count(tmp_path: Path) -> None:
    items = [
        Item(0, 0, documents([("a", 1), ("b", 1), ("c", 2)])),
        Item(0, 0, notices=notices("skipped", "a", "unreadable: gone")),
    ]
    index = Index([("a", 2)], read=["a"])
    given = run(tmp_path, items, index)
    assert names(given, "doc_id") == ["a", "b"]  # the rows of "a" are dropped when the run is published
    assert told(given) == [("c", "duplicate of a")]


def test_what_is_put_by_has_no_name_that_a_killed_rank_would_leave_behind(tmp_path: Path) -> None:
    seen = []

    def items() -> Iterator[Item]:
        yield Item(0, 0, documents([("a", 1)]))
        seen.append(list((tmp_path / "spool").iterdir()))

    given = Deduplicate(DOCUMENTS, tmp_path / "spool", SerialCommunicator(), [0])(items())
    assert next(given).rows is not None
    seen.append(list((tmp_path / "spool").iterdir()))
    assert seen == [[], []]


def test_only_documents_and_chunks_are_deduplicated() -> None:
    with pytest.raises(WorkflowError, match="'deduplicate' takes documents or chunks; these rows lack"):
        Workflow().queries(["q"]).deduplicate()
