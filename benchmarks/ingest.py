"""The whole pipeline against the bare loop of its parts, the bound of its parts, and a bare ``encode``.

    python benchmarks/ingest.py [--quick] [--case texts|records|minilm …] [--rounds N] [--json FILE]

Per round and in turns, each on an index that is new and in processes that are fresh, with as many ranks as cores:

pipeline: ``load → transform → embed → upsert`` through aaflow and its local pilot. Its **steady state** lasts, in each
rank, from the moment when the rank is ready and the last of its operators is set up (both from ``results/`` of the run
folder: ``ready`` plus the longest ``setup``: imports, MPI, kernels, the model) until the rank's end (``ended``), when
all of its units are durable and its trace is written; the figure is the longest of all ranks. It holds the filling and
the emptying of the pipeline. Start-up (from the call until then) and publishing stand beside it.
loop: the same functions called on each other's items by a plain Python loop, no queues or trace, no threads but those
in which upsert commits, which the pipeline has too; in as many
processes as there are ranks (which exchange rows as the pipeline does) and in one. From a barrier after set-up.
bound: the larger of the slowest operator alone on all ranks (``wall``) and the CPU seconds of all operators alone
divided by the cores. Operators alone have their items in memory and their kernels loaded. The exchange between ranks
is a part of upsert, whose pattern it is.
trace: what recording a batch costs (a function that does nothing, with and without, in this process) times the batches
that the busiest rank recorded.
encode (minilm): ``SentenceTransformer.encode`` over the same chunks on the same cores; of batches of 8, 32 and 64 rows,
in one process with a thread per core and in a process per core, the fastest in a trial.

Ratios are taken inside a round. With the hash embedder, the CPU seconds of the pipeline stand against those of its
operators too: that ratio says what threads, queues and the trace cost, and others on the machine hardly touch it.
A round in which other processes used more than a tenth of the cores does not count and is run again, up to twice the
rounds asked for (not with --quick); if too few are calm, the calmest count, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure.corpus import CORPORA
from measure.figures import Figure, figure, ratios
from measure.machine import watched
from measure.pipeline import Work, hash_rates, run_encode, run_loop, run_operators, run_pipeline, seconds_per_record
from rich.console import Console
from rich.table import Table

from aaflow.scheduling.sitefile import load_site

#: Others may use so much of the cores in a round that counts.
CALM = 0.10
BATCHES = (8, 32, 64)
SIZES = {"texts": (256_000_000, 16_000_000), "records": (256_000_000, 12_000_000), "minilm": (1000, 160)}


@dataclass(frozen=True)
class Encoder:
    """How ``encode`` is at its best here."""

    processes: int
    threads: int
    batch: int
    tried: dict[str, float]


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description="The ingestion pipeline against its parts.")
    parser.add_argument("--quick", action="store_true", help="small corpora and two rounds: a minute or two")
    parser.add_argument("--case", action="append", choices=sorted(SIZES), help="one of them only; may be repeated")
    parser.add_argument("--rounds", type=int, help="that count; by default 5, and 2 with --quick")
    parser.add_argument("--json", type=Path, help="write all figures there")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    console = Console()
    found = {}
    with tempfile.TemporaryDirectory(prefix="aaflow-bench-") as scratch:
        for case in arguments.case or list(SIZES):
            work = _work(case, SIZES[case][1 if arguments.quick else 0], Path(scratch))
            found[case] = measure(work, case, rounds, rounds if arguments.quick else 2 * rounds, console)
            show(case, found[case], work, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=_plain), encoding="utf-8")


def measure(work: Work, case: str, rounds: int, most: int, console: Console) -> dict[str, Any]:
    """A case: as many rounds as count, ``most`` at most."""
    encoder = choose_encoder(work, trials=1 if rounds == most else 2, console=console) if case == "minilm" else None
    warmed = run_pipeline(work)  # compiles kernels where no run has before, and fills the page cache
    done: list[dict[str, Any]] = []
    while len([each for each in done if each["others"] <= CALM]) < rounds and len(done) < most:
        done.append(_round(work, encoder))
        console.print(f"{case}: {_line(done[-1])}", highlight=False)
    counted = sorted(done, key=lambda each: each["others"])[:rounds]
    names = [name for name in done[0] if isinstance(done[0][name], float) and name != "others"]
    figures = {name: figure([each[name] for each in counted]) for name in names}
    against = {"pipeline / bound": ratios(figures["pipeline"], figures["bound"])}
    against["trace / pipeline"] = ratios(figures["trace"], figures["pipeline"])
    against["pipeline / loop"] = ratios(figures["pipeline"], figures["loop, a process a core"])
    if encoder is None:
        against["CPU of the pipeline / CPU of all operators"] = ratios(
            figures["CPU of the pipeline / cores"], figures["CPU of all / cores"]
        )
    if case == "texts":
        against["hash kernel: GB of text per CPU second"] = figure(hash_rates(work.corpus))
    if encoder is not None:
        throughput = figure([warmed.chunks / each["pipeline"] for each in counted])
        against["throughput / encode"] = ratios(throughput, figures["encode chunks/s"])
    return {
        "chunks": warmed.chunks,
        "figures": figures,
        "ratios": against,
        "calm": max(each["others"] for each in counted) <= CALM,
        "encoder": encoder and vars(encoder),
        "counted": counted,
        "rounds": done,
    }


def _round(work: Work, encoder: Encoder | None) -> dict[str, Any]:
    with watched() as seen:
        run = run_pipeline(work)
        loop, digest = run_loop(work, work.ranks)
        alone, other_digest = run_loop(work, 1)
        operators = run_operators(work)
        rate = encode(work, encoder) if encoder is not None else None
    if not run.digest == digest == other_digest:
        sys.exit("the pipeline and the loops made different indexes: do not trust these figures")
    slowest = max(each["wall"] for each in operators.values())
    divided = sum(each["cpu"] for each in operators.values()) / work.ranks
    found = {
        "pipeline": run.steady,
        "CPU of the pipeline / cores": run.cpu / work.ranks,
        "trace": run.recorded * seconds_per_record(),
        "start-up": run.startup,
        "publish": run.publish,
        "loop, a process a core": loop,
        "loop, one process": alone,
        "slowest operator": slowest,
        "CPU of all / cores": divided,
        "bound": max(slowest, divided),
    }
    found |= {"encode chunks/s": rate} if rate is not None else {}
    return {**found, "operators": operators, "busy": run.busy, "waited": run.waited, "others": seen.others}


def choose_encoder(work: Work, *, trials: int, console: Console) -> Encoder:
    """The fastest way to call ``encode`` here, by trials of each over some of the chunks."""
    tried: dict[tuple[int, int, int], float] = {}
    for _ in range(trials):
        for processes, threads in ((1, work.ranks), (work.ranks, 1)):
            rates = run_encode(work, processes=processes, threads=threads, batches=list(BATCHES), texts=128)
            for batch, rate in rates.items():
                key = (processes, threads, batch)
                tried[key] = max(rate, tried.get(key, 0.0))
    named = {f"{p} x {t} threads, batch {b}": rate for (p, t, b), rate in tried.items()}
    console.print("encode, chunks/s:", ", ".join(f"{name}: {rate:.1f}" for name, rate in named.items()))
    best = max(tried, key=lambda key: tried[key])
    return Encoder(*best, tried=named)


def encode(work: Work, encoder: Encoder) -> float:
    """Chunks per second of ``encode`` at its best."""
    rates = run_encode(work, processes=encoder.processes, threads=encoder.threads, batches=[encoder.batch])
    return rates[encoder.batch]


def show(case: str, found: dict[str, Any], work: Work, console: Console) -> None:
    """The table of a case."""
    counted = "" if found["calm"] else "; NOT calm: others used the cores"
    title = f"{case}: {found['chunks']} chunks, {work.ranks} ranks, embedder {work.model}{counted}"
    table = Table("", "median (least..most)", title=title, title_justify="left")
    for name, each in found["figures"].items():
        table.add_row(name if "/s" in name else f"{name}, s", str(each))
    table.add_section()
    targets = {
        "pipeline / bound": "at most 1.25",
        "trace / pipeline": "at most 0.01",
        "throughput / encode": "at least 0.9",
        "hash kernel: GB of text per CPU second": "at least 0.5",
    }
    for name, each in found["ratios"].items():
        table.add_row(f"{name} ({targets[name]})" if name in targets else name, str(each), style="bold")
    table.add_section()
    for name in found["rounds"][0]["operators"]:
        wall, cpu = (figure([each["operators"][name][key] for each in found["counted"]]) for key in ("wall", "cpu"))
        busy = figure([each["busy"].get(name, 0.0) for each in found["counted"]])
        table.add_row(f"{name} alone: wall; CPU; busy in the pipeline, s", f"{wall}; {cpu}; {busy}", style="dim")
    console.print(table)


def _line(each: dict[str, Any]) -> str:
    counts = "counts" if each["others"] <= CALM else "does not count"
    return (
        f"pipeline {each['pipeline']:.2f} s, loop {each['loop, a process a core']:.2f} s, bound {each['bound']:.2f} s, "
        f"others used {each['others']:.0%} of the cores: {counts}"
    )


def _work(case: str, size: int, scratch: Path) -> Work:
    folder = scratch / case
    began = time.monotonic()
    write, model = CORPORA[case]
    write(folder, size)
    os.sync()
    print(f"{case}: corpus made in {time.monotonic() - began:.1f} s", flush=True)
    return Work(folder, model, load_site("local"), scratch)


def _plain(value: object) -> object:
    if isinstance(value, Figure):
        return value.to_json()
    raise TypeError(type(value))


if __name__ == "__main__":
    main()
