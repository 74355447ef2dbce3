"""aaflow inside a Parsl program: simulations write reports, aaflow indexes them as they finish, an app reads answers.

The program loads a Parsl configuration, as any Parsl program does: here that of a site, so that it runs on this machine
or from a cluster's login node. Each batch of reports is indexed as soon as its simulations are done, while others still
run; the question waits for all of them. Nothing here waits by hand: the futures say what follows what.

    python apps/parsl_workflow.py FOLDER [SITE]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import parsl

import aaflow
import aaflow_parsl

#: Batches of simulations, and simulations of a batch: bouncing balls of another restitution each.
BATCHES, BATCH = 3, 4


@parsl.python_app
def simulate(number: int, folder: str) -> str:
    """Drop a ball from 10 m until it lies still, and write a report."""
    from pathlib import Path

    restitution = 0.30 + 0.05 * number
    height, seconds, bounces = 10.0, (2 * 10.0 / 9.81) ** 0.5, 0
    while height > 0.001:
        height *= restitution**2
        seconds += 2 * (2 * height / 9.81) ** 0.5
        bounces += 1
    report = Path(folder, f"ball-{number:02d}.txt")
    report.write_text(
        f"Simulation {number}: a ball of restitution {restitution:.2f} dropped from 10 metres.\n"
        f"It bounced {bounces} times and came to rest after {seconds:.2f} seconds.\n",
        encoding="utf-8",
    )
    return str(report)


@parsl.python_app
def read_answer(index: str, question: str, inputs: Sequence[Any] = ()) -> dict[str, Any]:
    """Answer a question from the index once the last update of it, among the inputs, is done."""
    from aaflow.retrieval import ask_index

    best = ask_index(index, [question], 1).to_pylist()[0]
    return {"question": question, "answer": best["text"], "source": best["source"], "score": best["score"]}


def index_reports(index: Path) -> Any:
    """A function that makes the workflow which adds reports to the index, given their paths."""

    def workflow(*reports: str) -> aaflow.Workflow:
        made = aaflow.Workflow()
        made.load([report for report in reports if isinstance(report, str)]).transform().embed("hash").upsert(index)
        return made

    return workflow


def main(folder: Path, site: str = "local") -> dict[str, Any]:
    """Run the whole program in a folder, which all nodes of the site share; give the answer."""
    reports, index = folder / "reports", folder / "index"
    reports.mkdir(parents=True, exist_ok=True)
    with parsl.load(aaflow_parsl.configure(site, folder / "parsl", workers=2)):
        updates: list[Any] = []
        for batch in range(BATCHES):
            balls = [simulate(batch * BATCH + number, str(reports)) for number in range(BATCH)]
            # An index has one writer at a time: each update comes after the one before it.
            inputs = [*balls, *updates[-1:]]
            updates.append(
                aaflow_parsl.submit(index_reports(index), inputs=inputs, site=site, ranks=2, run_folder=folder / "runs")
            )
        answer = read_answer(str(index), "Which ball has a restitution of 0.85?", inputs=updates)
        result: dict[str, Any] = answer.result()
        return result


if __name__ == "__main__":
    where, *sites = sys.argv[1:] or ["demo/parsl-workflow"]
    for name, value in main(Path(where).absolute(), *sites[:1]).items():
        print(f"{name}: {value}")
