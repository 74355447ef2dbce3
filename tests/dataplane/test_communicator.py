"""The conformance suite on every backend that can be imported: each group of ranks runs all cases in one launch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from ranks import run, run_cases

from aaflow.dataplane.communicator import communicator

#: Backend and ranks of each group.
GROUPS = [("serial", 1), ("mpi", 1), ("mpi", 2), ("mpi", 3)]
if importlib.util.find_spec("pycylon") is not None:
    GROUPS += [("cylon", 1), ("cylon", 2), ("cylon", 3), ("cylon", 4)]


@pytest.mark.parametrize(("backend", "ranks"), GROUPS)
def test_a_communicator_does_what_all_do(backend: str, ranks: int) -> None:
    run_cases(ranks, "conformance.py", backend)


@pytest.mark.serial
@pytest.mark.parametrize("operation", ["shuffle", "broadcast", "gather", "all_gather", "reduce_topk"])
def test_a_column_of_more_than_2_gib_goes_in_rounds(operation: str) -> None:
    run(2, "large_program.py", operation, str(256 << 20))


def test_memory_of_a_node_is_used_again_and_nodes_exchange_one_message_a_pair() -> None:
    run(4, "window_program.py")


def test_ranks_without_an_mpi_library_say_so() -> None:
    code = "from aaflow.dataplane.communicator import communicator; communicator('mpi')"
    without = {**os.environ, "MPI4PY_LIBMPI": "/nonexistent/libmpi.so"}
    done = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=False)
    assert "DependencyError: communicator 'mpi' needs mpi4py and an MPI library: cannot load" in done.stderr


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="'tcp'"):
        communicator("tcp")
