from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import radical_workflow
from aaflow.index import open_index

pytestmark = [pytest.mark.serial, pytest.mark.timeout(900)]


def test_simulations_are_indexed_as_they_finish_in_the_session_that_runs_them(
    radical_turn: None, tmp_path: Path
) -> None:
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "VIRTUAL_ENV": str(scripts.parent),
        "PATH": os.pathsep.join([str(scripts), os.environ["PATH"]]),
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, str(radical_workflow.__file__), str(tmp_path / "demo")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    answer = dict(line.split(": ", 1) for line in ended.stdout.splitlines() if ": " in line)
    assert answer["source"] == "ball-11.txt"
    assert "restitution 0.85" in ended.stdout
    with open_index(tmp_path / "demo" / "index") as index:
        assert (index.info().documents, index.info().generation) == (12, 3)
