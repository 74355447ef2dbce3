"""Running again: nothing to do, changed, moved and deleted documents, another model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import aaflow
from aaflow.driver import RunResult
from aaflow.errors import EmbedderMismatch, PilotError
from aaflow.index import open_index

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]


class NoEngine:
    """A pilot that starts nothing: whoever needs a task group fails."""

    name = "none"

    def start(self, placement: aaflow.Placement, lease: object) -> None:
        raise PilotError("a task group was asked for")


def rows_of(result: RunResult, operator: str) -> int:
    trace = result.trace()
    return int(pc.sum(trace.filter(pc.equal(trace["operator"], operator))["rows"]).as_py() or 0)


def rebuilt(workspace: Any, *paths: Path, **options: Any) -> str:
    workspace.ingest(*paths, index="rebuilt", **options)
    digest: str = workspace.info("rebuilt").digest
    return digest


def text_of(workspace: Any, source: str) -> list[str]:
    with open_index(workspace.folder / "index") as index:
        answers = index.search([[1.0] + [0.0] * 31], 10_000, where={"source": source})
    texts: list[str] = sorted(answers["text"].to_pylist())
    return texts


def test_the_same_corpus_again_starts_no_group_and_changes_nothing(workspace: Any) -> None:
    first = workspace.ingest()
    before = workspace.info()
    placement = aaflow.place(workspace.compile(), "local")
    again = aaflow.run(placement, NoEngine(), run_folder=workspace.folder / "runs")  # type: ignore[arg-type]
    assert workspace.info() == before
    assert again.generation == first.generation == before.generation
    assert again.seconds < 2
    assert again.trace().num_rows == 0
    assert placement.plan.listing is not None
    assert (placement.plan.listing.splits, placement.plan.listing.unchanged) == (0, 16)
    assert sorted(again.notices["reason"].to_pylist()) == sorted(first.notices["reason"].to_pylist())


def test_changed_new_and_touched_files(workspace: Any) -> None:
    workspace.ingest()
    docs: Path = workspace.docs
    (docs / "plain3.txt").write_text("Plain document number 3, rewritten altogether.")
    (docs / "new.txt").write_text("A document that was not there.")
    for touched in ("plain4.txt", "plain5.txt", "table.csv"):
        os.utime(docs / touched, ns=(5, 5))
    result = workspace.ingest()
    assert result.generation == 2
    assert rows_of(result, "load") == 2 + 2 + 30
    assert rows_of(result, "embed") == 2  # touched files keep their chunks
    assert text_of(workspace, "plain3.txt") == ["Plain document number 3, rewritten altogether."]
    assert len(text_of(workspace, "plain5.txt")) > 3
    assert workspace.info().digest == rebuilt(workspace)


def test_a_touched_corpus_is_not_embedded_again(workspace: Any) -> None:
    workspace.ingest()
    before = workspace.info()
    for path in workspace.docs.rglob("*.*"):
        os.utime(path, ns=(5, 5))
    result = workspace.ingest()
    assert rows_of(result, "embed") == rows_of(result, "transform") == rows_of(result, "upsert") == 0
    assert rows_of(result, "load") == before.documents
    after = workspace.info()
    assert (after.digest, after.chunks, after.documents) == (before.digest, before.chunks, before.documents)


@pytest.mark.parametrize("id_column", ["id", None])
def test_records_inserted_moved_removed_and_changed_give_the_index_of_a_rebuild(
    workspace: Any, id_column: str | None
) -> None:
    file = workspace.docs / "records.jsonl"
    workspace.ingest(file, id_column=id_column)
    lines = file.read_text().splitlines(keepends=True)
    lines[20] = lines[20].replace("speaks", "is silent")
    del lines[10]
    lines.insert(3, '{"id": "inserted", "text": "a record that pushes the others on", "year": 7}\n')
    lines.append(lines.pop(30))
    file.write_text("".join(lines))
    result = workspace.ingest(file, id_column=id_column)
    if id_column is not None:
        # What lies before the insertion stays; what moved is written again, under its id.
        assert rows_of(result, "transform") >= 55
    assert workspace.info().digest == rebuilt(workspace, file, id_column=id_column)
    assert workspace.info().documents == 59


def test_deleted_documents_leave_only_when_told_and_only_of_the_roots_given(workspace: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "one.txt").write_text("of another root")
    (other / "two.txt").write_text("also of another root")
    workspace.ingest(workspace.docs, other)
    everything = workspace.documents()
    (workspace.docs / "plain1.txt").unlink()
    shutil.rmtree(workspace.docs / "deep")
    (other / "two.txt").unlink()
    workspace.ingest(workspace.docs)
    assert workspace.documents() == everything
    workspace.ingest(workspace.docs, prune=True)
    gone = {"plain1.txt", "deep/page0.md", "deep/page1.md", "deep/page2.md", "deep/er/leaf.txt"}
    assert everything - workspace.documents() == gone
    assert "two.txt" in workspace.documents()
    workspace.ingest(workspace.docs, other, prune=True)
    assert everything - workspace.documents() == gone | {"two.txt"}
    assert workspace.info().digest == rebuilt(workspace, workspace.docs, other)


def test_a_file_that_shrinks_loses_its_last_chunks_and_one_that_turns_bad_leaves(workspace: Any) -> None:
    workspace.ingest()
    (workspace.docs / "plain7.txt").write_text("short now")
    (workspace.docs / "plain6.txt").write_bytes(b"\x00\x00\x00")
    result = workspace.ingest()
    assert text_of(workspace, "plain7.txt") == ["short now"]
    assert text_of(workspace, "plain6.txt") == []
    assert "plain6.txt" in result.notices["source"].to_pylist()
    assert workspace.info().digest == rebuilt(workspace)


def test_another_dimension_is_refused_before_anything_starts(workspace: Any) -> None:
    workspace.ingest(workspace.docs / "deep")
    with pytest.raises(EmbedderMismatch, match=r"dimension 32\).*dimension 48\)"):
        workspace.compile(dimension=48)
