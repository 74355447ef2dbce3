from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from aaflow.errors import IndexCorrupt, VectorIndexError
from aaflow.hashing import partition_of
from aaflow.index import IndexSpec, Stage, Writer, build_backend, compact, open_index

ROWS, DIMENSION, PARTITIONS = 6000, 32, 3


def clustered(seed, centres, rows):
    random = np.random.default_rng(seed)
    values = centres[random.integers(0, len(centres), rows)] + 0.25 * random.standard_normal((rows, DIMENSION)) / 3
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def table_of(vectors, spec, version=0):
    rows = len(vectors)
    names = pa.array([f"{n}.txt" for n in range(rows)])
    hashes = pa.array([version.to_bytes(32, "big")] * rows, pa.binary(32))
    zero = pa.array(np.zeros(rows, np.int64))
    schema = spec.rows()
    columns = {
        "chunk_id": pa.array([(n * 2 + version).to_bytes(16, "big") for n in range(rows)], pa.binary(16)),
        "doc_id": names,
        "partition": partition_of(names, PARTITIONS),
        "source": names,
        "record": zero,
        "ordinal": zero.cast(pa.int32()),
        "start": zero,
        "end": zero,
        "text": names,
        "content_hash": hashes,
        "doc_hash": hashes,
        "source_type": pa.repeat("txt", rows),
        "scope": pa.repeat("default", rows),
        "metadata": pa.array([{"title": str(n % 2)} for n in range(rows)], schema.field("metadata").type),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=schema.field("vector").type),
    }
    return pa.table(columns, schema=schema)


def ingest(path, spec, table):
    sources = table.select(["source"]).append_column("root", pa.repeat("file:///r", len(table)))
    for name in ("size", "mtime_ns"):
        sources = sources.append_column(name, pa.repeat(pa.scalar(1, pa.int64()), len(table)))
    with Writer.acquire(path, spec, owner="a test") as writer:
        stage = Stage(path, writer.epoch, "ab")
        for partition in range(PARTITIONS):
            mine = pa.array(table["partition"].to_numpy() == partition)
            stage.commit(0, partition, table.filter(mine), None)
        writer.publish("ab", sources=sources)


def recall(found, exact, k):
    pairs = [set(zip(t["query_id"].to_pylist(), t["chunk_id"].to_pylist(), strict=True)) for t in (found, exact)]
    return len(pairs[0] & pairs[1]) / len(pairs[1])


@pytest.fixture(params=["ivf", "hnsw"])
def kind(request):
    return request.param


@pytest.fixture(params=["cosine", "l2"])
def built(request, tmp_path, kind):
    spec = IndexSpec(DIMENSION, {"model": "test"}, {}, {}, partitions=PARTITIONS, metric=request.param)
    centres = np.random.default_rng(1).standard_normal((100, DIMENSION)) / 3
    path = tmp_path / "index"
    ingest(path, spec, table_of(clustered(2, centres, ROWS), spec))
    told = []
    assert build_backend(path, kind, advance=lambda done, whole: told.append(done / whole)) == PARTITIONS
    assert len(told) == PARTITIONS
    assert told == sorted(told)
    assert told[-1] == 1
    return path, spec, centres


def test_recall_is_95_percent_and_scores_are_exact_with_and_without_tombstones(built, kind):
    path, spec, centres = built
    queries = clustered(3, centres, 50)
    with open_index(path) as index:
        found, exact = index.search(queries, 10, backend=kind), index.search(queries, 10)
        assert recall(found, exact, 10) >= 0.95
        scores = dict(
            zip(
                zip(exact["query_id"].to_pylist(), exact["chunk_id"].to_pylist(), strict=True),
                exact["score"].to_pylist(),
                strict=True,
            )
        )
        for key, score in zip(
            zip(found["query_id"].to_pylist(), found["chunk_id"].to_pylist(), strict=True),
            found["score"].to_pylist(),
            strict=True,
        ):
            assert scores.get(key, score) == score
        narrow = {"title": "1"}
        assert (
            recall(index.search(queries, 10, where=narrow, backend=kind), index.search(queries, 10, where=narrow), 10)
            >= 0.95
        )
        assert index.verify() == []
    # Every third document leaves: the segments stay, so the index does too.
    gone = pa.table({"root": ["file:///r"] * (ROWS // 3), "source": [f"{n}.txt" for n in range(0, ROWS, 3)]})
    with Writer.acquire(path, spec, owner="a test") as writer:
        nothing = pa.table(
            {
                "root": pa.array([], pa.string()),
                "source": pa.array([], pa.string()),
                "size": pa.array([], pa.int64()),
                "mtime_ns": pa.array([], pa.int64()),
            }
        )
        assert writer.publish("cd", sources=nothing, pruned=gone).removed == ROWS // 3
    assert build_backend(path, kind) == 0
    with open_index(path) as index:
        found, exact = index.search(queries, 10, backend=kind), index.search(queries, 10)
        assert recall(found, exact, 10) >= 0.95
        assert not {f"{n}.txt" for n in range(0, ROWS, 3)} & set(found["source"].to_pylist())
        assert found.num_rows == 500
    compact(path)
    with (
        open_index(path) as index,
        pytest.raises(VectorIndexError, match=f"no {kind} index over its current generation"),
    ):
        index.search(queries, 10, backend=kind)
    assert list((path / "backends").rglob("*.faiss")) == []
    assert build_backend(path, kind) == PARTITIONS
    with open_index(path) as index:
        assert recall(index.search(queries, 10, backend=kind), exact, 10) >= 0.95


def test_only_partitions_that_changed_are_built_again_and_to_the_same_bytes(tmp_path, kind):
    spec = IndexSpec(DIMENSION, {"model": "test"}, {}, {}, partitions=PARTITIONS)
    centres = np.random.default_rng(1).standard_normal((100, DIMENSION)) / 3
    table = table_of(clustered(2, centres, 4000), spec)
    path = tmp_path / "index"
    ingest(path, spec, table)
    build_backend(path, kind)
    files = {file.name: file.read_bytes() for file in (path / "backends" / kind).iterdir()}
    one = next(iter(files))
    (path / "backends" / kind / one).unlink()
    assert build_backend(path, kind) == 1
    assert {file.name: file.read_bytes() for file in (path / "backends" / kind).iterdir()} == files
    (path / "backends" / kind / one).write_bytes(b"damaged")
    with open_index(path) as index, pytest.raises(IndexCorrupt, match=one):
        index.search(clustered(3, centres, 1), 3, backend=kind)


def test_small_partitions_are_searched_exactly(run, corpus, kit, kind):
    run(corpus)
    assert build_backend(run.path, kind) == 0
    query = [kit.vector("passage 3 0", 8)]
    with open_index(run.path) as index:
        assert index.search(query, 5, backend=kind).equals(index.search(query, 5))


def test_an_unknown_kind_is_refused(run, corpus):
    run(corpus)
    with pytest.raises(VectorIndexError, match="use ivf, hnsw"):
        build_backend(run.path, "pq")
