"""How long a first task of a fresh local run waits: aaflow's through Parsl, and that of Parsl alone at its best.

    python benchmarks/startup.py [--rounds N] [--json FILE]

Parsl alone: from before its DataFlowKernel is made until the body of the first app, with one
HighThroughputExecutor that is encrypted, has one worker, and whose strategy looks every 0.1 s (its default, 5 s, is
how long a first task would wait). aaflow: from the call of ``aaflow.run`` until the worker has entered the task and
starts the group's keeper, which its log's creation shows. Imports of the driver are done before either clock starts.
Each timing is of a process of its own; the two take turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure.figures import Figure, differences, figure
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description="Seconds until the first task of a fresh local run starts.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--once", choices=("bare", "aaflow"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(bare(Path(folder)) if arguments.once == "bare" else through_aaflow(Path(folder))))
        return
    rounds = 3 if arguments.quick else arguments.rounds
    seconds: dict[str, list[float]] = {"bare": [], "aaflow": []}
    for number in range(rounds):
        for kind in sorted(seconds, reverse=number % 2 == 0):
            seconds[kind].append(_once(kind))
    figures = {kind: figure(values) for kind, values in seconds.items()}
    figures["more than bare"] = differences(figures["aaflow"], figures["bare"])
    show(figures, rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps({name: each.to_json() for name, each in figures.items()}, indent=1))


def show(figures: dict[str, Figure], rounds: int) -> None:
    """The table."""
    table = Table("first task", "seconds: median (least..most)", title=f"Start of a fresh local run, {rounds} rounds")
    table.add_row("Parsl alone", str(figures["bare"]))
    table.add_row("aaflow through Parsl", str(figures["aaflow"]))
    table.add_row("what aaflow adds (target 0.1)", str(figures["more than bare"]))
    Console().print(table)


def bare(folder: Path) -> float:
    """Seconds until the first task of Parsl alone."""
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    began = time.time()
    executor = HighThroughputExecutor(
        label="bare",
        address="127.0.0.1",
        encrypted=True,
        max_workers_per_node=1,
        cores_per_worker=1e-6,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),  # type: ignore[no-untyped-call]
    )
    config = Config(executors=[executor], run_dir=str(folder), strategy="none", strategy_period=0.1, usage_tracking=0)
    with parsl.DataFlowKernel(config) as kernel:
        app = parsl.python_app(now, data_flow_kernel=kernel)
        return float(app().result()) - began


def now() -> float:
    """The body of the first app."""
    import time

    return time.time()


def through_aaflow(folder: Path) -> float:
    """Seconds until aaflow's first task has begun in Parsl's worker."""
    import aaflow
    from aaflow_parsl import ParslPilot

    (folder / "docs").mkdir()
    (folder / "docs" / "one.txt").write_text("One short document.\n", encoding="ascii")
    workflow = aaflow.Workflow()
    workflow.load(folder / "docs").transform().embed("hash").upsert(folder / "index")
    placement = aaflow.place(aaflow.compile(workflow, ranks=1))
    began = time.time()
    result = aaflow.run(placement, ParslPilot(), run_folder=folder / "runs")
    # The last file that is made in this folder is the group's log.
    return (result.folder / "logs").stat().st_mtime - began


def _once(kind: str) -> float:
    done = subprocess.run([sys.executable, __file__, "--once", kind], check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    main()
