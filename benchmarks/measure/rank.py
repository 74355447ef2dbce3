"""What a rank of a baseline does: ``python -m measure.rank FOLDER``, under mpiexec.

FOLDER has ``placement.json`` of a plan, its tables, and ``job.json`` with ``mode``:

``loop``: the functions of the plan's stage, one called on the other's items: a plain loop, no queues, no trace, no
threads but those in which upsert commits. ``operators``: each function alone, over all its items, which lie in memory;
before that each ran once on a small piece, so that its compiled kernels are loaded. ``encode``:
``SentenceTransformer.encode`` over the chunks.

Every timing begins at a barrier of all ranks, after set-up (imports, model), and ends in each rank when it is done.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from aaflow.runtime.runfolder import RunFolder
from aaflow.runtime.stage import pin, use_one_thread
from aaflow.scheduling.placement import Placement


@dataclass
class Clock:
    """Seconds of this rank: of the clock and of its CPU, all threads."""

    comm: Any
    wall: float = 0.0
    cpu: float = 0.0

    def start(self) -> None:
        """Meet the other ranks, then count."""
        self.comm.Barrier()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        """What was counted."""
        return {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}

    def after_setup(self, items: Iterator[Any]) -> Iterator[Any]:
        """Items that start the clock when the first is asked for: whoever asks has set itself up."""
        self.start()
        yield from items


def main() -> None:
    """Do the job of a folder and write ``out.<rank>.json`` there."""
    folder = RunFolder(Path(sys.argv[1]))
    job = folder.read_json("job.json") or {}
    placement = Placement.load(folder.path)
    (stage,) = placement.plan.stages
    rank = int(os.environ.get("PMI_RANK", "0"))
    if job["mode"] == "encode":
        cores = sorted(placement.site.node.cores)
        os.sched_setaffinity(0, cores if job["threads"] > 1 else {cores[rank % len(cores)]})
    else:
        use_one_thread()
        pin(placement.slots[stage.name][rank])
    from mpi4py import MPI

    clock = Clock(MPI.COMM_WORLD)
    modes = {"loop": loop, "operators": operators, "encode": encode}
    folder.write_json(f"out.{rank}.json", modes[job["mode"]](job, placement, clock))


def chain(job: dict[str, Any], placement: Placement) -> list[tuple[str, Any]]:
    """The functions of the plan's only stage in this rank."""
    from aaflow.dataplane.communicator import communicator
    from aaflow.runtime.chain import RankContext, chain_of

    (stage,) = placement.plan.stages
    return chain_of(RankContext(placement.plan, stage, communicator(stage.communicator), job.get("epoch"), "cpu"))


def loop(job: dict[str, Any], placement: Placement, clock: Clock) -> dict[str, Any]:
    """The plain loop over all functions."""
    functions = [function for _, function in chain(job, placement)]
    items = clock.after_setup(functions[0](iter(())))
    for function in functions[1:]:
        items = function(items)
    for _ in items:
        pass
    return clock.stop()


def operators(job: dict[str, Any], placement: Placement, clock: Clock) -> dict[str, Any]:
    """Each function alone."""
    warm(chain(job, placement))
    items: list[Any] = []
    measured = {}
    for position, (name, function) in enumerate(chain(job, placement)):
        if position == 0:
            clock.start()
            items = list(function(iter(())))
        else:
            items = list(function(clock.after_setup(iter(items))))
        measured[name] = clock.stop()
    return measured


def warm(functions: list[tuple[str, Any]]) -> None:
    """Run what neither writes nor meets other ranks on two items, and the hash of rows that commits use."""
    from aaflow.hashing import row_digest_sum

    items: list[Any] = []
    for position, (name, function) in enumerate(functions):
        if name not in ("shuffle", "upsert"):
            items = list(islice(function(iter(items)), 2 if position == 0 else None))
    for item in items:
        if item.rows is not None:
            row_digest_sum(item.rows.slice(0, 10))


def encode(job: dict[str, Any], placement: Placement, clock: Clock) -> dict[str, Any]:
    """``encode`` of this rank's share of the chunks, once per batch size."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    from aaflow.operators.embedders.base import model_folder

    logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    torch.set_num_threads(job["threads"])
    texts: list[str] = []
    items: Any = iter(())
    for name, function in chain(job, placement):
        if name == "embed":
            break
        items = function(items)
    for item in items:
        if item.rows is not None:
            texts += item.rows["text"].to_pylist()
    texts = texts[: job["texts"]]
    mine = texts[clock.comm.rank :: clock.comm.size]
    model = SentenceTransformer(str(model_folder(job["model"])), device="cpu", local_files_only=True)
    model.encode(mine[:8])
    measured: dict[str, Any] = {"texts": len(mine)}
    for batch in job["batches"]:
        clock.start()
        model.encode(mine, batch_size=batch, show_progress_bar=False)
        measured[str(batch)] = clock.stop()
    return measured


if __name__ == "__main__":
    main()
