from __future__ import annotations

import os
import stat

import pyarrow as pa
import pytest

from aaflow.errors import EmbedderMismatch, IndexMissing, InputError, StaleEpoch, VectorIndexError
from aaflow.index import IndexSpec, Stage, Writer, open_index
from aaflow.schema import hits


def texts(index):
    found = []
    for partition in range(index.spec.partitions):
        found += index.documents(partition)["doc_id"].to_pylist()
    return sorted(found)


def test_a_new_index_opens_empty_before_its_first_run_ends(tmp_path, spec, kit):
    with Writer.acquire(tmp_path / "new", spec, owner="a test"), open_index(tmp_path / "new") as index:
        info = index.info()
        assert (info.generation, info.documents, info.chunks) == (0, 0, 0)
        assert info.digest == "0" * 64
        empty = index.search([kit.vector("any", 8)], 5)
        assert empty.num_rows == 0
        assert empty.schema.equals(hits(spec.metadata))
        assert index.verify() == []


def test_folders_and_files_are_for_their_owner_only(run, corpus):
    run(corpus)
    for folder, _, files in os.walk(run.path):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for file in files:
            assert stat.S_IMODE(os.stat(os.path.join(folder, file)).st_mode) & 0o077 == 0, file


def test_publishing_counts_documents_chunks_and_bytes(run, corpus):
    done = run(corpus)
    info = open_index(run.path).info()
    assert (done.added, done.removed) == (24, 0)
    assert (info.generation, info.documents, info.chunks) == (1, 12, 24)
    assert done.written > done.data > 0
    assert info.embedder == {"model": "test", "dtype": "float32"}


def test_the_same_run_again_makes_no_generation(run, corpus):
    first = run(corpus)
    again = run([], kept=corpus)
    assert again.manifest == first.manifest
    assert (again.added, again.removed) == (0, 0)
    assert not any((run.path / "staging").glob("*"))


def test_changed_documents_are_replaced_and_vanished_records_leave(run, kit):
    file = [kit.Doc("a.csv", (f"row {n}",), record=n, key=str(n)) for n in range(5)]
    run(file)
    changed = kit.Doc("a.csv", ("row 1, edited",), record=1, key="1")
    done = run([changed], kept=[file[0], file[2], file[3]])
    index = open_index(run.path)
    assert (done.added, done.removed) == (1, 2)
    assert texts(index) == ["a.csv#0", "a.csv#1", "a.csv#2", "a.csv#3"]
    assert index.search([kit.vector("row 1, edited", 8)], 1)["text"].to_pylist() == ["row 1, edited"]
    assert "row 4" not in index.search([kit.vector("row 4", 8)], 9)["text"].to_pylist()
    assert index.verify() == []


def test_pruned_sources_leave_and_others_stay(run, corpus, kit):
    run(corpus)
    gone = kit.sources_of(corpus[:3]).select(["root", "source"])
    done = run([], sources=kit.sources_of([]), pruned=gone)
    index = open_index(run.path)
    assert done.removed == 6
    assert texts(index) == sorted(doc.doc_id for doc in corpus[3:])
    assert index.sources()["source"].to_pylist() == sorted(doc.source for doc in corpus[3:])


def test_a_source_that_could_not_be_read_stays_as_it_was_and_is_not_remembered_as_read(run, kit):
    old, new = kit.Doc("a.txt", ("old",)), kit.Doc("a.txt", ("half of the new",))
    run([old], sources=kit.sources_of([old], stamp=1))
    trouble = kit.notices_of([new], run.spec, "skipped", "unreadable: no permission")
    done = run([new], notices=trouble, sources=kit.sources_of([new], stamp=2))
    index = open_index(run.path)
    assert done.notices["reason"].to_pylist() == ["unreadable: no permission"]
    assert index.search([kit.vector("old", 8)], 5)["text"].to_pylist() == ["old"]
    assert index.sources()["mtime_ns"].to_pylist() == [1]
    assert index.notices().num_rows == 0


