from __future__ import annotations

import stat
from pathlib import Path

from aaflow.runtime.runfolder import RunFolder


def test_a_run_folder_is_its_owners_alone(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "parent", "abcdef0123456789")
    assert "abcdef01" in run.path.name
    folders = [run.path, *(entry for entry in run.path.rglob("*") if entry.is_dir()), tmp_path / "parent"]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    assert {run.logs, run.errors, run.trace, run.progress, run.results, run.output, run.edges} <= set(folders)


def test_two_runs_of_one_plan_at_the_same_time_have_folders_of_their_own(tmp_path: Path) -> None:
    assert len({RunFolder.create(tmp_path, "0" * 64).path for _ in range(20)}) == 20


def test_json_is_written_at_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "0" * 64)
    run.write_json("results/a.json", {"name": "\udcff", "n": 1})
    run.write_json("results/a.json", {"name": "\udcff", "n": 2})
    assert run.read_json("results/a.json") == {"name": "\udcff", "n": 2}
    assert [path.name for path in run.results.iterdir()] == ["a.json"]


def test_what_was_not_written_reads_as_none(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "0" * 64)
    assert run.read_json("results/none.json") is None
    (run.path / "list.json").write_text("[1]")
    assert run.read_json("list.json") is None
