"""The communicators, for real: every case runs on 1, 2 and 3 MPI ranks and on the serial backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aaflow.scheduling.launch import find_launcher

PROGRAM = Path(__file__).with_name("communicator_program.py")


@pytest.mark.parametrize(("backend", "ranks"), [("serial", 1), ("mpi", 1), ("mpi", 2), ("mpi", 3)])
def test_tables_arrive_whole_at_the_right_ranks(backend, ranks):
    argv = [find_launcher("mpiexec"), "-n", str(ranks), sys.executable, str(PROGRAM), backend]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [f"rank{rank}-of-{ranks}-fine" for rank in range(ranks)]