def test_permanent_notices_are_remembered_until_their_source_is_read_again(run, kit):
    doc, broken = kit.Doc("a.txt", ("a",)), kit.Doc("b.pdf", ("b",))
    said = kit.notices_of([broken], run.spec, "skipped", "truncated")
    run([doc], notices=said, sources=kit.sources_of([doc, broken]))
    assert open_index(run.path).notices().equals(said.combine_chunks())
    run([kit.Doc("c.txt", ("c",))])
    assert open_index(run.path).notices()["reason"].to_pylist() == ["truncated"]
    run([broken])
    assert open_index(run.path).notices().num_rows == 0


def test_metadata_conflicts_of_kept_documents_are_remembered(run, kit):
    docs = [kit.Doc("a.csv", (f"row {n}",), record=n, key=str(n)) for n in range(2)]
    run(docs, notices=kit.notices_of(docs, run.spec, "conflict", "year: 'x' is no int64"))
    run([kit.Doc("a.csv", ("new",), record=1, key="1")], kept=docs[:1])
    assert open_index(run.path).notices()["doc_id"].to_pylist() == ["a.csv#0"]


def test_a_source_under_a_second_root_is_refused_with_both_roots(run, kit):
    doc = kit.Doc("a.txt", ("a",))
    run([doc])
    with pytest.raises(InputError, match="file:///corpus and file:///elsewhere"):
        run([doc], sources=kit.sources_of([doc], root="file:///elsewhere"))
    twice = pa.concat_tables([kit.sources_of([doc], root="file:///x"), kit.sources_of([doc], root="file:///y")])
    with pytest.raises(InputError, match="two roots"):
        run([doc], sources=twice)
    assert open_index(run.path).info().generation == 1


def test_a_root_may_move_when_the_old_one_is_pruned(run, kit):
    doc = kit.Doc("a.txt", ("a",))
    run([doc])
    moved = kit.sources_of([doc], root="file:///elsewhere")
    run([doc], sources=moved, pruned=kit.sources_of([doc]))
    index = open_index(run.path)
    assert index.sources()["root"].to_pylist() == ["file:///elsewhere"]
    assert index.info().chunks == 1


def test_publishing_without_all_units_is_refused(run, spec, kit, corpus):
    with Writer.acquire(run.path, spec, owner="a test") as writer:
        kit.commit(run.path, writer.epoch, "ab", corpus, spec)
        with pytest.raises(VectorIndexError, match="tranche 7 of partition 0"):
            writer.publish("ab", sources=kit.sources_of(corpus), units=[(0, 0), (7, 0)])
    assert open_index(run.path).info().generation == 0


def test_rows_of_a_source_that_was_not_named_are_refused(run, corpus, kit):
    with pytest.raises(VectorIndexError, match=r"f\d+\.txt are committed, but"):
        run(corpus, sources=kit.sources_of(corpus[:1]))


def test_units_of_another_run_are_dropped_when_one_publishes(run, spec, kit, corpus):
    with Writer.acquire(run.path, spec, owner="a test") as writer:
        kit.commit(run.path, writer.epoch, "dead", corpus[:6], spec)
    run(corpus[6:])
    index = open_index(run.path)
    assert texts(index) == sorted(doc.doc_id for doc in corpus[6:])
    assert index.verify() == []


