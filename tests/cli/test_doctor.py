from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from aaflow.cli import doctor as doctor_module
from aaflow.cli.doctor import CHECKS, Finding, diagnose, doctor

APP = typer.Typer()
APP.command()(doctor)
SITE = """
description = "Doctor's"
scheduler = "local"
launcher = "{launcher}"
pilot = "local"
run_folder = "{folder}/runs"
node = {{ cores = "auto", memory = "64MiB" }}
"""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "local.toml"
    path.write_text(SITE.format(launcher="mpiexec", folder=tmp_path))
    monkeypatch.setenv("AAFLOW_SITES", str(tmp_path))
    return path


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """Findings that stand in for all checks."""
    findings: list[Finding] = []
    monkeypatch.setattr(doctor_module, "CHECKS", [lambda: findings])
    return findings


def check(name: str) -> list[Finding]:
    return list(next(check for check in CHECKS if check.__name__ == name)())


def fake_mpiexec(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (folder / "python").symlink_to(os.path.realpath(sys.executable))
    path = folder / "mpiexec"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


def test_what_every_run_needs_works_here() -> None:
    findings = {finding.name: finding for finding in diagnose()}
    assert [name for name, finding in findings.items() if finding.required and not finding.ok] == []
    assert "2 ranks met" in findings["MPI"].detail
    assert findings["Parsl"].detail.split(".")[0].isdigit()
    assert {"Python", "site local", "FAISS", "Numba", "PyTorch", "shared memory", "open files"} <= set(findings)
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("aaflow-doctor-")]


def test_what_is_broken_ends_with_1_and_what_is_merely_off_does_not(only: list[Finding]) -> None:
    only.append(Finding("radio", False, "not [installed]", "buy one", required=False))
    result = CliRunner().invoke(APP, [])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["off   radio: not [installed]", "       → buy one"]
    only.append(Finding("engine", False, "lost", "find it"))
    result = CliRunner().invoke(APP, ["--json"])
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert not told["ok"]
    assert told["findings"][1] == {
        "name": "engine",
        "ok": False,
        "detail": "lost",
        "remedy": "find it",
        "required": True,
    }


def test_a_check_that_fails_by_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _odd_check() -> list[Finding]:
        raise RuntimeError("surprise")

    monkeypatch.setattr(doctor_module, "CHECKS", [_odd_check])
    [finding] = diagnose()
    assert (finding.name, finding.ok, finding.detail) == ("odd check", False, "RuntimeError: surprise")


def test_ranks_of_another_mpi_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpiexec(tmp_path, monkeypatch, "echo hello 0 1 1 MPICH 5; echo hello 0 1 1 MPICH 5")
    [finding] = check("_mpi")
    assert not finding.ok
    assert "every rank is alone: mpi4py uses MPICH 5" in finding.detail
    assert str(tmp_path / "mpiexec") in finding.detail


def test_an_mpi_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpiexec(tmp_path, monkeypatch, "echo no fabric >&2; exit 3")
    [finding] = check("_mpi")
    assert "ended with code 3: no fabric" in finding.detail


def test_an_mpi_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpiexec(tmp_path, monkeypatch, "exec sleep 100")
    monkeypatch.setattr(doctor_module, "MPI_SECONDS", 0.2)
    [finding] = check("_mpi")
    assert "did not meet" in finding.detail


def test_a_missing_launcher_and_a_wrong_site_have_a_remedy(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(site.parent))
    site.write_text(SITE.format(launcher="srun", folder=site.parent))
    [finding] = check("_mpi")
    assert "not on this machine" in finding.detail
    assert finding.remedy
    site.write_text("nodes = two")
    assert "local.toml" in check("_mpi")[0].detail
    [finding] = check("_site")
    assert not finding.ok
    assert "local.toml" in finding.detail


def test_problems_of_the_local_site_are_findings(site: Path) -> None:
    site.write_text(SITE.format(launcher="mpiexec", folder="/proc"))
    [finding] = check("_site")
    assert (finding.name, finding.ok, finding.required) == ("site local, run_folder", False, True)


def test_shared_memory_that_cannot_be_written_or_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    [finding] = doctor_module._shared_memory(Path("/proc"))
    assert not finding.ok
    assert finding.required
    monkeypatch.setattr(doctor_module, "ENOUGH_SHARED_MEMORY", 1 << 60)
    [finding] = doctor_module._shared_memory()
    assert not finding.ok
    assert not finding.required
    assert "--shm-size" in finding.remedy


def test_packages_are_looked_for_and_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_module._installed("X", "no-such-distribution", "get it").detail == "not installed"
    assert doctor_module._imports("X", "nosuchmodule", "x", "pip install x").remedy == "pip install x"
    (tmp_path / "brokenmodule.py").write_text("raise ImportError('bad libc')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor_module._imports("X", "brokenmodule", "x", "pip install x")
    assert "bad libc" in finding.detail
    assert finding.remedy == "pip install --force-reinstall x"


def test_few_open_files_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "ENOUGH_FILES", 1 << 40)
    [finding] = check("_open_files")
    assert not finding.ok
    assert finding.remedy.startswith("ulimit -n ")
