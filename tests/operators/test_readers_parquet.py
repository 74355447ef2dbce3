"""Parquet files: typed columns, ranges of rows, bounded memory, damage."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordfiles import load, reasons, texts

from aaflow.operators.listing import list_inputs
from aaflow.operators.readers import LoadOptions, read, splits
from aaflow.operators.readers import parquet as parquet_module

ANY_TEMPORARY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_parquet_rows_are_documents_of_typed_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "body": pa.array(["a", None, "c"], pa.large_string()),
            "id": pa.array([10, 11, 12], pa.int32()),
            "n": [1.0, 2.0, 2.5],
            "day": [datetime(2024, 1, 2), None, datetime(2024, 1, 3)],
            "title": pa.array(["T", "T", "U"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows, notices = load(tmp_path / "a.parquet", id_column="id", metadata={"n": "int64", "day": "date"})
    assert [(r["doc_id"], r["record"], r["text"], r["metadata"]) for r in rows] == [
        ("a.parquet#10", 0, "a", {"day": date(2024, 1, 2), "n": 1, "title": "T"}),
        ("a.parquet#12", 2, "c", {"day": date(2024, 1, 3), "n": None, "title": "U"}),
    ]
    assert [(n["kind"], n["doc_id"]) for n in notices] == [("skipped", "a.parquet#11"), ("conflict", "a.parquet#12")]


@ANY_TEMPORARY
@given(rows=st.integers(1, 60), group=st.integers(1, 20), split_bytes=st.integers(1, 3000))
def test_parquet_gives_the_same_documents_for_any_split(
    tmp_path: Path, rows: int, group: int, split_bytes: int
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(rows)]}), path, row_group_size=group)
    assert texts(path, split_bytes=split_bytes) == {f"a.parquet#{i}": f"row {i}" for i in range(rows)}


#: Outlives all that is allocated in it.
POOL = pa.proxy_memory_pool(pa.default_memory_pool())


def test_rows_of_long_texts_are_held_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long, usual, options = 1 << 20, pa.default_memory_pool(), LoadOptions()
    table = pa.table({"text": [f"{i} ".ljust(long, "x") for i in range(100)], "other": range(100)})
    pq.write_table(table, tmp_path / "a.parquet", write_batch_size=2, use_dictionary=False)  # pages of few rows
    monkeypatch.setattr(parquet_module, "_READ_BYTES", 4 * long)
    pa.set_memory_pool(POOL)
    try:
        for split in splits(list_inputs([str(tmp_path)], options).table):
            rows = sum(batch.num_rows for batch, _ in read(split, options) if batch is not None)
    finally:
        pa.set_memory_pool(usual)
    assert rows == 100
    assert POOL.max_memory() < 40 * long


def test_a_damaged_parquet_file_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 100] * 50}), path)
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[:-20], b"\0" * 200 + whole[200:]):
        path.write_bytes(data)
        assert set(reasons(path, split_bytes=100)) == {"a.parquet"}
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert "no records" in reasons(path)["a.parquet"]
