"""Runs that go on without the command that started them: here as processes in the background."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ingestions import Ingestion, wait_for, write_documents

from aaflow.index import open_index
from aaflow.runtime import processes, records

pytestmark = pytest.mark.serial
Cli = Callable[..., Any]


@pytest.fixture
def ingestion(tmp_path: Path) -> Iterator[Ingestion]:
    made = Ingestion(tmp_path, tmp_path / "docs")
    write_documents(made.docs, range(8), edition=1)
    yield made
    made.end()


def test_a_run_in_the_background_is_found_again(cli: Cli, made: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    words = ["ingest", corpus, "--index", tmp_path / "index", "--pilot", "local", "--ranks", 2, "--dim", 64]
    words += ["--partitions", 8, "--id-column", "id", "--metadata", "year:int64", "--run-folder", tmp_path / "runs"]
    started = cli(*words, "--detach", "--json").json()
    run, there = started["run"], ["--run-folder", tmp_path / "runs"]
    assert started["job"] is None
    attached = cli("attach", *there, "--json")
    assert (attached.code, attached.json()["state"]) == (0, "done")
    with open_index(tmp_path / "index") as index:
        assert index.info().digest == made["digest"]
    [shown] = cli("status", run, *there, "--json").json()["runs"]
    assert (shown["run"], shown["state"], shown["exit_code"], shown["error"]) == (run, "done", 0, None)
    assert cli("logs", run, *there, "--failed").out == f"run {run}: nothing failed\n"
    assert cli("cancel", run, *there).out == f"run {run} is done\n"


def test_what_failed_is_shown_with_its_traceback(cli: Cli, ingestion: Ingestion) -> None:
    ingestion.apply = 'function = "fault_operators:refuse"\noptions = { source = "0003.txt" }'
    ingestion.start([*ingestion.command("local"), "--detach"]).communicate(timeout=60)
    there = ["--run-folder", ingestion.folder / "runs"]
    attached = cli("attach", *there)
    assert attached.code == 1
    assert "is failed: stage" in attached.err
    [log] = [log for log in cli("logs", *there, "--failed", "--json").json()["logs"] if log["ranks"]]
    (rank,) = [rank for rank in log["ranks"] if rank["error"]]
    assert rank["error"] == "ValueError: 0003.txt is not to my taste"
    assert rank["traceback"].startswith("Traceback (most recent call last)")
    assert "not to my taste" in cli("logs", *there, "--failed").out


def test_a_run_that_is_cancelled_ends_and_leaves_nothing(cli: Cli, ingestion: Ingestion) -> None:
    held = ingestion.folder / "held"
    held.mkdir()
    command = ingestion.start([*ingestion.command("local"), "--detach"], FAULTS_HOLD=str(held), FAULTS_BATCHES="1")
    out, _ = command.communicate(timeout=60)
    folder, there = json.loads(out)["run_folder"], ["--run-folder", ingestion.folder / "runs"]
    wait_for(lambda: len(list(held.iterdir())) == 2)
    [shown] = cli("status", *there, "--json").json()["runs"]
    assert shown["state"] == "running"
    driver = records.read(records.driver_path(folder))
    assert driver is not None
    assert shown["words"] == f"its driver runs on {os.uname().nodename} (pid {driver['pid']})"
    assert cli("cancel", *there).out == f"run {Path(folder).name} is cancelled\n"
    wait_for(lambda: not ingestion.alive(), 10)
    assert not processes.is_alive(processes.read_process(driver))
    assert cli("attach", *there).code == 130
