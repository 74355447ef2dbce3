"""Programs of several ranks, whose assertions are the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from aaflow.scheduling.launch import find_launcher


def launch(ranks: int, program: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run a program of this folder, under an ``mpiexec`` that is beside the interpreter if there is one."""
    beside = Path(python).with_name("mpiexec")
    launcher = str(beside) if beside.exists() else find_launcher("mpiexec")
    argv = [launcher, "-n", str(ranks), python, str(Path(__file__).with_name(program)), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)


def run(ranks: int, program: str, *arguments: str) -> None:
    """Run a program, which ends well."""
    done = launch(ranks, program, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def run_cases(ranks: int, program: str, *arguments: str, python: str = sys.executable) -> None:
    """Run a program that says of each of its cases what went wrong, as ``conformance.py`` does."""
    done = launch(ranks, program, *arguments, python=python)
    outcomes = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert {name: problem for name, problem in outcomes.items() if problem is not None} == {}
    assert outcomes, done.stderr
    assert done.returncode == 0, done.stderr
