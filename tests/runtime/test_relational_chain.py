"""Relational operators in the chain of a rank, over the life of an index: updates, prunes, cut runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aaflow.compiler.compile import compile_workflow
from aaflow.compiler.plan import Plan
from aaflow.dataplane.communicator import SerialCommunicator
from aaflow.errors import EmbedderMismatch
from aaflow.index import IndexSpec, Stage, Writer, open_index
from aaflow.runtime.chain import RankContext, chain_of
from aaflow.runtime.engine import run_chain
from aaflow.runtime.progress import expected_units
from aaflow.runtime.trace import OperatorTrace
from aaflow.scheduling.site import Node, Site
from aaflow.workflow import Stream, Workflow

SITE = Site(
    name="test", description="", nodes=1, node=Node((0,), 1 << 30, None), oversubscribe=False, scheduler="local",
    launcher="mpiexec", launcher_options=(), communicator="mpi", pilot="local",
)  # fmt: skip
Shape = Callable[[Stream], Stream]


def by_documents(documents: Stream) -> Stream:
    return documents.deduplicate().transform(size=20, overlap=0)


def by_chunks(documents: Stream) -> Stream:
    return documents.transform(splitter="delimiter", delimiter="|", overlap=0).deduplicate()


class Corpus:
    """Documents in folders, and the index that one rank, in this process, makes of them."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder, self.shape = folder, shape
        self.index = folder / "index"

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def plan(self, *roots: str, index: str = "index", prune: bool = False, shape: Shape | None = None) -> Plan:
        workflow = Workflow(metadata={"year": "int64"})
        documents = workflow.load([f"{name}={self.folder / name}" for name in roots or ("docs",)])
        chunks = (shape or self.shape)(documents)
        chunks.embed("hash", dimension=8).upsert(self.folder / index, partitions=4, prune=prune)
        return compile_workflow(workflow, site=SITE, ranks=1)

    def commit(self, plan: Plan, epoch: int) -> dict[str, int]:
        context = RankContext(plan, plan.stages[0], SerialCommunicator(), epoch, "cpu", spool=self.folder / "spool")
        traced = [(OperatorTrace(name), function) for name, function in chain_of(context)]
        for _ in run_chain(traced, iter(()), 2):
            pass
        return {trace.operator: trace.rows for trace, _ in traced}

    def writer(self, plan: Plan) -> Writer:
        assert plan.index is not None
        return Writer.acquire(plan.index["path"], IndexSpec.from_json(plan.index["spec"]), owner="test")

    def ingest(self, *roots: str, **options: Any) -> dict[str, int]:
        """Rows that every operator gave; nothing where there was nothing to read."""
        plan = self.plan(*roots, **options)
        with self.writer(plan) as writer:
            rows = self.commit(plan, writer.epoch) if plan.tables["listing"].num_rows else {}
            self.publish(plan, writer)
        return rows

    def publish(self, plan: Plan, writer: Writer) -> None:
        tables = {name: plan.tables[name] for name in ("sources", "pruned")}
        again = plan.tables["again"]["source"].combine_chunks()
        writer.publish(plan.work_key, **tables, again=again, units=expected_units(plan))

    def texts(self, index: str = "index") -> dict[str, list[str]]:
        """The texts of every document, by ordinal."""
        with open_index(self.folder / index) as opened:
            parts = [opened.rows(partition, ["doc_id", "ordinal", "text"]) for partition in range(4)]
        rows = pa.concat_tables(parts).sort_by([("doc_id", "ascending"), ("ordinal", "ascending")]).to_pylist()
        return {
            name: [row["text"] for row in rows if row["doc_id"] == name] for name in {row["doc_id"] for row in rows}
        }

    def duplicates(self) -> dict[str, str]:
        with open_index(self.index) as opened:
            notices = opened.notices()
        rows = notices.filter(pc.equal(notices["kind"], "duplicate")).to_pylist()
        return {row["doc_id"]: row["reason"] for row in rows}

    def digest(self, index: str = "index") -> str:
        with open_index(self.folder / index) as opened:
            assert opened.verify() == []
            return opened.info().digest

    def generation(self) -> int:
        with open_index(self.index) as opened:
            return opened.info().generation


