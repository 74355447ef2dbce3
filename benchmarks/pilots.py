"""What aaflow's pilots add to their engines, and what more nodes cost.

    python benchmarks/pilots.py [--quick] [--case groups|nodes …] [--pilot local|parsl|radical …] [--rounds N]
        [--json FILE]

``groups``: from submit to the first rank of a first task group, and of each that follows on the same engine, and to the
group's end; each pilot beside the bare engine that does the same: ``mpiexec`` by itself, an app of Parsl that runs
``mpiexec``, a task of RADICAL-Pilot with as many slots. The ranks are a command that notes when it began. Every engine
runs in a process of its own; the two take turns. RADICAL-Pilot's session, managers and agent come up in a time that
varies by seconds, so that a line leaves it out: from when its session has a folder until its agent is up.

``nodes``: an ingestion over 1, 2 and 4 nodes of the virtual Slurm cluster of the tests (Linux, root, Slurm), of as much
for each node: CPU seconds of the ranks per row, beside as many jobs of one node each that are started together, and as
many ranks on a single node; and what passed between the nodes beside what the plan said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from measure.engines import BARE
from measure.figures import Figure, differences, figure
from measure.nodes import NODES, SHAPES, Ingestion, ingestions, on_one_node, over_nodes, separate
from measure.turn import TIMINGS
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description="What pilots add to engines, and what nodes cost.")
    parser.add_argument("--case", nargs="+", choices=("groups", "nodes"), default=["groups", "nodes"])
    parser.add_argument("--pilot", nargs="+", choices=tuple(BARE), default=list(BARE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds, a small corpus")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    found: dict[str, object] = {}
    if "groups" in arguments.case:
        for pilot in arguments.pilot:
            figures = groups(pilot, rounds)
            show_groups(pilot, figures, rounds)
            found[pilot] = {name: each.to_json() for name, each in figures.items()}
    if "nodes" in arguments.case:
        runs = ingestions(8 if arguments.quick else 64, 1 if arguments.quick else rounds)
        show_nodes(runs)
        found["nodes"] = [run.to_json() for run in runs]
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


def groups(pilot: str, rounds: int) -> dict[str, Figure]:
    """By timing, the figures of aaflow, of the bare engine, and what aaflow adds."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for kind in sorted(("aaflow", "bare"), reverse=number % 2 == 0):
            command = [sys.executable, "-m", "measure.turn", kind, pilot]
            done = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
            for name, value in json.loads(done.stdout.strip().splitlines()[-1]).items():
                seconds[f"{kind}: {name}"].append(value)
    figures = {name: figure(values) for name, values in seconds.items()}
    for name in TIMINGS:
        figures[f"added: {name}"] = differences(figures[f"aaflow: {name}"], figures[f"bare: {name}"])
    return figures


def show_groups(pilot: str, figures: dict[str, Figure], rounds: int) -> None:
    """The table of one pilot."""
    table = Table("seconds until", "aaflow", "bare engine", "aaflow adds (target 0.1)")
    table.title = f"Pilot {pilot}, {rounds} rounds: median (least..most)"
    for name in TIMINGS:
        if "coming up" in name and pilot != "radical":
            continue
        ends = " ends" if name == TIMINGS[-1] else ""
        table.add_row(f"{name}{ends}", *(str(figures[f"{kind}: {name}"]) for kind in ("aaflow", "bare", "added")))
    Console().print(table)


def show_nodes(runs: list[Ingestion]) -> None:
    """The table of the nodes."""
    columns = (
        "plan",
        "nodes",
        "ranks",
        "CPU ms per 1000 rows",
        "of 1 node alone",
        "of as many jobs of 1 node",
        "of 1 node, as many ranks",
        "MB between nodes",
        "planned",
        "measured / planned",
    )
    table = Table(*columns, title="Ingestion over nodes of a virtual cluster")
    for plan in dict.fromkeys(run.plan for run in runs):
        by_shape = {shape: [run for run in runs if (run.plan, run.shape) == (plan, shape)] for shape in SHAPES}
        for nodes in NODES:
            of = by_shape[over_nodes(nodes)]
            cost = figure([cost_of(run) for run in of])
            shares = [
                shown(figure([cost_of(run) / cost_of(one) for run, one in zip(of, by_shape[beside], strict=True)]))
                for beside in (over_nodes(1), separate(nodes), on_one_node(nodes))
            ]
            moved, planned = figure([run.moved / 1e6 for run in of]), of[0].planned / 1e6
            ratio = shown(figure([each / planned for each in moved.values])) if planned else "-"
            figures = (shown(cost), *shares, shown(moved), f"{planned:.3g}", ratio)
            table.add_row(plan, str(nodes), str(of[0].shape.ranks), *figures)
    Console().print(table)


def cost_of(run: Ingestion) -> float:
    """CPU milliseconds per 1000 rows."""
    return run.cpu / run.rows * 1e6


def shown(rounds: Figure) -> str:
    """A figure; of a single round without its spread."""
    return str(rounds) if len(rounds.values) > 1 else f"{rounds.median:.3g}"


if __name__ == "__main__":
    main()
