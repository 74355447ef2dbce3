from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aaflow.errors import VectorIndexError
from aaflow.hashing import partition_of_id
from aaflow.index import IndexSpec, compact, deal_partitions, merge_hits, open_index
from aaflow.index.exact import search_block
from aaflow.index.segment import Block
from aaflow.schema import hits

METRICS = ["cosine", "ip", "l2"]


def block_of(vectors, ids=None, first=0):
    rows = len(vectors)
    ids = np.arange(rows) if ids is None else ids
    batch = pa.RecordBatch.from_pydict({"chunk_id": pa.array([int(i).to_bytes(16, "big") for i in ids], pa.binary(16))})
    return Block(0, batch, first, np.ascontiguousarray(vectors, dtype=np.float32))


def unit(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def brute(vectors, queries, metric):
    """Scores in float64, rounded once."""
    v, q = vectors.astype(np.float64), queries.astype(np.float64)
    scores = -((q[:, None] - v[None]) ** 2).sum(axis=2) if metric == "l2" else q @ v.T
    return scores.astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dimension", [3, 8, 37])
def test_the_best_are_those_of_a_float64_search(metric, dimension):
    random = np.random.default_rng(dimension)
    vectors, queries = unit(random.standard_normal((500, dimension))), unit(random.standard_normal((30, dimension)))
    found = search_block(block_of(vectors), 0, queries, 7, metric, norm=1.001, allowed=None)
    expected = np.sort(brute(vectors, queries, metric), axis=1)[:, ::-1][:, :7]
    np.testing.assert_allclose(found.score.reshape(30, 7), expected, rtol=1e-6, atol=1e-6)
    assert len(set(zip(found.query.tolist(), found.row.tolist(), strict=True))) == 210


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    copies=st.integers(1, 60),
    k=st.integers(1, 20),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 1000),
    holes=st.sampled_from([0.0, 0.2, 0.95]),
)
def test_bits_and_order_depend_on_rows_and_query_alone(rows, copies, k, metric, seed, holes):
    random = np.random.default_rng(seed)
    # Few distinct vectors, so that many scores tie, and some a last bit apart.
    pool = unit(random.standard_normal((copies, 16)))
    vectors = pool[random.integers(0, copies, rows)]
    vectors = np.where(random.random((rows, 1)) < 0.3, np.nextafter(vectors, np.float32(2)), vectors)
    ids = random.permutation(rows)
    allowed = random.random(rows) >= holes
    queries = unit(random.standard_normal((25, 16)))
    whole = search_block(block_of(vectors, ids), 0, queries, k, metric, norm=1.01, allowed=allowed)
    # As the definition has it: sort every allowed row by (score, id).
    alive = np.flatnonzero(allowed)
    every = search_block(
        block_of(vectors[alive], ids[alive]), 0, queries, len(alive) or 1, metric, norm=1.01, allowed=None
    )
    order = np.lexsort((every.low, -every.score, every.query)) if len(alive) else np.empty(0, dtype=int)
    expected = [
        [
            (s, i)
            for q, s, i in zip(every.query[order], every.score[order], every.low[order], strict=True)
            if q == number
        ][:k]
        for number in range(25)
    ]
    for number in range(25):
        single = search_block(
            block_of(vectors, ids), 0, queries[number : number + 1], k, metric, norm=1.01, allowed=allowed
        )
        mine = whole.query == number
        assert list(zip(single.score, single.low, strict=True)) == expected[number]
        assert list(zip(whole.score[mine], whole.low[mine], strict=True)) == expected[number]


def same(a, b):
    return a.equals(b) and a["score"].to_numpy().tobytes() == b["score"].to_numpy().tobytes()


