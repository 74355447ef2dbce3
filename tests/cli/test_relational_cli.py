"""``--where``, ``--join`` and ``--deduplicate``, and relational operators in a workflow file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aaflow.cli.workflowfile import read_workflow
from aaflow.index import open_index

Cli = Callable[..., Any]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "dates.csv"
    path.write_text("file,published,title\ndates.txt,2020-01-31,Dates\nsleep.md,2024-01-31,\n")
    return path


@pytest.mark.serial
def test_an_ingestion_joins_filters_and_deduplicates(cli: Cli, corpus: Path, table: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text in (("dates.txt", "dates"), ("sleep.md", "sleep"), ("twice.txt", "dates"), ("no.txt", "none")):
        (docs / name).write_text(text)
    words = ["ingest", docs, "--index", tmp_path / "index", "--dim", 32, "--partitions", 4, "--pilot", "local"]
    words += ["--ranks", 2, "--run-folder", tmp_path / "runs", "--join", table, "--on", "source=file"]
    words += ["--deduplicate", "documents"]
    where = ["--where", "metadata.published > date('2019-01-01') or starts_with(source, 'twice')"]
    made = cli(*words, *where, "--json").json()
    assert made["documents"] == 2
    assert made["duplicates"] == [{"path": str(docs / "twice.txt"), "record": 0, "reason": "duplicate of dates.txt"}]
    with open_index(tmp_path / "index") as index:
        hits = index.search([[1.0] + [0.0] * 31], 10).to_pylist()
    assert {hit["source"]: str(hit["metadata"]["published"]) for hit in hits} == {
        "dates.txt": "2020-01-31",
        "sleep.md": "2024-01-31",
    }
    again = cli(*words, *where)
    assert again.code == 0
    assert "duplicates in 1 document(s)" in again.err
    other = cli(*words, "--where", "metadata.published is None")
    assert other.code == 3
    assert "metadata.published is None" in other.err
    assert "metadata.published > date" in other.err


def test_a_plan_shows_them(cli: Cli, corpus: Path, table: Path, tmp_path: Path) -> None:
    words = ["plan", corpus, "--index", tmp_path / "index", "--join", table, "--on", "source = file"]
    words += ["--where", "metadata.published is not None", "--deduplicate", "chunks", "--ranks", 2]
    plan = cli(*words, "--json").json()
    (stage,) = plan["stages"]
    assert [operator["kind"] for operator in stage["operators"]] == [
        "load", "join", "filter", "transform", "deduplicate", "embed", "upsert",
    ]  # fmt: skip
    fields = stage["operators"][1]["options"]["fields"]
    assert fields == {"published": "date", "title": "string"}
    table.write_text(table.read_text() + "new.txt,2022-01-01,New\n")
    assert cli(*words, "--json").json() != plan


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--where", "yeer == 1"], "there is no column yeer; the columns are doc_id (string)"),
        (["--where", "source = 'a'"], "compare with =="),
        (["--join", "{table}"], "--join TABLE and --on COLUMN go together"),
        (["--on", "source"], "--join TABLE and --on COLUMN go together"),
        (["--join", "{table}", "--on", "source"], "no column 'source'; there are file, published, title"),
        (["--join", "absent.csv", "--on", "source"], "absent.csv can't be read"),
        (["--deduplicate", "words"], "documents"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], said: str, cli: Cli, corpus: Path, table: Path, tmp_path: Path
) -> None:
    words = [word.format(table=table) for word in words]
    ended = cli("plan", corpus, "--index", tmp_path / "index", *words)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


def test_a_workflow_file_names_them(corpus: Path, table: Path, tmp_path: Path) -> None:
    file = tmp_path / "workflow.toml"
    file.write_text(
        f"""
[[operator]]
kind = "load"
paths = ["{corpus}"]

[[operator]]
kind = "join"
table = "{table}"
on = "source"
key = "file"

[[operator]]
kind = "filter"
where = "metadata.published is not None"

[[operator]]
kind = "deduplicate"

[[operator]]
kind = "aggregate"
by = ["source_type"]
values = {{ documents = "count()", last = "max(metadata.published)" }}
"""
    )
    operators = read_workflow(file).operators
    assert list(operators) == ["load", "join", "filter", "deduplicate", "aggregate"]
    output = operators["aggregate"].output
    assert output is not None
    assert output.names == ["source_type", "documents", "last"]
