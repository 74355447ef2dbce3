"""Leftovers are found by the run folder, and only those of dead runs on this node."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aaflow.runtime import processes, records, sharedfiles
from aaflow.runtime.leftovers import Leftover, find_leftovers, remove
from aaflow.runtime.sharedfiles import SharedFile


@pytest.fixture
def dead() -> dict[str, Any]:
    """The identity of a process of this node that has ended."""
    process = subprocess.Popen(["sleep", "60"])
    found = processes.find_process(process.pid)
    assert found is not None
    process.kill()
    process.wait()
    return processes.identity(found)


@pytest.fixture
def shared() -> Iterator[SharedFile]:
    """A shared-memory file that nobody uses."""
    path = Path(sharedfiles.FOLDER) / f"aaflow-test-{uuid.uuid4().hex}"
    path.write_bytes(b"x")
    yield SharedFile(str(path), path.stat().st_ino)
    path.unlink(missing_ok=True)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the run ``lost-1``."""
    started = subprocess.Popen(["sleep", "3600"], env={**os.environ, processes.RUN: "lost-1"})
    yield started
    started.kill()
    started.wait()


def record_run(runs: Path, name: str, driver: dict[str, Any], files: list[SharedFile]) -> str:
    folder = str(runs / name)
    records.write(records.driver_path(folder), {**driver, "run": name})
    rank = {**processes.identity(), "rank": 0, "shared": [asdict(file) for file in files]}
    records.write(os.path.join(folder, "ranks", "work.0.json"), rank)
    return folder


def test_a_dead_run_is_found_and_removed(
    tmp_path: Path, dead: dict[str, Any], shared: SharedFile, process: subprocess.Popen[bytes]
) -> None:
    folder = record_run(tmp_path, "lost-1", dead, [shared])
    (found,) = find_leftovers(str(tmp_path))
    own = processes.find_process(process.pid)
    assert own is not None
    assert found == Leftover(folder, "lost-1", (own,), (shared,))
    assert remove(found) == ()
    assert process.wait(timeout=2) == -9
    assert not os.path.exists(shared.path)
    assert find_leftovers(str(tmp_path)) == []


def test_runs_with_a_living_driver_or_on_other_nodes_are_left_alone(
    tmp_path: Path, dead: dict[str, Any], shared: SharedFile
) -> None:
    record_run(tmp_path, "alive", processes.identity(), [shared])
    record_run(tmp_path, "elsewhere", {**dead, "host": "another"}, [shared])
    record_run(tmp_path, "rebooted", {**dead, "boot": "earlier"}, [shared])
    (tmp_path / "notes").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/driver.json").write_text("{")
    assert find_leftovers(str(tmp_path)) == []
    assert find_leftovers(str(tmp_path / "missing")) == []


def test_a_run_that_gave_up_is_over_although_its_process_lives(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    record_run(tmp_path, "lost-1", {**processes.identity(), "ended": "it is done"}, [])
    (found,) = find_leftovers(str(tmp_path))
    assert [leftover.pid for leftover in found.processes] == [process.pid]


def test_a_reused_pid_is_not_taken_for_the_driver(tmp_path: Path, shared: SharedFile) -> None:
    me = processes.identity()
    record_run(tmp_path, "lost-1", {**me, "start": me["start"] - 1}, [shared])
    assert [leftover.run for leftover in find_leftovers(str(tmp_path))] == ["lost-1"]


def test_shared_memory_that_is_mapped_open_or_another_file_stays(shared: SharedFile) -> None:
    code = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 1)
print(flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, shared.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        user.stdout.readline()
        assert shared in sharedfiles.mapped_by(user.pid)
        assert sharedfiles.remove_unused([shared]) == []
        user.communicate(b"")
    with open(shared.path, "rb"):
        assert sharedfiles.remove_unused([shared]) == []
    assert sharedfiles.remove_unused([SharedFile(shared.path, shared.inode + 1)]) == []
    assert sharedfiles.remove_unused([shared]) == [shared]


def test_a_process_is_killed_by_identity_not_by_pid(process: subprocess.Popen[bytes]) -> None:
    own = processes.find_process(process.pid)
    assert own is not None
    processes.kill(processes.Process(own.pid, own.start + 1))
    assert process.poll() is None
    processes.kill(own)
    assert process.wait(timeout=2) == -9
    processes.kill(own)


def test_the_job_of_an_engine_whose_driver_died_is_cancelled(
    tmp_path: Path, dead: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scancel = tmp_path / "scancel"
    scancel.write_text(f"#!/bin/sh\ntest ! -e {tmp_path}/busy && echo $@ >{tmp_path}/cancelled\n")
    scancel.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    runs = tmp_path / "runs"
    folder = record_run(runs, "lost-1", dead, [])
    records.write(records.engine_path(folder), {"run": "lost-1", "temporary": str(tmp_path / "tmp"), "since": 0})
    records.note_engine_job(folder, "slurm", "12")
    (tmp_path / "busy").touch()
    (found,) = find_leftovers(str(runs))
    assert found.job == ("slurm", "12")
    assert remove(found) == ("batch job 12",)
    (tmp_path / "busy").unlink()
    assert remove(found) == ()
    assert (tmp_path / "cancelled").read_text() == "12\n"
    assert find_leftovers(str(runs)) == []


#: A process that takes longer to die than a look at it: it opens a file and gives 512 MB of memory back.
DIES_SLOWLY = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(-1, 1 << 29) as memory:
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def slow(shared: SharedFile) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the run ``lost-1`` that has a shared-memory file open and dies slowly."""
    command, environment = [sys.executable, "-c", DIES_SLOWLY, shared.path], {**os.environ, processes.RUN: "lost-1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started
        started.kill()


def test_shared_memory_that_a_dying_process_has_not_closed_yet_is_removed(
    shared: SharedFile, slow: subprocess.Popen[bytes]
) -> None:
    assert sharedfiles.remove_unused([shared]) == []
    slow.kill()
    while processes.has_memory(slow.pid):
        pass
    assert sharedfiles.remove_unused([shared]) == [shared]


def test_what_was_ended_has_closed_its_files(slow: subprocess.Popen[bytes]) -> None:
    assert processes.end_marked(processes.RUN, "lost-1") == []
    assert processes.find_process(slow.pid) is None