@pytest.fixture
def documents(tmp_path: Path) -> Corpus:
    """Three documents of one content, and one of another, all deduplicated."""
    corpus = Corpus(tmp_path, by_documents)
    for name in ("a", "b", "c"):
        corpus.write(f"docs/{name}.txt", "the same for all")
    corpus.write("docs/d.txt", "something else")
    corpus.ingest()
    return corpus


@pytest.fixture
def chunks(tmp_path: Path) -> Corpus:
    """Documents of two chunks, of which the second is the same for all."""
    corpus = Corpus(tmp_path, by_chunks)
    for name in ("a", "b", "c"):
        corpus.write(f"docs/{name}.txt", f"{name} begins|all end")
    corpus.ingest()
    return corpus


def test_a_duplicate_comes_back_when_what_it_lost_against_is_pruned(documents: Corpus) -> None:
    assert set(documents.texts()) == {"docs/a.txt", "docs/d.txt"}
    assert documents.duplicates() == {f"docs/{name}.txt": "duplicate of docs/a.txt" for name in "bc"}
    (documents.folder / "docs/a.txt").unlink()
    documents.ingest()
    assert set(documents.texts()) == {"docs/a.txt", "docs/d.txt"}  # not pruned, so it is still there
    documents.ingest(prune=True)
    assert set(documents.texts()) == {"docs/b.txt", "docs/d.txt"}
    assert documents.duplicates() == {"docs/c.txt": "duplicate of docs/b.txt"}
    documents.ingest(index="rebuilt")
    assert documents.digest() == documents.digest("rebuilt")


def test_a_duplicate_comes_back_when_what_it_lost_against_changes(documents: Corpus) -> None:
    documents.write("docs/a.txt", "a text of its own now")
    rows = documents.ingest()
    assert rows["load"] == 3  # the changed one and the two duplicates
    assert set(documents.texts()) == {"docs/a.txt", "docs/b.txt", "docs/d.txt"}
    assert documents.duplicates() == {"docs/c.txt": "duplicate of docs/b.txt"}


def test_what_the_index_holds_wins_against_a_lower_document_id(documents: Corpus) -> None:
    documents.write("docs/0.txt", "the same for all")
    documents.ingest()
    assert set(documents.texts()) == {"docs/a.txt", "docs/d.txt"}
    assert documents.duplicates()["docs/0.txt"] == "duplicate of docs/a.txt"


def test_a_run_with_nothing_new_reads_no_duplicate_again(documents: Corpus) -> None:
    before = documents.generation()
    assert documents.ingest() == {}
    assert documents.generation() == before
    documents.write("docs/new.txt", "new, so nothing of the index can leave")
    assert documents.ingest()["load"] == 1


def test_a_duplicate_of_other_paths_comes_back_when_those_are_read(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, by_documents)
    corpus.write("docs/a.txt", "the same for all")
    corpus.write("other/b.txt", "the same for all")
    corpus.ingest("docs", "other")
    (tmp_path / "docs/a.txt").unlink()
    corpus.write("docs/x.txt", "so that the folder is not empty")
    corpus.ingest("docs", prune=True)
    assert set(corpus.texts()) == {"docs/x.txt"}
    corpus.ingest("docs", "other")
    assert set(corpus.texts()) == {"docs/x.txt", "other/b.txt"}
    assert corpus.ingest("docs", "other") == {}


def test_a_chunk_comes_back_when_what_it_lost_against_is_pruned(chunks: Corpus) -> None:
    begins = {f"docs/{name}.txt": [f"{name} begins"] for name in "abc"}
    assert chunks.texts() == {**begins, "docs/a.txt": ["a begins", "all end"]}
    reason = "1 of its chunks are duplicates, the first of docs/a.txt"
    assert chunks.duplicates() == {"docs/b.txt": reason, "docs/c.txt": reason}
    (chunks.folder / "docs/a.txt").unlink()
    chunks.ingest(prune=True)
    assert chunks.texts() == {"docs/b.txt": ["b begins", "all end"], "docs/c.txt": ["c begins"]}
    chunks.ingest(index="rebuilt")
    assert chunks.digest() == chunks.digest("rebuilt")


