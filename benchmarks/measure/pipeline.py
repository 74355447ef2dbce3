"""One measurement each of the pipeline and of its baselines, on an index that is new every time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import aaflow
from aaflow.index import IndexSpec, Writer, open_index
from aaflow.operators.embedders import make_embedder
from aaflow.operators.operator import Item
from aaflow.runtime.progress import expected_units
from aaflow.runtime.runfolder import RunFolder
from aaflow.runtime.trace import OperatorTrace, busy_seconds
from aaflow.scheduling.launch import find_launcher
from aaflow.scheduling.placement import Placement
from aaflow.scheduling.site import Site

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
        corpus: folder to ingest.
        model: embedder.
        site: the cores; one rank on each.
        scratch: folder for indexes and run folders.
    """

    corpus: Path
    model: str
    site: Site
    scratch: Path

    @property
    def ranks(self) -> int:
        """One per core."""
        return len(self.site.node.cores)

    def placement(self, index: Path, ranks: int, *, fuse: bool = True) -> Placement:
        """The pipeline on ``ranks`` of the cores; unfused, every stage has so many ranks, and they share the cores."""
        workflow = aaflow.Workflow()
        workflow.load(self.corpus, id_column="id").transform().embed(self.model, device="cpu").upsert(index)
        site = replace(self.site, node=replace(self.site.node, cores=self.site.node.cores[:ranks]))
        return aaflow.place(aaflow.compile(workflow, site=site, ranks=ranks, fuse=fuse), site)


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Attributes:
        steady: seconds of its steady state; see the program's own description.
        cpu: CPU seconds of all ranks since each was ready; a model that is loaded is part of them.
        startup: seconds from the call until the last rank was set up.
        publish: seconds from the last rank's end to the end of the call.
        chunks: rows of the index.
        digest: of the index.
        busy: seconds that each operator computed, by its trace, summed over ranks.
        waited: seconds that each operator waited for input, summed over ranks.
        recorded: rows of the trace, one a batch of an operator, of the rank that has most.
    """

    steady: float
    cpu: float
    startup: float
    publish: float
    chunks: int
    digest: str
    busy: Mapping[str, float]
    waited: Mapping[str, float]
    recorded: int


def run_pipeline(work: Work, *, fuse: bool = True) -> Run:
    """The pipeline through aaflow and its local pilot.

    Unfused, its steady state lasts from when every rank of every stage is set up until the last one's end.
    """
    with _scratch(work) as folder:
        placement = work.placement(folder / "index", work.ranks, fuse=fuse)
        result = aaflow.run(placement, pilot="local", run_folder=folder / "runs")
        run = RunFolder(result.folder)
        stages = [
            [run.read_json(f"results/{stage.name}.{rank}.json") or {} for rank in range(stage.ranks)]
            for stage in result.placement.plan.stages
        ]
        ranks = [rank for stage in stages for rank in stage]
        begins = [rank["ready"] + max(rank["setup"].values()) for rank in ranks]
        begins = begins if len(stages) == 1 else [max(begins)] * len(ranks)
        steady = max(rank["ended"] - begin for rank, begin in zip(ranks, begins, strict=True))
        cpu = sum(rank["cpu"] for rank in ranks)
        last = max(rank["ended"] for rank in ranks)
        began = (result.folder / "placement.json").stat().st_mtime
        ended = (result.folder / "report.json").stat().st_mtime
        with open_index(folder / "index") as index:
            info = index.info()
        trace = result.trace()
        waited = {
            row["operator"]: row["wait_sum"] / 1e9
            for row in trace.group_by("operator").aggregate([("wait", "sum")]).to_pylist()
        }
        recorded = max(Counter(trace["rank"].to_pylist()).values())
        startup, publish = last - steady - began, ended - last
        return Run(steady, cpu, startup, publish, info.chunks, info.digest, busy_seconds(trace), waited, recorded)


def seconds_per_record(items: int = 20_000) -> float:
    """What the trace of one operator adds to a batch: a chain of a function that does nothing, with and without."""
    batch = Item(0, 0, pa.record_batch([pa.array([0])], ["n"]))
    seconds = {True: 0.0, False: 0.0}
    for recorded in (False, True, False, True):
        given = (batch for _ in range(items))
        began = time.perf_counter()
        for _ in OperatorTrace("nothing").record(_pass_on, given) if recorded else _pass_on(given):
            pass
        seconds[recorded] += time.perf_counter() - began
    return (seconds[True] - seconds[False]) / (2 * items)


def hash_rates(corpus: Path, *, size: int = 16_000_000, times: int = 7) -> list[float]:
    """GB of text per CPU second of the hash embedder: texts of 1000 bytes, 384 dimensions, memory used before."""
    texts, left = [], size
    for path in sorted(path for path in corpus.rglob("*") if path.is_file()):
        text = path.read_text()
        texts += [text[at : at + 1000] for at in range(0, len(text), 1000)]
        left -= len(text.encode())
        if left <= 0:
            break
    rows = pa.array(texts)
    vectors = np.zeros((len(rows), 384), np.float32)
    embedder, rates = make_embedder("hash", dimension=384), []
    for _ in range(times + 1):
        began = time.process_time()
        embedder.embed(rows, vectors)
        rates.append((size - left) / 1e9 / (time.process_time() - began))
    return rates[1:]  # the kernel was loaded in the first


def _pass_on(items: Iterable[Item]) -> Iterator[Item]:
    yield from items


def run_loop(work: Work, ranks: int) -> tuple[float, str]:
    """Seconds of the plain loop in ``ranks`` processes, and the digest of its index."""
    with _job(work, ranks) as (folder, placement, writer):
        spans = _launch(work, folder, ranks, {"mode": "loop", "epoch": writer.epoch})
        plan = placement.plan
        units = expected_units(plan)
        writer.publish(plan.work_key, sources=plan.tables["sources"], pruned=plan.tables["pruned"], units=units)
        with open_index(folder / "index") as index:
            return max(span["wall"] for span in spans), index.info().digest


def run_operators(work: Work) -> dict[str, dict[str, float]]:
    """Per operator alone on all ranks: ``wall`` seconds of the slowest rank, ``cpu`` seconds of all."""
    with _job(work, work.ranks) as (folder, _, writer):
        ranks = _launch(work, folder, work.ranks, {"mode": "operators", "epoch": writer.epoch})
    return {
        name: {
            "wall": max(rank[name]["wall"] for rank in ranks),
            "cpu": sum(rank[name]["cpu"] for rank in ranks),
        }
        for name in ranks[0]
    }


def run_encode(
    work: Work, *, processes: int, threads: int, batches: list[int], texts: int | None = None
) -> dict[int, float]:
    """Chunks per second of ``SentenceTransformer.encode``, by batch size."""
    with _job(work, 1) as (folder, _, writer):
        job = {"mode": "encode", "epoch": writer.epoch, "model": work.model, "batches": batches, "threads": threads}
        ranks = _launch(work, folder, processes, {**job, "texts": texts})
    chunks = sum(rank["texts"] for rank in ranks)
    return {batch: chunks / max(rank[str(batch)]["wall"] for rank in ranks) for batch in batches}


@contextmanager
def _scratch(work: Work) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=work.scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _job(work: Work, ranks: int) -> Iterator[tuple[Path, Placement, Writer]]:
    with _scratch(work) as folder:
        placement = work.placement(folder / "index", ranks)
        placement.save(folder)
        assert placement.plan.index is not None
        spec = IndexSpec.from_json(placement.plan.index["spec"])
        with Writer.acquire(folder / "index", spec, owner="a benchmark") as writer:
            yield folder, placement, writer


def _launch(work: Work, folder: Path, ranks: int, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    run = RunFolder(folder)
    run.write_json("job.json", job)
    argv = [find_launcher("mpiexec"), "-n", str(ranks), "-bind-to", "none", "-launcher", "fork"]
    subprocess.run([*argv, sys.executable, "-m", "measure.rank", str(folder)], cwd=HERE.parent, check=True)
    return [run.read_json(f"out.{rank}.json") or {} for rank in range(ranks)]
