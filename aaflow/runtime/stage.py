"""The main program of a rank: ``python -m aaflow.runtime.stage PLACEMENT STAGE``, under mpiexec or srun.

``PLACEMENT`` is the placement.json of a run folder.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aaflow.errors import PeerLost
from aaflow.runtime.group import keep_node, register_rank
from aaflow.runtime.records import log_path
from aaflow.runtime.runfolder import RunFolder

if TYPE_CHECKING:
    from aaflow.dataplane.communicator import Communicator
    from aaflow.operators.load import Load
    from aaflow.runtime.trace import OperatorTrace
    from aaflow.scheduling.placement import Placement
    from aaflow.scheduling.slot import Slot

#: What torch calls the accelerators of each kind; its builds for ROCm say "cuda" too.
TORCH_DEVICES = {"cuda": "cuda", "rocm": "cuda", "level-zero": "xpu"}
#: Seconds between two notes of how far a rank is.
PROGRESS_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this rank of a stage; 0 when it did its work."""
    placement_path, stage_name = (arguments or sys.argv[1:])[:2]
    folder = RunFolder(Path(placement_path).parent)
    use_one_thread()
    rank = _rank_of_environment()
    if not keep_node(str(folder.path), stage_name):
        print(f"rank {rank} of stage {stage_name!r} comes when its group has ended", file=sys.stderr)
        return 1
    try:
        from aaflow.scheduling.placement import Placement

        placement = Placement.load(folder.path)
        pin(placement.slots[stage_name][rank])
        if placement.site.interconnect:
            from aaflow.scheduling.interface import mpi_variables

            for variable, value in mpi_variables(placement.site.interconnect).items():
                os.environ.setdefault(variable, value)  # what a user or a site said already counts
        from aaflow.dataplane.communicator import communicator

        comm = communicator(placement.plan.stage(stage_name).communicator)
        _check_size(comm, placement, stage_name)
        register_rank(str(folder.path), stage_name, rank)
        _run_rank(folder, placement, stage_name, comm)
    except BaseException as error:
        _fail(folder, stage_name, rank, error)
        return 1
    return 0


def use_one_thread() -> None:
    """Have libraries that start threads of their own, some as they are imported, start none."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pin(slot: Slot) -> None:
    """Pin this process to its slot: cores and accelerators.

    Cores that this process may not use (a smaller allocation, an oversubscribed machine) are taken modulo those it may.
    """
    allowed = sorted(os.sched_getaffinity(0))
    wanted = {core if core in allowed else allowed[core % len(allowed)] for core in slot.cores}
    os.sched_setaffinity(0, wanted)
    if slot.accelerators is not None:
        os.environ[slot.accelerators.variable] = ",".join(slot.accelerators.ids)


def _rank_of_environment() -> int:
    """This process's rank before MPI is up: PMI (MPICH, Intel, Cray), Open MPI, PMIx, Slurm; 0 for a process alone."""
    for variable in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PALS_RANKID", "SLURM_PROCID"):
        if variable in os.environ:
            return int(os.environ[variable])
    return 0


def _check_size(comm: Communicator, placement: Placement, stage: str) -> None:
    ranks = placement.plan.stage(stage).ranks
    if comm.size != ranks:
        from aaflow.errors import PlacementError

        raise PlacementError(
            f"stage {stage!r} was placed on {ranks} ranks and started with {comm.size}: "
            "is the launcher that of another MPI library than mpi4py's? See 'aaflow doctor'."
        )


