"""Files that MPICH's launcher leaves in /tmp when it is killed go, and those of a living one stay."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from aaflow.runtime import hydrafiles, processes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /tmp, in which others on this machine run no launchers."""
    monkeypatch.setattr(hydrafiles, "PATTERN", str(tmp_path / "hydra_hwloc_xmlfile_*"))
    return tmp_path


def test_a_file_goes_when_no_proxy_lives_that_may_have_made_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.copy("/bin/sleep", folder / "hydra_pmi_proxy")
    proxy = subprocess.Popen([program, "60"])
    while processes.command_name(proxy.pid) != "hydra_pmi_proxy":  # Popen returns before a program has its name
        time.sleep(0.01)
    monkeypatch.setattr(processes, "own_pids", lambda: iter([proxy.pid]))
    try:
        since = time.time_ns() - 1_000_000_000
        (file := folder / "hydra_hwloc_xmlfile_a1B2c3").touch()
        hydrafiles.remove_orphans(since)
        assert file.exists()
    finally:
        proxy.kill()
        proxy.wait()
    hydrafiles.remove_orphans(since)
    assert not file.exists()


def test_a_file_of_before_is_none_of_this_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "own_pids", lambda: iter([]))
    (file := folder / "hydra_hwloc_xmlfile_a1B2c3").touch()
    hydrafiles.remove_orphans(time.time_ns() + 1_000_000_000)
    assert file.exists()
