"""A user's program with a session of RADICAL-Pilot of its own, which does what it is told line by line.

    python radical_program.py FOLDER

A line is JSON: ``{"run": FOLDER}`` runs the placement in that folder (``"patience": SECONDS`` is what the agent has to
start a task), ``{"occupy": N}`` takes N cores for tasks of the program and ``{"occupy": 0}`` gives them back. Each is
answered by a line: ``{"generation": G}``, ``{"free": CORES}`` or ``{"error": [TYPE, WORDS]}``. The end of stdin ends
the session.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import radical.pilot as rp

import aaflow
import aaflow_radical
from aaflow.scheduling.sitefile import load_site
from aaflow_radical.pilot import TASK_SECONDS

folder = Path(sys.argv[1])


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    described = aaflow_radical.configure(load_site("local"), folder / "radical")
    os.environ["RADICAL_CONFIG_USER_DIR"] = str(folder / "radical")
    session = rp.Session(cfg={"base": str(folder)})  # by default PWD, which need not be where this runs
    pilot = rp.PilotManager(session).submit_pilots(rp.PilotDescription(described))
    tasks = rp.TaskManager(session)
    tasks.add_pilots(pilot)
    occupied: list[Any] = []

    def do(order: dict[str, Any]) -> dict[str, Any]:
        if "run" in order:
            engine = aaflow_radical.RadicalPilot(session=session, task_manager=tasks, pilot=pilot)
            placement = aaflow.Placement.load(Path(order["run"]))
            with mock.patch("aaflow_radical.pilot.TASK_SECONDS", order.get("patience", TASK_SECONDS)):
                return {"generation": aaflow.run(placement, engine, run_folder=folder / "runs").generation}
        if order["occupy"]:
            occupied.extend(pilot.nodelist.find_slots(rp.RankRequirements(n_cores=1), order["occupy"]))
        else:
            pilot.nodelist.release_slots(occupied)
            occupied.clear()
        return {"free": sum(core.occupation == 0 for node in pilot.nodelist.nodes for core in node.cores)}

    try:
        for line in sys.stdin:
            try:
                answer = do(json.loads(line))
            except aaflow.errors.AaflowError as error:
                answer = {"error": [type(error).__name__, str(error)]}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        session.close()


if __name__ == "__main__":
    main()
