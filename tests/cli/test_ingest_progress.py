"""Progress: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import aaflow
from aaflow.cli.progress import watch_bytes, watch_progress
from aaflow.runtime.runfolder import RunFolder


@pytest.fixture
def plan(tmp_path: Path) -> aaflow.Plan:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("some text")
    workflow = aaflow.Workflow()
    workflow.load(tmp_path / "docs").transform().embed("hash", dimension=8).upsert(tmp_path / "index")
    return aaflow.compile(workflow, site="local", ranks=2)


def drawn(plan: aaflow.Plan, folder: Path, notes: list[dict[str, Any] | None]) -> str:
    run = RunFolder.create(folder, plan.digest)
    for rank, note in enumerate(notes):
        if note is not None:
            run.write_json(f"progress/{plan.stages[0].name}.{rank}.json", note)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    with watch_progress(console, plan, quiet=False) as look:
        assert look is not None
        look(run)
    return out.getvalue()


def note(transformed: int, embedded: int, ended: list[str], read: int = 0) -> dict[str, Any]:
    rows = {"transform": transformed, "embed": embedded}
    return {"rows": rows, "ended": ended, "read": [read, 1000], "done": False}


def test_nobody_watches_json(plan: aaflow.Plan) -> None:
    with watch_progress(Console(file=io.StringIO(), force_terminal=True), plan, quiet=True) as look:
        assert look is None


def test_the_total_is_shown_once_every_rank_knows_it(
    plan: aaflow.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aaflow.cli.progress.PATIENCE", -1.0)
    assert "waiting for its task group" in drawn(plan, tmp_path, [None, None])
    assert "40/?" in drawn(plan, tmp_path, [note(90, 40, ["load", "transform"]), None])
    both = drawn(plan, tmp_path, [note(90, 40, ["load", "transform"]), note(10, 5, ["load", "transform"])])
    assert " 45/100" in both
    assert "rows/s" in both
    assert "running" in both


def test_until_then_it_is_estimated_from_the_bytes_that_were_read(
    plan: aaflow.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aaflow.cli.progress.PATIENCE", -1.0)
    assert "40/?" in drawn(plan, tmp_path, [note(90, 40, [], 300), None])
    assert "45/~400" in drawn(plan, tmp_path, [note(90, 40, [], 300), note(10, 5, [], 200)])
    assert "45/100" in drawn(plan, tmp_path, [note(90, 40, ["transform"], 300), note(10, 5, ["transform"], 200)])


def test_what_is_quick_shows_no_bar(plan: aaflow.Plan, tmp_path: Path) -> None:
    assert "rows/s" not in drawn(plan, tmp_path, [note(90, 40, []), note(10, 5, [])])


def test_a_pipe_gets_a_line_when_a_batch_job_goes_on(plan: aaflow.Plan, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, plan.digest)
    out = io.StringIO()
    with watch_progress(Console(file=out), plan, quiet=False) as look:
        assert look is not None
        look(run)
        for words in (
            "Slurm job 7 waits in partition batch (Priority)",
            "Slurm job 7 waits in partition batch (Resources), expected to start at 2026-11-21 10:00:00",
            "Slurm job 7 runs on node[0-3]",
        ):
            run.write_json("status.json", {"pilot": words})
            look(run)
            look(run)
    assert out.getvalue().splitlines() == [
        "Slurm job 7 waits in partition batch (Priority)",
        "Slurm job 7 runs on node[0-3]",
    ]


def test_an_operation_on_an_index_draws_its_bytes_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(patience: float, *, quiet: bool = False, terminal: bool = True) -> str:
        monkeypatch.setattr("aaflow.cli.progress.PATIENCE", patience)
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=100)
        with watch_bytes("verifying", quiet=quiet, console=console) as advance:
            advance(1_000_000, 4_000_000)
        return out.getvalue()

    assert "verifying" in drawn(-1.0)
    assert "1.0/4.0 MB" in drawn(-1.0)
    assert "verifying" not in drawn(60.0)
    assert drawn(-1.0, quiet=True) == drawn(-1.0, terminal=False) == ""
