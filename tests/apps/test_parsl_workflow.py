from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import parsl_workflow
from aaflow.index import open_index

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]


def test_simulations_are_indexed_as_they_finish_and_the_last_app_answers(tmp_path: Path) -> None:
    command = [sys.executable, str(parsl_workflow.__file__), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    answer = dict(line.split(": ", 1) for line in ended.stdout.splitlines() if ": " in line)
    assert answer["source"] == "ball-11.txt"
    assert "restitution 0.85" in ended.stdout
    with open_index(tmp_path / "index") as index:
        assert (index.info().documents, index.info().generation) == (12, 3)
