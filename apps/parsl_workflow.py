"""aaflow inside a Parsl program: simulations write reports, aaflow indexes them as they finish, an app reads answers.

The program loads its own Parsl configuration, as any Parsl program does. Each batch of reports is indexed as soon as
its simulations are done, while others still run; the question waits for all of them. Nothing here waits by hand: the
futures say what follows what.

    python apps/parsl_workflow.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

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


def main(folder: Path) -> dict[str, Any]:
    """Run the whole program in a folder; give the answer."""
    reports, index = folder / "reports", folder / "index"
    reports.mkdir(parents=True, exist_ok=True)
    executor = HighThroughputExecutor(
        label="node", address="127.0.0.1", encrypted=True, max_workers_per_node=2, cores_per_worker=1e-6,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )  # fmt: skip
    with parsl.load(Config(executors=[executor], run_dir=str(folder / "parsl"), strategy_period=0.1, usage_tracking=0)):
        updates: list[Any] = []
        for batch in range(BATCHES):
            balls = [simulate(batch * BATCH + number, str(reports)) for number in range(BATCH)]
            # An index has one writer at a time: each update comes after the one before it.
            inputs = [*balls, *updates[-1:]]
            updates.append(
                aaflow_parsl.submit(index_reports(index), inputs=inputs, ranks=2, run_folder=folder / "runs")
            )
        answer = read_answer(str(index), "Which ball has a restitution of 0.85?", inputs=updates)
        result: dict[str, Any] = answer.result()
        return result


if __name__ == "__main__":
    for name, value in main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/parsl-workflow")).items():
        print(f"{name}: {value}")