def test_a_touched_document_that_lost_chunks_stays_as_it_is(chunks: Corpus) -> None:
    before = chunks.texts()
    for name in "abc":
        os.utime(chunks.folder / f"docs/{name}.txt", ns=(5, 5))
    chunks.ingest()
    assert chunks.texts() == before
    assert set(chunks.duplicates()) == {"docs/b.txt", "docs/c.txt"}


@pytest.mark.parametrize("shape", [by_documents, by_chunks])
def test_a_cut_run_goes_on_and_decides_as_it_would_have(shape: Shape, tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, shape)
    for number in range(12):
        corpus.write(f"docs/{number:02}.txt", f"text {number % 5}")
    lines = "".join(f'{{"text": "text {number % 7}"}}\n' for number in range(30))
    corpus.write("docs/records.jsonl", lines)
    corpus.ingest(index="whole")
    plan = corpus.plan()
    with corpus.writer(plan) as writer:
        first = corpus.commit(plan, writer.epoch)
    with corpus.writer(plan) as writer:
        stage = Stage(writer.path, writer.epoch, plan.work_key)
        done = stage.committed()
        for record in sorted((writer.path / "staging" / plan.work_key).glob("*.json"))[::2]:
            record.unlink()
        again = corpus.commit(plan, writer.epoch)
        assert again["load"] == first["load"] == 42
        assert again["deduplicate"] == first["deduplicate"]
        assert again["embed"] < first["embed"]
        assert stage.committed() == done
        corpus.publish(plan, writer)
    assert corpus.digest() == corpus.digest("whole")
    assert (
        len({text for texts in corpus.texts().values() for text in texts})
        == sum(map(len, corpus.texts().values()))
        == 7
    )


def filtered(where: str) -> Shape:
    return lambda documents: documents.filter(where).transform(size=20, overlap=0)


def test_a_document_that_no_longer_satisfies_a_filter_leaves(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, filtered("contains(text, 'keep')"))
    corpus.write("docs/a.txt", "keep me")
    corpus.write("docs/b.txt", "drop me")
    corpus.ingest()
    assert set(corpus.texts()) == {"docs/a.txt"}
    corpus.write("docs/a.txt", "no longer")
    corpus.write("docs/b.txt", "keep me now")
    corpus.ingest()
    assert set(corpus.texts()) == {"docs/b.txt"}
    with open_index(corpus.index) as opened:
        assert opened.notices().num_rows == 0  # who asked for a filter needs no notice of each document


def joined(table: Path) -> Shape:
    return lambda documents: documents.join(table, on="source", columns=["year", "isbn"]).transform(size=20, overlap=0)


def test_an_index_is_updated_only_with_the_operators_that_made_it(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, filtered("contains(text, 'keep')"))
    corpus.write("docs/a.txt", "keep me")
    corpus.ingest()
    corpus.plan(shape=filtered('contains( text,"keep" )'))  # another spelling is no other filter
    with pytest.raises(EmbedderMismatch) as caught:
        corpus.plan(shape=filtered("contains(text, 'me')"))
    assert "relational: [\"documents where contains(text, 'keep')\"] in the index" in str(caught.value)
    assert "[\"documents where contains(text, 'me')\"] here" in str(caught.value)
    with pytest.raises(EmbedderMismatch, match="'documents deduplicated'"):
        corpus.plan(shape=by_documents)
    table = tmp_path / "t.csv"
    table.write_text("source,year,isbn\ndocs/a.txt,2001,i\n")
    corpus.ingest(index="joined", shape=joined(table))
    corpus.plan(index="joined", shape=joined(table))
    with open_index(tmp_path / "joined") as opened:
        assert opened.spec.metadata == {"year": "int64", "isbn": "string"}
        assert (
            opened.rows(0, ["metadata"]).num_rows + sum(opened.rows(p, ["metadata"]).num_rows for p in (1, 2, 3)) == 1
        )
    table.write_text("source,year,isbn\ndocs/a.txt,2002,i\n")
    with pytest.raises(EmbedderMismatch, match=r"table of SHA-256 .* in the index"):
        corpus.plan(index="joined", shape=joined(table))
