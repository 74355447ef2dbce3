from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from aaflow import schema
from aaflow.hashing import sha256
from aaflow.index import IndexSpec, Stage, Writer, open_index
from aaflow.operators.operator import Item
from aaflow.operators.upsert import Upsert

SPEC = IndexSpec(4, partitions=3)


def rows(partition: int, *numbers: int) -> pa.RecordBatch:
    count = len(numbers)
    texts = pa.array([f"text {n}" for n in numbers], pa.string())
    vectors = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
    columns = {
        "chunk_id": pa.array([n.to_bytes(16, "big") for n in numbers], pa.binary(16)),
        "doc_id": pa.array([f"d{n}" for n in numbers]),
        "partition": pa.repeat(pa.scalar(partition, pa.int32()), count),
        "source": pa.repeat("a.txt", count),
        "record": pa.repeat(pa.scalar(0, pa.int64()), count),
        "ordinal": pa.repeat(pa.scalar(0, pa.int32()), count),
        "start": pa.repeat(pa.scalar(0, pa.int64()), count),
        "end": pa.repeat(pa.scalar(6, pa.int64()), count),
        "text": texts,
        "content_hash": sha256(texts),
        "doc_hash": sha256(texts),
        "source_type": pa.repeat("txt", count),
        "scope": pa.repeat("", count),
        "metadata": pa.array([{"title": None}] * count, schema.metadata_type()),
        "vector": pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), type=schema.vector_field(4).type),
    }
    return pa.RecordBatch.from_arrays([columns[f.name] for f in SPEC.rows()], schema=SPEC.rows())


def skipped(partition: int) -> pa.RecordBatch:
    told = {"kind": "skipped", "doc_id": "bad", "partition": partition, "source": "b.txt", "record": 0, "reason": "bad"}
    return pa.RecordBatch.from_pylist([told], schema=schema.NOTICES)


def test_a_unit_is_durable_when_its_last_item_has_passed(tmp_path: Path) -> None:
    with Writer.acquire(tmp_path / "index", SPEC, owner="test") as writer:
        stage = Stage(writer.path, writer.epoch, "ab")
        out = Upsert(stage)(
            iter(
                [
                    Item(0, 1, rows(1, 1, 2)),
                    Item(0, 2, rows(2, 9)),  # units may come mixed
                    Item(0, 1, rows(1, 3), skipped(1)),
                    Item(0, 1, last=True),
                    Item(0, 2, last=True),
                    Item(0, 0, last=True),
                ]
            )
        )
        first = next(out)
        assert stage.committed() == {(0, 1)}
        assert (first.partition, first.rows.num_rows if first.rows else 0) == (1, 2)
        given = [first, *out]
        assert sum(item.rows.num_rows for item in given if item.rows) == 4
        assert stage.committed() == {(0, 0), (0, 1), (0, 2)}
        sources = pa.table({"root": ["r"] * 2, "source": ["a.txt", "b.txt"], "size": [1, 1], "mtime_ns": [0, 0]})
        publication = writer.publish("ab", sources=sources, units={(0, 0), (0, 1), (0, 2)})
    assert publication.notices["reason"].to_pylist() == ["bad"]
    with open_index(tmp_path / "index") as index:
        assert index.info().chunks == 4
        assert index.manifest.rows() == [0, 3, 1]


def test_units_that_never_end_are_not_committed(tmp_path: Path) -> None:
    with Writer.acquire(tmp_path / "index", SPEC, owner="test") as writer:
        stage = Stage(writer.path, writer.epoch, "ab")
        assert list(Upsert(stage)(iter([Item(0, 1, rows(1, 1))]))) == []
        assert stage.committed() == set()