@pytest.fixture(scope="module")
def indices(tmp_path_factory, kit):
    """The same documents in indices of one and of several segments, with and without tombstones."""
    spec = IndexSpec(24, {"model": "test"}, {}, {}, partitions=5)
    docs = [kit.Doc(f"{n}.txt", tuple(f"text {n % 30} {c}" for c in range(3))) for n in range(60)]
    stale = [kit.Doc(doc.source, ("stale", "text 1 1", *doc.texts)) for doc in docs[::4]]
    folder = tmp_path_factory.mktemp("indices")
    kit.Run(folder / "plain", spec)(docs)
    kit.Run(folder / "tranches", spec)(docs, tranches=lambda doc: int(doc.source.split(".")[0]) % 4)
    updated = kit.Run(folder / "updated", spec)
    updated([doc for doc in docs if doc not in docs[::4]] + stale)
    updated(docs[::4])
    compacted = kit.Run(folder / "compacted", spec)
    compacted(stale)
    compacted(docs, tranches=lambda doc: len(doc.source))
    compact(compacted.path)
    return [open_index(path) for path in sorted(folder.iterdir())]


def test_answers_are_bit_identical_for_any_segmentation_number_of_queries_ranks_and_threads(indices, kit):
    queries = np.stack([kit.vector(f"text {n} {n % 3}", 24) for n in range(30)])
    expected = indices[0].search(queries, 10)
    assert expected.num_rows == 300
    assert len({index.manifest.digest for index in indices}) == 1
    assert sum(index.info().tombstones for index in indices) > 0
    for index in indices:
        assert same(index.search(queries, 10), expected)
        single = [index.search(queries[n : n + 1], 10).drop(["query_id"]) for n in range(30)]
        assert same(pa.concat_tables(single).combine_chunks(), expected.drop(["query_id"]).combine_chunks())
        for ranks in (2, 3, 8):
            shards = deal_partitions(index.manifest.rows(), ranks)
            local = [index.search(queries, 10, partitions=shard) for shard in shards]
            assert same(merge_hits(local, 10), expected)
        with open_index(index.path, threads=1) as alone:
            assert same(alone.search(queries, 10), expected)


def test_ties_are_broken_by_chunk_id(indices, kit):
    # Texts repeat in two documents each, so scores tie.
    answers = indices[0].search(np.stack([kit.vector("text 7 2", 24)]), 2)
    assert answers["score"].to_pylist()[0] == answers["score"].to_pylist()[1]
    assert answers["chunk_id"].to_pylist() == sorted(answers["chunk_id"].to_pylist())
    assert answers["text"].to_pylist() == ["text 7 2"] * 2


def test_hits_have_the_columns_of_their_schema_and_the_owner(indices, kit):
    answers = indices[0].search(np.stack([kit.vector("text 3 1", 24)] * 2), 4)
    assert answers.schema.equals(hits(indices[0].spec.metadata))
    assert answers["query_id"].to_pylist() == [0] * 4 + [1] * 4
    assert answers["rank"].to_pylist() == [0, 1, 2, 3] * 2
    assert answers["partition"].to_pylist() == [partition_of_id(d, 5) for d in answers["doc_id"].to_pylist()]


def test_more_hits_than_rows_gives_every_row(indices, kit):
    assert indices[0].search(np.stack([kit.vector("x", 24)] * 2), 1000).num_rows == 2 * 180
    assert indices[0].search(np.empty((0, 24), np.float32), 5).num_rows == 0
    assert indices[0].search([kit.vector("x", 24)], 5, partitions=[]).num_rows == 0


def test_partitions_without_rows_are_searched_as_empty(tmp_path, kit):
    run = kit.Run(tmp_path / "index", IndexSpec(8, {}, {}, {}, partitions=64))
    run([kit.Doc("only.txt", ("only",))])
    index = open_index(run.path)
    assert sorted(index.manifest.rows())[-2:] == [0, 1]
    assert index.search([kit.vector("other", 8)], 5)["text"].to_pylist() == ["only"]
    empty = index.manifest.rows().index(0)
    assert index.search([kit.vector("other", 8)], 5, partitions=[empty]).num_rows == 0


