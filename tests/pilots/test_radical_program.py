"""The same placement on every pilot, RADICAL-Pilot inside a user's own session, and what may die there.

One session does it all, and its agent dies last: the tests of this file run in their order.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ingestions import Ingestion, command_line, wait_for, write_documents

import aaflow
from aaflow.index import open_index
from aaflow.runtime import processes, records, sharedfiles

pytestmark = [pytest.mark.serial, pytest.mark.timeout(900)]

PLANS = {"fused": True, "streaming": False}
PROGRAM = Path(__file__).with_name("radical_program.py")


@dataclass
class Program:
    """A program with a session, and the placements that it is told to run; all write the same index.

    Attributes:
        ingestion: whose index that is.
        digests: of the index that each plan makes on each of the other pilots.
        process: the program.
    """

    ingestion: Ingestion
    digests: dict[tuple[str, str], str]
    process: subprocess.Popen[str]

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the program ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        self.tell(**order)
        return self.answer()

    def placement(self, plan: str) -> Path:
        return self.ingestion.folder / plan

    def held(self) -> Path:
        """Start a run and return its folder when each of its ranks is held in the middle."""
        hold = self.ingestion.folder / "hold"
        hold.mkdir()
        before = set(self.ingestion.run_folders())
        self.tell(run=str(self.placement("fused")))
        wait_for(lambda: len(list(hold.iterdir())) == 2, 120)
        (run_folder,) = set(self.ingestion.run_folders()) - before
        return run_folder

    def expect_nothing_left(self, shared: set[sharedfiles.SharedFile]) -> None:
        """No rank, launcher, keeper or task, and no shared memory; the program goes on."""
        wait_for(lambda: not [p for p in self.ingestion.alive() if of_a_run(p)], 10)
        assert [file.path for file in shared if sharedfiles.is_there(file)] == []
        shutil.rmtree(self.ingestion.folder / "hold")


def taken(ingestion: Ingestion) -> str:
    """Digest of the index that a run has made; the next one finds none."""
    with open_index(ingestion.index) as index:
        assert index.verify() == []
        digest = index.info().digest
    shutil.rmtree(ingestion.index)
    return digest


def of_a_run(process: processes.Process) -> bool:
    return processes.has_variable(process.pid, processes.RUN) or "aaflow_radical.task" in command_line(process)


def shared_memory(ingestion: Ingestion) -> set[sharedfiles.SharedFile]:
    return {file for process in ingestion.alive() for file in sharedfiles.mapped_by(process.pid)}


@pytest.fixture(scope="module")
def program(radical_module_turn: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("program")
    ingestion = Ingestion(folder, folder / "docs")
    write_documents(ingestion.docs, range(60), edition=1)
    digests = {}
    for plan, fuse in PLANS.items():
        (folder / plan).mkdir()
        workflow = aaflow.Workflow()
        rows = workflow.load(ingestion.docs).transform(size=120)
        if fuse:
            rows = rows.apply("fault_operators:hold_in", options={"folder": str(folder / "hold")})
        rows.embed("hash", dimension=32).upsert(ingestion.index, partitions=8)
        ranks: Any = 2 if fuse else {"load": 1, "transform": 1, "embed": 2, "upsert": 1}
        placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=ranks, fuse=fuse), "local")
        placement.save(folder / plan)
        assert len(placement.plan.stages) == (1 if fuse else 4)
        for pilot in ("local", "parsl"):
            aaflow.run(aaflow.Placement.load(folder / plan), pilot, run_folder=folder / "runs")
            digests[plan, pilot] = taken(ingestion)
    made = Program(ingestion, digests, start(ingestion))  # only now: a session uses half a core while it waits
    yield made
    made.process.kill()
    ingestion.end()


def start(ingestion: Ingestion) -> subprocess.Popen[str]:
    scripts = Path(sys.executable).parent
    return ingestion.start(
        [sys.executable, str(PROGRAM), str(ingestion.folder)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        VIRTUAL_ENV=str(scripts.parent),
        SPT_NOENV="1",  # else an agent that changes its title can't be found by its environment
        PATH=os.pathsep.join([str(scripts), os.environ["PATH"]]),
    )


@pytest.mark.parametrize("plan", PLANS)
def test_one_placement_gives_one_index_on_every_pilot(program: Program, plan: str) -> None:
    assert program.ask(run=str(program.placement(plan))) == {"generation": 1}
    assert {*program.digests.values(), taken(program.ingestion)} == {program.digests["fused", "local"]}


def test_cores_of_the_program_s_own_tasks_are_refused_and_ours_are_given_back(program: Program) -> None:
    cores = len(aaflow.Placement.load(program.placement("fused")).site.node.cores)
    assert program.ask(occupy=cores) == {"free": 0}
    kind, words = program.ask(run=str(program.placement("fused")))["error"]
    assert kind == "PilotError"
    assert re.match(r"stage 'load\+.*' is placed on core \d+ of node .*, which another task of this pilot has", words)
    assert program.ask(occupy=0) == {"free": cores}


def test_an_agent_that_starts_no_task_ends_the_run(program: Program) -> None:
    agent = [each for each in program.ingestion.alive() if command_line(each).startswith("rp.agent_scheduling")]
    assert agent
    for part in agent:
        os.kill(part.pid, signal.SIGSTOP)  # as when a task of others had bad slots
    try:
        kind, words = program.ask(run=str(program.placement("fused")), patience=5)["error"]
    finally:
        for part in agent:
            os.kill(part.pid, signal.SIGCONT)
    assert kind == "PilotError"
    assert re.match(r"RADICAL-Pilot's agent is up, and did not start the task of stage 'load\+.*' within 5 s", words)
    assert program.ask(run=str(program.placement("fused"))) == {"generation": 1}
    assert taken(program.ingestion) == program.digests["fused", "local"]


def test_a_killed_rank_fails_its_run_and_the_session_does_the_next(program: Program) -> None:
    run_folder = program.held()
    shared = shared_memory(program.ingestion)
    (stage,) = (path.name.split(".")[0] for path in (run_folder / "ranks").glob("*.0.json"))
    processes.kill(processes.read_process(records.per_rank(str(run_folder), "ranks", stage)[1]))
    kind, words = program.answer()["error"]
    assert (kind, str(run_folder) in words) == ("StageError", True)
    assert "a rank was killed by SIGKILL" in words
    program.expect_nothing_left(shared)
    assert program.ask(run=str(program.placement("fused"))) == {"generation": 1}
    assert taken(program.ingestion) == program.digests["fused", "local"]


def test_a_killed_agent_ends_the_run_and_another_pilot_goes_on_from_it(program: Program) -> None:
    program.held()
    shared = shared_memory(program.ingestion)
    (agent,) = (process for process in program.ingestion.alive() if command_line(process).startswith("rp.agent.0"))
    processes.kill(agent)
    _, words = program.answer()["error"]
    # An agent's components end each other, and the task that started the group with them, some seconds before
    # RADICAL-Pilot knows that the pilot failed.
    assert re.search(r"the process that started it \(pid \d+\) died|RADICAL-Pilot's pilot ended \(FAILED\)", words)
    program.expect_nothing_left(shared)
    placement = aaflow.Placement.load(program.placement("fused"))
    aaflow.run(placement, "local", run_folder=program.ingestion.folder / "runs")
    assert taken(program.ingestion) == program.digests["fused", "local"]
    assert program.process.stdin is not None
    program.process.stdin.close()
    assert program.process.wait(60) == 0
