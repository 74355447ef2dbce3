from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aaflow.index import open_index

pytestmark = pytest.mark.serial
Cli = Callable[..., Any]


def test_ingest_reports_one_json_object(made: dict[str, Any], corpus: Path) -> None:
    assert made["documents"] == 4
    assert made["chunks"] == 4
    assert made["seconds"] > 0
    assert Path(made["index"]).is_dir()
    assert made["generation"] == 1
    skipped = {row["path"]: row for row in made["skipped"]}
    assert set(skipped) == {str(corpus / "binary.txt"), str(corpus / "records.jsonl")}
    assert all(set(row) == {"path", "record", "reason"} for row in made["skipped"])
    assert "binary" in skipped[str(corpus / "binary.txt")]["reason"]
    assert skipped[str(corpus / "records.jsonl")]["record"] == 58
    with open_index(made["index"]) as index:
        assert index.info().digest == made["digest"]


def test_the_run_folder_has_what_a_person_needs(made: dict[str, Any]) -> None:
    folder = Path(made["run_folder"])
    report = json.loads((folder / "report.json").read_text())
    assert report["generation"] == 1
    assert report["notices"] == 2
    assert report["index"]["added"] == made["chunks"]
    assert report["index"]["removed"] == 0
    assert (report["index"]["data_bytes"], report["index"]["written_bytes"]) == (
        made["data_bytes"],
        made["written_bytes"],
    )
    segments = sum(path.stat().st_size for path in Path(made["index"], "partitions").rglob("*.arrow"))
    assert made["data_bytes"] > 4 * 64 * 4
    assert made["written_bytes"] > segments > 0
    assert set(report["timings"]) == {"load+transform+embed+upsert"}
    assert {path.name for path in folder.iterdir()} >= {"plan.json", "placement.json", "listing.arrow", "logs", "trace"}


def test_the_same_corpus_again_does_nothing_and_says_so(
    cli: Cli, made: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    words = ["ingest", corpus, "--index", made["index"], "--dim", 64, "--partitions", 8, "--id-column", "id"]
    words += ["--metadata", "year:int64", "--run-folder", tmp_path, "--pilot", "local"]
    again = cli(*words, "--json").json()
    for key in ("documents", "chunks", "skipped", "conflicts", "generation", "digest", "index"):
        assert again[key] == made[key], key
    assert again["seconds"] < 2
    assert again["data_bytes"] == 0
    told = cli(*words)
    assert told.code == 0
    assert told.out == ""
    assert "4 documents, 4 chunks" in told.err
    assert "3 file(s) unchanged" in told.err or "4 file(s) unchanged" in told.err
    assert "skipped" in told.err
    assert "record 58: malformed JSON" in told.err


def test_a_plan_is_shown_and_nothing_is_started(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    shown = cli("plan", corpus, "--index", tmp_path / "index", "--ranks", 2, "--no-fuse")
    assert shown.code == 0
    for word in ("load", "transform", "embed", "upsert", "file", "batch-worker"):
        assert word in shown.out
    plan = cli("plan", corpus, "--index", tmp_path / "index", "--ranks", 2, "--json").json()
    assert [stage["name"] for stage in plan["stages"]] == ["load+transform+embed+upsert"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--pilot", "foo"], 2, "there is no pilot 'foo'; installed: local, parsl"),
        (["--site", "foo"], 2, "there is no site 'foo'"),
        (["--ranks", "0"], 2, "0 ranks"),
        (["--dim", "0"], 2, "dim"),
        (["--partitions", "0"], 2, "'upsert': partitions is 0"),
        (["--splitter", "sentences"], 2, "'transform': transform: unknown splitter 'sentences'"),
        (["--chunk-size", "5", "--overlap", "5"], 2, "'transform'"),
        (["--metadata", "year:number"], 2, "--metadata: .*unknown type 'number'"),
        (["--embedder", "no-such-model"], 2, "no-such-model"),
        (["--format", "docx"], 2, "'load': .*unknown format 'docx'"),
        (["--no-such-option"], 2, "No such option"),
    ],
)
def test_what_can_not_be_used_is_refused_before_anything_starts(
    words: list[str], code: int, said: str, cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    ended = cli("ingest", corpus, "--index", tmp_path / "index", "--run-folder", tmp_path / "runs", *words)
    assert ended.code == code, ended.err
    assert re.search(said, ended.err), ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_missing_path_is_refused(cli: Cli, tmp_path: Path) -> None:
    ended = cli("ingest", tmp_path / "nowhere", "--index", tmp_path / "index")
    assert (ended.code, ended.err.startswith("aaflow: load: can't use")) == (2, True)
    assert "nowhere" in ended.err


def test_another_model_is_an_error_that_says_both(cli: Cli, made: dict[str, Any], corpus: Path) -> None:
    ended = cli("ingest", corpus, "--index", made["index"], "--dim", 32)
    assert ended.code == 3
    assert "hash (dimension 64)" in ended.err
    assert "hash (dimension 32)" in ended.err


def test_an_index_is_not_made_in_a_folder_of_other_things(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = cli("ingest", corpus, "--index", tmp_path, "--pilot", "local", "--ranks", 1)
    assert ended.code == 3
    assert "mine.txt" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_ingestion_ends_clean(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for number in range(40):
        (tmp_path / "docs" / f"{number}.txt").write_text("many words here " * 250_000)
    words = ["ingest", "docs", "--index", "index", "--pilot", "local", "--ranks", "2", "--run-folder", "runs"]
    command = [sys.executable, "-m", "aaflow.cli.main", *words]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/progress/*.json")):
        assert started.poll() is None, started.stderr.read() if started.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sent = time.monotonic()
    started.send_signal(how)
    out, err = started.communicate(timeout=30)
    assert time.monotonic() - sent < 10
    assert started.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted" in err or "terminated" in err
    run = next(tmp_path.glob("runs/*"))
    deadline = time.monotonic() + 10
    while ours := _of_run(run):
        assert time.monotonic() < deadline, ours
        time.sleep(0.1)
    with open_index(tmp_path / "index") as index:
        assert index.info().generation == 0


def _of_run(run: Path) -> list[str]:
    """Commands of living processes that name a run folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(run) in command:
                found.append(command)
    return found
