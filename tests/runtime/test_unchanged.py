from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.operators.operator import Item
from aaflow.runtime.unchanged import KnownDocuments, Unchanged

Document = tuple[int, int, int, int]  # numbers that stand for id, content, source and record


def documents(*rows: Document) -> pa.RecordBatch:
    columns = {
        "doc_id": [f"d{row[0]}" for row in rows],
        "partition": [row[0] % 4 for row in rows],
        "source": [f"s{row[2]}.jsonl" for row in rows],
        "record": [row[3] for row in rows],
        "text": ["text"] * len(rows),
        "content_hash": [bytes([row[1]]) * 32 for row in rows],
        "source_type": ["jsonl"] * len(rows),
        "scope": [""] * len(rows),
        "metadata": [{"title": None}] * len(rows),
    }
    return pa.RecordBatch.from_pydict(columns, schema=schema.documents())


def known(*rows: Document) -> KnownDocuments:
    batch = documents(*rows)
    columns = {name: batch[name] for name in ("doc_id", "source", "record")}
    return KnownDocuments.of_documents(pa.table({**columns, "doc_hash": batch["content_hash"]}))


document = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1), st.integers(0, 2))


@given(st.lists(document, min_size=1, max_size=12), st.lists(document, max_size=12))
def test_a_document_is_known_when_id_content_source_and_place_all_are(
    held: list[Document], asked: list[Document]
) -> None:
    assert known(*held).holds(documents(*asked)).tolist() == [row in held for row in asked]


@given(st.lists(document, min_size=1, max_size=8), st.lists(document, max_size=8))
def test_known_documents_become_notices_and_the_others_go_on(held: list[Document], asked: list[Document]) -> None:
    item = Item(2, 1, documents(*asked), last=True)
    [out] = Unchanged(known(*held))(iter([item]))
    kept = [] if out.notices is None else out.notices.to_pylist()
    assert [(row["doc_id"], row["source"], row["record"]) for row in kept] == [
        (f"d{row[0]}", f"s{row[2]}.jsonl", row[3]) for row in asked if row in held
    ]
    assert {row["kind"] for row in kept} <= {"kept"}
    assert out.rows is not None
    assert out.rows.equals(documents(*(row for row in asked if row not in held)))
    assert (out.tranche, out.partition, out.last) == (2, 1, True)


def test_notices_that_were_there_stay() -> None:
    skipped = pa.RecordBatch.from_pylist(
        [{"kind": "skipped", "doc_id": "x", "partition": 1, "source": "x", "record": 0, "reason": "binary"}],
        schema=schema.NOTICES,
    )
    [out] = Unchanged(known((1, 1, 1, 1)))(iter([Item(0, 1, documents((1, 1, 1, 1)), skipped)]))
    assert out.notices is not None
    assert out.notices["kind"].to_pylist() == ["skipped", "kept"]


def test_marks_without_rows_pass() -> None:
    items = [Item(0, 1, last=True), Item(0, -1, documents(), last=True)]
    assert list(Unchanged(known((1, 1, 1, 1)))(iter(items))) == items