def test_a_search_may_be_narrowed_by_columns_and_metadata(run, kit, corpus):
    run(corpus)
    index, query = open_index(run.path), [kit.vector("anything", 8)]
    even = index.search(query, 50, where={"title": "T0"})
    assert {row["title"] for row in even["metadata"].to_pylist()} == {"T0"}
    assert even.num_rows == sum(len(doc.texts) for doc in corpus[::2])
    some = index.search(query, 50, where={"source": ["f1.txt", "f2.txt"], "title": "T1"})
    assert set(some["source"].to_pylist()) == {"f1.txt"}
    assert index.search(query, 5, where={"scope": "none"}).num_rows == 0
    with pytest.raises(VectorIndexError, match="use source, doc_id, source_type, scope, title"):
        index.search(query, 5, where={"year": 2000})
    with pytest.raises(VectorIndexError, match="title is string"):
        index.search(query, 5, where={"title": {"a": 1}})


@pytest.mark.parametrize(
    ("queries", "k", "options", "message"),
    [
        (np.zeros((1, 7)), 5, {}, r"shape \[1, 7\]; this index takes \[queries, 8\]"),
        (np.zeros(8), 5, {}, "shape"),
        (np.full((1, 8), np.nan), 5, {}, "finite"),
        (np.zeros((1, 8)), 0, {}, "at least 1 hit"),
        (np.zeros((1, 8)), 1, {"backend": "pq"}, "use exact, ivf, hnsw"),
    ],
)
def test_searches_that_make_no_sense_are_refused(run, corpus, queries, k, options, message):
    run(corpus)
    with pytest.raises(VectorIndexError, match=message):
        open_index(run.path).search(queries, k, **options)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40), st.integers(1, 6), st.data())
def test_merging_is_associative_and_forgets_who_answered(pairs, k, data):
    schema = hits()
    rows = [
        {
            **{f.name: None for f in schema},
            "query_id": query,
            "rank": 0,
            "score": score / 4,
            "chunk_id": number.to_bytes(16, "big"),
            "doc_id": str(number),
            "partition": 0,
            "source": "s",
            "record": 0,
            "ordinal": 0,
            "start": 0,
            "end": 0,
            "text": "t",
            "content_hash": b"h" * 32,
            "source_type": "txt",
            "scope": "s",
            "metadata": {"title": None},
        }
        for number, (query, score) in enumerate(pairs)
    ]
    owner = [data.draw(st.integers(0, 2)) for _ in rows]
    parts = [
        pa.Table.from_pylist([r for r, o in zip(rows, owner, strict=True) if o == rank], schema) for rank in range(3)
    ]
    flat = merge_hits(parts, k)
    local = [merge_hits([part], k) for part in parts]
    assert flat.equals(merge_hits([merge_hits(local[:2], k), local[2]], k))
    assert flat.equals(merge_hits([local[2], merge_hits([local[1], local[0]], k)], k))
    expected = sorted((r["query_id"], -r["score"], r["chunk_id"]) for r in rows)
    per_query = {q: [e for e in expected if e[0] == q][:k] for q in range(4)}
    assert list(zip(flat["query_id"].to_pylist(), flat["chunk_id"].to_pylist(), strict=True)) == [
        (e[0], e[2]) for q in range(4) for e in per_query[q]
    ]


def test_merging_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one table"):
        merge_hits([], 3)


@given(st.lists(st.integers(0, 1000), max_size=80), st.integers(1, 9))
def test_every_partition_is_dealt_once_and_ranks_are_balanced(rows, ranks):
    dealt = deal_partitions(rows, ranks)
    assert len(dealt) == ranks
    assert sorted(p for part in dealt for p in part) == list(range(len(rows)))
    assert all(part == sorted(part) for part in dealt)
    loads = [sum(rows[p] for p in part) for part in dealt]
    # The greedy rule's bound: nobody is further above the least than one partition.
    assert max(loads) - min(loads) <= max(rows, default=0)
    assert dealt == deal_partitions(list(rows), ranks)
