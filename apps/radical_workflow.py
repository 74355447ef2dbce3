"""aaflow inside a RADICAL-Pilot program: simulations run as tasks of a session, aaflow indexes them in the same pilot.

The program has its own session, pilot and task manager, as any RADICAL-Pilot program does, and submits all its
simulations at once. Each batch of reports is indexed as soon as its simulations are done, while others still run; a
task group of aaflow is one task of the same session.

    python apps/radical_workflow.py FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import radical.pilot as rp

import aaflow
import aaflow_radical
from aaflow.retrieval import ask_index
from aaflow.scheduling.sitefile import load_site

#: Batches of simulations, and simulations of a batch: bouncing balls of another restitution each.
BATCHES, BATCH = 3, 4

SIMULATION = """
import sys
number, folder = int(sys.argv[1]), sys.argv[2]
restitution = 0.30 + 0.05 * number
height, seconds, bounces = 10.0, (2 * 10.0 / 9.81) ** 0.5, 0
while height > 0.001:
    height *= restitution**2
    seconds += 2 * (2 * height / 9.81) ** 0.5
    bounces += 1
with open(f"{folder}/ball-{number:02d}.txt", "w") as report:
    report.write(f"Simulation {number}: a ball of restitution {restitution:.2f} dropped from 10 metres.\\n")
    report.write(f"It bounced {bounces} times and came to rest after {seconds:.2f} seconds.\\n")
"""


def simulation(program: Path, number: int, reports: Path) -> rp.TaskDescription:
    """Drop a ball from 10 m until it lies still, and write a report."""
    return rp.TaskDescription({"executable": sys.executable, "arguments": [str(program), str(number), str(reports)]})


def wait_for(simulations: Sequence[rp.Task], tasks: rp.TaskManager, pilot: rp.Pilot) -> None:
    """Wait until simulations are done. Without a timeout RADICAL-Pilot may wait for a pilot that is no more."""
    while any(each.state not in rp.FINAL for each in simulations) and pilot.state not in rp.FINAL:
        tasks.wait_tasks([each.uid for each in simulations], timeout=5)
    for each in simulations:
        if each.state != rp.DONE:
            raise RuntimeError(f"{each.uid} ended as {each.state}: {each.exception_detail or pilot.state}")


def index_reports(reports: Sequence[Path], index: Path, engine: aaflow_radical.RadicalPilot, runs: Path) -> None:
    """Add reports to the index."""
    workflow = aaflow.Workflow()
    workflow.load(reports).transform().embed("hash").upsert(index)
    placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=2), "local")
    aaflow.run(placement, engine, run_folder=runs)


def main(folder: Path) -> dict[str, Any]:
    """Run the whole program in a folder; give the answer."""
    reports, index, program = folder / "reports", folder / "index", folder / "simulation.py"
    reports.mkdir(parents=True)
    program.write_text(SIMULATION, encoding="utf-8")
    # RADICAL-Pilot's words for a site that aaflow knows; a resource of your own configuration does as well.
    described = aaflow_radical.configure(load_site("local"), folder / "radical")
    os.environ["RADICAL_CONFIG_USER_DIR"] = str(folder / "radical")
    session = rp.Session(cfg={"base": str(folder / "sessions")})
    try:
        pilot = rp.PilotManager(session).submit_pilots(rp.PilotDescription(described))
        tasks = rp.TaskManager(session)
        tasks.add_pilots(pilot)
        simulations = tasks.submit_tasks([simulation(program, n, reports) for n in range(BATCHES * BATCH)])
        for first in range(0, BATCHES * BATCH, BATCH):
            wait_for(simulations[first : first + BATCH], tasks, pilot)
            engine = aaflow_radical.RadicalPilot(session=session, task_manager=tasks, pilot=pilot)
            batch = [reports / f"ball-{number:02d}.txt" for number in range(first, first + BATCH)]
            index_reports(batch, index, engine, folder / "runs")
    finally:
        session.close()
    question = "Which ball has a restitution of 0.85?"
    best = ask_index(index, [question], 1).to_pylist()[0]
    return {"question": question, "answer": best["text"], "source": best["source"], "score": best["score"]}


if __name__ == "__main__":
    for name, value in main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/radical-workflow").absolute()).items():
        print(f"{name}: {value}")
