"""Known-item search on the real corpus: a function's own summary line finds the function."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aaflow.index import open_index
from aaflow.retrieval import ask_index
from stdlib_docs import known_items, render

pytestmark = [pytest.mark.serial, pytest.mark.timeout(900)]


#: One module of so many at the top level: enough functions for the claim; all would take minutes more.
SHARE = 3


def test_the_summary_of_a_function_finds_it_among_the_first_ten_in_nine_of_ten_cases(tmp_path: Path) -> None:
    corpus, index = tmp_path / "corpus", tmp_path / "index"
    assert render(corpus) > 9_000
    modules = sorted(corpus.iterdir())
    for module in (module for number, module in enumerate(modules) if number % SHARE):
        module.unlink()
    passages = sum(len(module.read_bytes().splitlines()) for module in corpus.iterdir())
    argv = [
        sys.executable,
        "-m",
        "aaflow.cli.main",
        "ingest",
        str(corpus),
        "--index",
        str(index),
        "--embedder",
        "minilm",
    ]
    argv += ["--id-column", "id", "--ranks", "2", "--pilot", "parsl", "--run-folder", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["documents"] == passages
    assert summary["skipped"] == []
    with open_index(index) as opened:
        assert opened.verify() == []

    items = known_items(corpus)
    assert len(items) >= 300
    hits = ask_index(index, [line for line, _ in items], 10)
    found: dict[int, set[str]] = {}
    for query, document in zip(hits["query_id"].to_pylist(), hits["doc_id"].to_pylist(), strict=True):
        found.setdefault(query, set()).add(document.partition("#")[2])
    recalled = sum(name in found.get(number, ()) for number, (_, name) in enumerate(items))
    assert recalled / len(items) >= 0.9, f"{recalled} of {len(items)}"
