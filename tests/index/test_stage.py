from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from aaflow.errors import IndexCorrupt, VectorIndexError
from aaflow.index import IndexSpec, Stage, Writer, open_index


@pytest.fixture
def one(tmp_path, kit):
    """A run on an index of one partition."""
    return kit.Run(tmp_path / "one", IndexSpec(8, {"model": "test"}, {}, {}, partitions=1))


def test_committed_units_are_found_again_by_their_key(run, spec, kit, corpus):
    with Writer.acquire(run.path, spec, owner="a test") as writer:
        units = kit.commit(run.path, writer.epoch, "ab", corpus, spec, tranches=lambda doc: len(doc.texts))
        assert Stage(run.path, writer.epoch, "ab").committed() == set(units)
        assert Stage(run.path, writer.epoch, "cd").committed() == set()
        with pytest.raises(ValueError, match="digest"):
            Stage(run.path, writer.epoch, "../escape")


def test_a_run_goes_on_from_the_units_of_one_that_died(run, spec, kit, corpus):
    with Writer.acquire(run.path, spec, owner="dies") as writer:
        kit.commit(run.path, writer.epoch, "ab", corpus[:0], spec)  # tranche 0 is empty
        stage = Stage(run.path, writer.epoch, "ab")
        assert len(stage.committed()) == 4
    with Writer.acquire(run.path, spec, owner="goes on") as writer:
        stage = Stage(run.path, writer.epoch, "ab")
        assert len(stage.committed()) == 4
        kit.commit(run.path, writer.epoch, "ab", corpus, spec)  # committed units stay as they are
        done = writer.publish("ab", sources=kit.sources_of(corpus))
    assert done.added == 0


def test_a_document_in_two_records_is_the_first_one_in_any_order_of_commit(one, kit):
    first = kit.Doc("a.csv", ("first", "of two"), record=3, key="x")
    later = kit.Doc("a.csv", ("later",), record=8, key="x")
    for tranches in (lambda doc: 0, lambda doc: doc.record, lambda doc: -doc.record + 9):
        run = kit.Run(one.path.with_name(f"i{tranches(first)}{tranches(later)}"), one.spec)
        done = run([later, first], tranches=tranches)
        index = open_index(run.path)
        assert index.search([kit.vector("first", 8)], 9)["text"].to_pylist()[0] == "first"
        assert index.info().chunks == 2
        assert done.notices.select(["record", "reason"]).to_pylist() == [
            {"record": 8, "reason": "duplicate document id, first at record 3"}
        ]
        assert index.notices().num_rows == 1
        assert index.verify() == []


def test_a_duplicate_in_another_source_names_that_source(one, kit):
    docs = [kit.Doc("b", ("b",), record=1, key="k"), kit.Doc("b#k", ("a",))]
    done = one(docs)
    assert done.notices["reason"].to_pylist() == ["duplicate document id, first at record 1 of b"]


def test_a_kept_document_wins_over_a_later_record_and_loses_to_an_earlier_one(one, kit):
    kept = kit.Doc("a.csv", ("kept",), record=5, key="x")
    one([kept])
    later = kit.Doc("a.csv", ("later",), record=9, key="x")
    done = one([later], kept=[kept])
    assert (done.added, done.removed) == (0, 0)
    assert done.notices["reason"].to_pylist() == ["duplicate document id, first at record 5"]
    earlier = kit.Doc("a.csv", ("earlier",), record=1, key="x")
    done = one([earlier], kept=[kept])
    assert (done.added, done.removed) == (1, 1)
    assert open_index(one.path).search([kit.vector("kept", 8)], 5)["text"].to_pylist() == ["earlier"]


def test_a_chunk_id_that_occurs_twice_is_kept_where_source_record_and_ordinal_are_lowest(one, kit):
    docs = [kit.Doc(f"{name}.txt", (f"text {name}",)) for name in "cab"]
    rows = kit.rows_of(docs, one.spec)
    same = rows.set_column(0, rows.schema.field("chunk_id"), pa.array([b"c" * 16] * 3, pa.binary(16)))
    for cuts in ([same], [same.slice(0, 1), same.slice(1)], [same.slice(2), same.slice(0, 2)]):
        path = one.path.with_name(f"cut{cuts[0].num_rows}{cuts[0]['doc_id'][0]}")
        with Writer.acquire(path, one.spec, owner="a test") as writer:
            stage = Stage(path, writer.epoch, "ab")
            for tranche, part in enumerate(cuts):
                stage.commit(tranche, 0, part, None)
            writer.publish("ab", sources=kit.sources_of(docs))
        index = open_index(path)
        assert index.documents(0)["doc_id"].to_pylist() == ["a.txt"]
        assert index.info().documents == 1
        assert index.verify() == []


def test_rows_that_do_not_fit_are_refused_by_name(run, spec, kit, corpus):
    rows = kit.rows_of(corpus, spec)
    with Writer.acquire(run.path, spec, owner="a test") as writer:
        stage = Stage(run.path, writer.epoch, "ab")
        with pytest.raises(VectorIndexError, match="other partitions"):
            stage.commit(0, 0, rows, None)
        with pytest.raises(VectorIndexError, match="vector: fixed_size_list"):
            stage.commit(0, 0, kit.rows_of(corpus, IndexSpec(9, partitions=4)), None)
        with pytest.raises(VectorIndexError, match="missing"):
            stage.commit(0, 0, rows.drop(["text"]), None)
        assert stage.committed() == set()


@pytest.mark.parametrize(
    ("scale", "metric", "message"),
    [(np.nan, "cosine", "not finite"), (np.inf, "ip", "not finite"), (3.0, "cosine", "length 3"), (3.0, "ip", None)],
)
def test_vectors_that_the_metric_cannot_take_are_refused(tmp_path, kit, scale, metric, message):
    spec = IndexSpec(4, partitions=1, metric=metric)
    rows = kit.rows_of([kit.Doc("a.txt", ("a",))], spec)
    values = rows["vector"].combine_chunks().flatten().to_numpy() * np.float32(scale)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), type=rows.schema.field("vector").type)
    rows = rows.set_column(rows.num_columns - 1, rows.schema.field("vector"), vectors)
    with Writer.acquire(tmp_path / "index", spec, owner="a test") as writer:
        stage = Stage(tmp_path / "index", writer.epoch, "ab")
        if message is None:
            stage.commit(0, 0, rows, None)
        else:
            with pytest.raises(VectorIndexError, match=message):
                stage.commit(0, 0, rows, None)


def test_a_damaged_record_of_a_unit_is_named(run, spec, kit, corpus):
    with Writer.acquire(run.path, spec, owner="a test") as writer:
        kit.commit(run.path, writer.epoch, "ab", corpus, spec)
        (run.path / "staging" / "ab" / "000000-00000.json").write_text("{}")
        with pytest.raises(IndexCorrupt, match=r"000000-00000\.json"):
            writer.publish("ab", sources=kit.sources_of(corpus))


@pytest.mark.parametrize("wrong", [{"dimension": 0}, {"dimension": 4, "partitions": 0}])
def test_an_index_has_at_least_one_dimension_and_partition(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        IndexSpec(**wrong)


def test_an_unknown_metric_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="cosine, ip, l2"):
        IndexSpec(4, metric="hamming")