def test_another_embedder_or_dimension_is_refused_with_both(run, corpus, spec):
    run(corpus)
    other = IndexSpec(16, {"model": "other", "dtype": "float32"}, spec.transform, {}, partitions=4)
    with pytest.raises(
        EmbedderMismatch, match=r"test \(dimension 8\).*other \(dimension 16\).*embedder\.model: 'test'"
    ):
        Writer.acquire(run.path, other, owner="a test")
    with pytest.raises(EmbedderMismatch, match="dimension: 8 in the index, 9 here"):
        open_index(run.path, dimension=9)
    with pytest.raises(EmbedderMismatch, match=r"embedder.pooling: None in the index, 'mean' here"):
        open_index(run.path, embedder={"model": "test", "dtype": "float32", "pooling": "mean"})
    with pytest.raises(EmbedderMismatch, match=r"transform.chunk: 100 in the index, 200 here"):
        Writer.acquire(run.path, IndexSpec(8, spec.embedder, {"chunk": 200}, {}, partitions=4), owner="a test")
    assert Writer.acquire(run.path, spec, owner="a test").release() is None


def test_a_folder_of_something_else_is_not_made_an_index(tmp_path, spec):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(VectorIndexError, match=r"thesis\.tex"):
        Writer.acquire(tmp_path, spec, owner="a test")
    with pytest.raises(VectorIndexError, match="is a file"):
        Writer.acquire(tmp_path / "thesis.tex", spec, owner="a test")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_missing_index_is_named(tmp_path):
    with pytest.raises(IndexMissing, match="nowhere"):
        open_index(tmp_path / "nowhere")
    with pytest.raises(IndexMissing, match="nowhere"):
        Writer.acquire(tmp_path / "nowhere", owner="a test")


def test_an_old_generation_opens_while_it_is_there(run, corpus):
    first = run(corpus[:4])
    run(corpus[4:])
    with open_index(run.path, generation=1) as old:
        assert old.info().digest == first.manifest.digest
    with pytest.raises(IndexMissing, match="no generation 9; it has 0, 1, 2"):
        open_index(run.path, generation=9)


def test_only_the_newest_generations_are_left(run, kit):
    for n in range(8):
        run([kit.Doc("a.txt", (f"version {n}",))])
    index = open_index(run.path)
    assert [file.name for file in sorted((run.path / "manifest").iterdir())] == [f"{n:08d}.json" for n in (5, 6, 7, 8)]
    assert index.verify() == []
    assert len(list((run.path / "partitions").rglob("*.arrow"))) == 4


def test_one_writer_may_publish_the_same_key_again(run, spec, kit):
    with Writer.acquire(run.path, spec, owner="a test") as writer:
        for text in ("one", "two"):
            docs = [kit.Doc("a.txt", (text,))]
            units = kit.commit(run.path, writer.epoch, "ab", docs, spec)
            writer.publish("ab", sources=kit.sources_of(docs), units=units)
    index = open_index(run.path)
    assert index.search([kit.vector("two", 8)], 3)["text"].to_pylist() == ["two"]
    assert index.verify() == []


def test_a_stage_of_an_older_epoch_or_a_released_writer_is_refused(run, spec, kit, corpus):
    writer = Writer.acquire(run.path, spec, owner="first")
    stage = Stage(run.path, writer.epoch, "ab")
    writer.release()
    rows = kit.rows_of(corpus[:0], spec)
    with pytest.raises(StaleEpoch, match="released"):
        stage.commit(0, 0, rows, None)
    with Writer.acquire(run.path, spec, owner="second") as second:
        assert second.epoch == writer.epoch + 1
        with pytest.raises(StaleEpoch, match="epoch 1 may not write, the index is at epoch 2"):
            stage.commit(0, 0, rows, None)
        with pytest.raises(StaleEpoch):
            Stage(run.path, writer.epoch, "ab")
    with pytest.raises(StaleEpoch):
        writer.publish("ab", sources=kit.sources_of([]))


def test_a_stage_whose_work_was_dropped_is_refused(run, spec, kit, corpus):
    with Writer.acquire(run.path, spec, owner="a test") as writer:
        stage = Stage(run.path, writer.epoch, "ab")
        writer.publish("cd", sources=kit.sources_of([]))
        with pytest.raises(StaleEpoch, match="another run has published"):
            stage.commit(0, 0, None, kit.notices_of(corpus[:1], spec, "skipped", "empty"))
