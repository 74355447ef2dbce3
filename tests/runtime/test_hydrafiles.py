"""Files that MPICH's launcher leaves in /tmp when it is killed go, and those of a living one stay."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aaflow.runtime import hydrafiles, processes, records
from aaflow.runtime.cleaning import clean_group


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /tmp, in which others on this machine run no launchers."""
    monkeypatch.setattr(hydrafiles, "PATTERN", str(tmp_path / "hydra_hwloc_xmlfile_*"))
    return tmp_path


@pytest.fixture
def proxy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A living proxy, the only process of this user."""
    started = subprocess.Popen([shutil.copy("/bin/sleep", folder / "hydra_pmi_proxy"), "60"])
    while processes.command_name(started.pid) != "hydra_pmi_proxy":  # Popen returns before a program has its name
        time.sleep(0.01)
    monkeypatch.setattr(processes, "own_pids", lambda: iter([started.pid]))
    yield started
    started.kill()
    started.wait()


def test_a_file_goes_when_no_proxy_lives_that_may_have_made_it(folder: Path, proxy: subprocess.Popen[bytes]) -> None:
    since = time.time_ns() - 1_000_000_000
    (file := folder / "hydra_hwloc_xmlfile_a1B2c3").touch()
    hydrafiles.remove_orphans(since)
    assert file.exists()
    proxy.kill()
    proxy.wait()
    hydrafiles.remove_orphans(since)
    assert not file.exists()


def test_a_file_that_a_living_proxy_is_too_old_to_have_made_goes(
    folder: Path, proxy: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hydrafiles, "_START_SECONDS", -10.0)
    (file := folder / "hydra_hwloc_xmlfile_a1B2c3").touch()
    hydrafiles.remove_orphans(time.time_ns() - 1_000_000_000)
    assert not file.exists()


def test_the_last_group_of_a_run_ends_well_and_removes_what_one_before_it_had_to_leave(
    folder: Path, proxy: subprocess.Popen[bytes]
) -> None:
    run = str(folder / "run")
    records.write(records.driver_path(run), {"began": time.time() - 1})
    (file := folder / "hydra_hwloc_xmlfile_a1B2c3").touch()
    clean_group(run, "first", list, since=time.time_ns() - 1_000_000_000)
    assert file.exists()
    proxy.kill()
    proxy.wait()
    clean_group(run, "last", list)
    assert not file.exists()


def test_a_file_of_before_is_none_of_this_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "own_pids", lambda: iter([]))
    (file := folder / "hydra_hwloc_xmlfile_a1B2c3").touch()
    hydrafiles.remove_orphans(time.time_ns() + 1_000_000_000)
    assert file.exists()