def _run_rank(folder: RunFolder, placement: Placement, stage_name: str, comm: Communicator) -> None:
    from aaflow.compiler.edges import QUEUE_BOUND
    from aaflow.operators.load import Load
    from aaflow.runtime.chain import RankContext, chain_of
    from aaflow.runtime.engine import run_chain
    from aaflow.runtime.trace import OperatorTrace, write_trace
    from aaflow.runtime.wiring import Wiring

    plan = placement.plan
    stage = plan.stage(stage_name)
    run = folder.read_json("run.json") or {}
    seen = placement.slots[stage_name][comm.rank].accelerators
    device = TORCH_DEVICES[seen.kind] if seen is not None else "cpu"
    began = time.time()
    # Recorded before its edges close: what their other ends record follows from it.
    with Wiring(folder, placement, stage, comm.rank) as wiring, _recorded(folder, stage_name, comm.rank):
        spool = folder.path / "spool"
        functions = chain_of(RankContext(plan, stage, comm, run.get("epoch"), device, wiring.allocate, spool))
        traced = [(OperatorTrace(name), function) for name, function in functions]
        traces = [trace for trace, _ in traced]
        wiring.count_blocked = traces[-1].count_blocked
        wiring.connect()
        ready, cpu = time.time(), time.process_time()
        items = run_chain(traced, wiring.inlet, QUEUE_BOUND, wiring.cancel)
        load = next((function for _, function in functions if isinstance(function, Load)), None)
        with _Progress(folder, f"{stage_name}.{comm.rank}", traces, load), contextlib.closing(items):
            wiring.drain(items)
    write_trace(folder.trace / f"{stage_name}.{comm.rank}.arrow", traces, stage_name, comm.rank)
    summary: dict[str, Any] = {
        "began": began,
        "ready": ready,
        "ended": time.time(),
        "cpu": time.process_time() - cpu,  # since it was ready, all threads
        "setup": {trace.operator: trace.setup for trace in traces},
        "rows": {trace.operator: trace.rows for trace in traces},
        "channels": wiring.channels(),
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    folder.write_json(f"results/{stage_name}.{comm.rank}.json", summary)


class _Progress:
    """Notes how many rows every operator gave, while a rank works and once when it is done; and what ``load`` read."""

    def __init__(self, folder: RunFolder, name: str, traces: Sequence[OperatorTrace], load: Load | None) -> None:
        self._load = load
        self._folder = folder
        self._name = f"progress/{name}.json"
        self._traces = traces
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._note_on, name="progress", daemon=True)

    def __enter__(self) -> _Progress:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._note(done=kind is None)

    def _note_on(self) -> None:
        while not self._done.wait(PROGRESS_SECONDS):
            self._note(done=False)

    def _note(self, *, done: bool) -> None:
        rows = {trace.operator: trace.rows for trace in self._traces}
        ended = [trace.operator for trace in self._traces if trace.ended]
        read = [self._load.read, self._load.bytes] if self._load is not None else None
        self._folder.write_json(self._name, {"rows": rows, "ended": ended, "read": read, "done": done})


@contextlib.contextmanager
def _recorded(folder: RunFolder, stage: str, rank: int) -> Iterator[None]:
    """Record what an error says as soon as it leaves the block."""
    try:
        yield
    except BaseException as error:
        _record(folder, stage, rank, error)
        raise


def _fail(folder: RunFolder, stage: str, rank: int, error: BaseException) -> None:
    """Say why, then end the whole group: the others may wait for this rank in a collective."""
    if folder.read_json(f"errors/{stage}.{rank}.json") is None:
        _record(folder, stage, rank, error)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(1)


def _record(folder: RunFolder, stage: str, rank: int, error: BaseException) -> None:
    """Say in the log and in ``errors/`` what a rank failed with."""
    # Launchers may lose what a rank said just before its group is ended; who reads the record finds this.
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    with open(log_path(str(folder.path), stage), "a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(text)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    record: dict[str, Any] = {
        "stage": stage,
        "rank": rank,
        "type": type(error).__name__,
        "error": str(error),
        "notes": getattr(error, "__notes__", []),
        "traceback": text,
        "where": f"{place[0].filename}:{place[0].lineno}" if place else "",
        "lost": [error.stage, error.rank] if isinstance(error, PeerLost) else None,
        "time": time.time(),
    }
    folder.write_json(f"errors/{stage}.{rank}.json", record)


if __name__ == "__main__":
    sys.exit(main())
