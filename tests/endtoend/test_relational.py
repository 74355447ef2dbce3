"""Relational operators on MPI ranks: the same rows for any number of ranks, in fused stages and in their own."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import aaflow
from aaflow.index import open_index

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]
GROUPS = ((1, True), (3, True), (2, False))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, small_pieces: None) -> Path:
    """Whole documents and records, a third of them of a content that another has, and a table about them."""
    folder = tmp_path_factory.mktemp("relational")
    docs = folder / "docs"
    docs.mkdir()
    for number in range(20):
        (docs / f"plain{number:02}.txt").write_text(f"content {number % 13} of a document\n\nand a common end")
    (docs / "records.jsonl").write_text(
        "".join(
            f'{{"id": "r{n}", "text": "content {n % 40} of a record", "weight": {n % 40 / 7}}}\n' for n in range(60)
        )
    )
    rows = [f"plain{number:02}.txt,{1990 + number},shelf {number % 3}\n" for number in range(15)]
    (folder / "table.csv").write_text("file,year,shelf\n" + "".join(rows))
    return folder


def documents(corpus: Path) -> Any:
    workflow = aaflow.Workflow(metadata={"weight": "float64"})
    loaded = workflow.load(corpus / "docs", split_bytes=900, id_column="id")
    return loaded.join(corpus / "table.csv", on="source", key="file").filter(
        "metadata.year is None or metadata.year != 1993"
    )


def start(corpus: Path, workflow: aaflow.Workflow, **options: Any) -> aaflow.RunResult:
    placement = aaflow.place(aaflow.compile(workflow, site="local", **options), "local")
    return aaflow.run(placement, "local", run_folder=corpus / "runs")


@pytest.mark.parametrize("level", ["documents", "chunks"])
def test_an_index_of_joined_filtered_deduplicated_rows_is_the_same_on_any_ranks(level: str, corpus: Path) -> None:
    found = set()
    for ranks, fuse in GROUPS:
        index = corpus / f"{level}{ranks}"
        rows = documents(corpus)
        if level == "documents":
            chunks = rows.deduplicate().transform(splitter="delimiter", overlap=0)
        else:
            chunks = rows.transform(splitter="delimiter", overlap=0).deduplicate()
        workflow = chunks.embed("hash", dimension=16).upsert(index, partitions=8).workflow
        result = start(corpus, workflow, ranks=ranks, fuse=fuse)
        assert list((result.folder / "spool").iterdir()) == []
        told = sorted(row["doc_id"] + row["reason"] for row in result.notices.to_pylist() if row["kind"] == "duplicate")
        with open_index(index) as opened:
            found.add((opened.info().digest, opened.info().chunks, tuple(told)))
            parts = [opened.rows(partition, ["doc_id", "metadata"]) for partition in range(8)]
    ((_, count, told),) = found
    kept = [number for number in range(20) if number != 3]
    plain = [f"content {number % 13}" for number in kept]
    contents = len(set(plain)) + 40
    if level == "documents":
        assert count == 2 * len(set(plain)) + 40
        assert len(told) == len(plain) + 60 - contents
    else:
        assert count == contents + 1  # the common end once
        assert len(told) == len(kept) - 1 + 20  # all plain documents but the first lost that end
    years = {row["doc_id"]: row["metadata"]["year"] for row in pa.concat_tables(parts).to_pylist()}
    assert years["plain05.txt"] == 1995
    assert years["records.jsonl#r0"] is None


def test_groups_are_the_same_on_any_ranks(corpus: Path) -> None:
    outputs = []
    for ranks, fuse in GROUPS:
        chunks = documents(corpus).transform(splitter="delimiter", overlap=0)
        groups = chunks.aggregate(
            ["metadata.shelf", "source_type"],
            {"chunks": "count()", "weight": "sum(metadata.weight)", "last": "max(metadata.year)", "bytes": "mean(end)"},
        )
        result = start(corpus, groups.workflow, ranks=ranks, fuse=fuse)
        outputs.append(result.output())
    assert outputs[0].equals(outputs[1])
    assert outputs[0].equals(outputs[2])
    rows = outputs[0].to_pylist()
    shelves = Counter(number % 3 for number in range(15) if number != 3)
    assert [(row["metadata.shelf"], row["source_type"], row["chunks"]) for row in rows] == [
        *((f"shelf {shelf}", "txt", 2 * shelves[shelf]) for shelf in range(3)),
        (None, "jsonl", 60),
        (None, "txt", 10),
    ]
    assert rows[3]["weight"] == math.fsum(n % 40 / 7 for n in range(60))
    assert [row["last"] for row in rows] == [2002, 2003, 2004, None, None]
