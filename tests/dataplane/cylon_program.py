"""The ``cylon`` communicator over a stand-in for pycylon: what it does on several ranks where that isn't installed.

``cylon_program.py conformance`` runs the conformance suite, ``import`` measures ranks that wait for one that imports
slowly, ``failures`` has one rank fail where all others would wait for it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import conformance
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from aaflow.dataplane import cylon
from aaflow.dataplane.cylon import CylonCommunicator
from aaflow.errors import CollectiveError


class Table:
    """Rows go where the first column says, and come in no order of ranks; the exchange waits spinning."""

    entered = 0

    def __init__(self, comm: Any, table: pa.Table) -> None:
        self.comm, self.table = comm, table

    @classmethod
    def from_arrow(cls, comm: Any, table: pa.Table) -> Table:
        assert all(column.num_chunks == 1 and column.chunk(0).offset == 0 for column in table.columns)
        return cls(comm, table)

    def shuffle(self, by: list[int]) -> Table:
        assert by == [0]
        Table.entered += 1
        parts = [self.table.filter(pc.equal(self.table[0], rank)) for rank in range(self.comm.size)]
        came = self.comm.alltoall(parts)
        own = came.pop(self.comm.rank)
        return Table(self.comm, pa.concat_tables([own, *reversed(came)]))

    def to_arrow(self) -> pa.Table:
        return self.table


class Env:
    def __init__(self, config: Any, distributed: bool) -> None:
        assert distributed
        self.context = config


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Every module of pycylon has what is taken from any; the first takes its time."""

    seconds = 0.0

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("pycylon") else None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "pycylon":
            time.sleep(self.seconds)
        module.Table, module.CylonEnv, module.MPIConfig = Table, Env, lambda comm: comm  # type: ignore[attr-defined]


def slow_import() -> None:
    from mpi4py import MPI

    StandIn.seconds = 2.0 if MPI.COMM_WORLD.rank == 0 else 0.0
    before = time.process_time()
    comm = CylonCommunicator()
    used = time.process_time() - before
    with conformance.together(comm):
        assert comm.rank == 0 or used < 0.2, f"{used:.2f} s of a core while rank 0 imports"


def failures() -> None:
    comm = CylonCommunicator(round_bytes=2000)
    table = pa.table({"n": range(1000)})
    to = (table["n"].to_numpy() % comm.size).astype("int32")
    comm.shuffle(table, to)
    assert Table.entered > 4, "several rounds"
    last = comm.size - 1
    for name, call in (("_plain", 1), ("_plain", 3), ("_original", 1), ("_original", 3)):
        works = getattr(cylon, name)
        calls = 0

        def fails(*arguments: Any, works: Any = works, call: int = call) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and comm.rank == last:
                raise pa.ArrowMemoryError("malloc of size 4711 failed")
            return works(*arguments)

        setattr(cylon, name, fails)
        refused = pytest.raises(CollectiveError, match=f"rank {last} can't take part: malloc of size 4711")
        with conformance.together(comm), refused:
            comm.shuffle(table, to)
        setattr(cylon, name, works)
        with conformance.together(comm):
            mine = [n for n in range(1000) if n % comm.size == comm.rank]
            assert comm.shuffle(table, to)["n"].to_pylist() == mine * comm.size


if __name__ == "__main__":
    sys.meta_path.insert(0, StandIn())
    {"conformance": lambda: conformance.main("cylon"), "import": slow_import, "failures": failures}[sys.argv[1]]()
