"""The ``load`` operator: items by unit of commit, in order, each with its end."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aaflow.hashing import partition_of_id
from aaflow.operators.listing import cut_tranches, list_inputs, split_sizes
from aaflow.operators.load import Load, LoadOptions
from aaflow.operators.operator import Item
from aaflow.schema import documents


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for i in range(40):
        (tmp_path / f"doc{i:02d}.txt").write_text(f"document {i} " * 20)
    (tmp_path / "empty.txt").write_text("")
    for name in ("x", "y"):
        lines = [json.dumps({"text": f"{name} {i}"}) for i in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(["{bad", *lines]))
    return tmp_path


def run(folder: Path, tranche_bytes: int = 3000, **options: Any) -> list[Item]:
    opts = LoadOptions(partitions=4, **options)
    listing = list_inputs([str(folder)], opts)
    return list(Load(opts, cut_tranches(listing.table, tranche_bytes))(iter(())))


def test_units_come_in_order_and_each_ends_once(corpus: Path) -> None:
    items = run(corpus, split_bytes=500)
    # Partition -1 is the last of a tranche.
    units = [(item.tranche, item.partition % 5) for item in items]
    assert units == sorted(units)
    ends = [(item.tranche, item.partition) for item in items if item.last]
    assert len(ends) == len(set(ends))
    assert {(i.tranche, i.partition) for i in items} == set(ends)
    assert {tranche for tranche, partition in ends if partition == -1} == {item.tranche for item in items}
    for end in (item for item in items if item.last):
        assert end.rows is None
        assert end.notices is None


def test_every_document_is_there_once_in_the_partition_that_owns_it(corpus: Path) -> None:
    items = run(corpus, split_bytes=500)
    rows = [(item, row) for item in items if item.rows is not None for row in item.rows.to_pylist()]
    assert len(rows) == len({row["doc_id"] for _, row in rows}) == 440
    for item, row in rows:
        assert row["partition"] == partition_of_id(row["doc_id"], 4)
        assert item.partition == (row["partition"] if row["source_type"] == "txt" else -1)
    notices = [n for item in items if item.notices is not None for n in item.notices.to_pylist()]
    assert sorted(n["doc_id"] for n in notices) == ["empty.txt", "x.jsonl#0", "y.jsonl#0"]


@pytest.mark.parametrize("options", [{"split_bytes": 77}, {"tranche_bytes": 1 << 20}, {"split_bytes": 1000}])
def test_the_documents_of_a_unit_depend_on_the_tranches_alone(corpus: Path, options: dict[str, int]) -> None:
    def content(items: list[Item]) -> pa.Table:
        batches = [item.rows for item in items if item.rows is not None]
        return pa.Table.from_batches(batches, schema=documents()).sort_by("doc_id")

    assert content(run(corpus, **options)).equals(content(run(corpus)))


def test_small_files_share_batches_and_big_ones_are_cut(tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text("small")
        (tmp_path / f"{i}.json").write_text('{"text": "small"}')
    items = run(tmp_path, tranche_bytes=1 << 30)
    batches = [item.rows for item in items if item.rows is not None]
    assert len(batches) == 5, "one for each partition, one for all the records"
    (tmp_path / "big.jsonl").write_text("\n".join(json.dumps({"text": "x" * 1000}) for _ in range(9000)))
    batches = [item.rows for item in run(tmp_path, tranche_bytes=1 << 30) if item.rows is not None]
    assert max(batch.num_rows for batch in batches) <= 4096
    assert max(batch.nbytes for batch in batches) < 5 << 20


def test_a_flood_of_bad_files_is_handed_on_in_pieces(tmp_path: Path) -> None:
    for i in range(3000):
        (tmp_path / f"{i}.txt").write_bytes(b"")
        if i % 2:
            (tmp_path / f"{i}.json").write_bytes(b"{")
    sizes = [item.notices.num_rows for item in run(tmp_path, 1 << 30) if item.notices is not None]
    assert sum(sizes) == 4500
    assert max(sizes) <= 1000


def test_closing_the_stream_early_reads_no_further(corpus: Path) -> None:
    opts = LoadOptions(partitions=4)
    stream = Load(opts, list_inputs([str(corpus)], opts).table)(iter(()))
    assert isinstance(stream, Generator)
    first = next(stream)
    for path in corpus.iterdir():
        path.unlink()
    assert first.rows is not None
    stream.close()
    assert list(stream) == []


def test_it_tells_how_many_bytes_of_its_input_are_done(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 100 * (number + 1))
    options = LoadOptions(partitions=4)
    load = Load(options, list_inputs([str(tmp_path)], options).table)
    assert (load.read, load.bytes) == (0, 5500)
    seen = [load.read for _ in load(iter(()))]
    assert seen == sorted(seen)
    assert 0 < seen[1] < 5500
    assert load.read == 5500


def test_the_bytes_of_a_cut_file_are_those_of_its_pieces_whichever_a_rank_reads(tmp_path: Path) -> None:
    options = LoadOptions(split_bytes=500)
    pq.write_table(
        pa.table({"text": [f"row {number}" for number in range(400)]}), tmp_path / "a.parquet", row_group_size=100
    )
    table = list_inputs([str(tmp_path)], options).table
    assert table.num_rows == 4
    sizes = split_sizes(table)
    loads = [Load(options, table.slice(at, 1), sizes[at : at + 1]) for at in range(4)]
    for load in loads:
        list(load(iter(())))
    assert sum(load.bytes for load in loads) == sum(load.read for load in loads)
    assert sum(load.bytes for load in loads) <= (tmp_path / "a.parquet").stat().st_size
