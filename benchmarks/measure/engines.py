"""Engines that start groups of ranks: aaflow's pilots, and the same engines alone at their best.

Each is used once, in a process of its own: made (plans, Parsl's import), ``start``, ``run_group`` one after another,
``end``.
A rank is a command that notes when it began, and ends after half a second: no rank that does anything is done before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

RANKS = 2
GROUPS = 4


class Engine(Protocol):
    """Starts groups."""

    def start(self) -> None:
        """Make it ready for groups."""

    def run_group(self, number: int) -> None:
        """Start a group and wait for its end."""

    def comes_up(self) -> bool:
        """Whether the engine's own processes come up, for which everything else waits."""

    def end(self) -> None:
        """End what ``start`` started."""


def write_rank(folder: Path) -> Path:
    """The command of a rank."""
    rank = folder / "rank.sh"
    rank.write_text(f"#!/bin/sh\ndate +%s.%N > {folder}/$$.new && mv {folder}/$$.new {folder}/$$.began\nsleep 0.5\n")
    rank.chmod(0o700)
    return rank


def take_began(folder: Path) -> float:
    """When the first rank of the group that has just ended began, in seconds since the epoch."""
    notes = list(folder.glob("*.began"))
    began = [float(note.read_text()) for note in notes]
    for note in notes:
        note.unlink()
    if len(began) != RANKS:
        raise RuntimeError(f"{len(began)} ranks ran, not {RANKS}")
    return min(began)


class Aaflow:
    """A pilot with the stages of an unfused ingestion, whose ranks are the command instead of aaflow's own.

    The clock runs from the run folder on, as in ``aaflow.run``.
    """

    def __init__(self, folder: Path, rank: Path, pilot: str) -> None:
        import aaflow
        from aaflow.pilot import find_pilot

        (folder / "docs").mkdir()
        (folder / "docs" / "one.txt").write_text("One short document.\n", encoding="ascii")
        workflow = aaflow.Workflow()
        workflow.load(folder / "docs").transform().embed("hash").upsert(folder / "index")
        self._placement = aaflow.place(aaflow.compile(workflow, ranks=RANKS, fuse=False))
        self._pilot = find_pilot(pilot)()
        self._folder, self._rank, self._run = folder, rank, ""
        self._has_session = False
        self._stack = ExitStack()

    def start(self) -> None:
        """See :class:`Engine`."""
        from aaflow.launchorder import write_launch_orders
        from aaflow.runtime.lease import RunLease
        from aaflow.runtime.runfolder import RunFolder

        run = RunFolder.create(self._folder / "runs", self._placement.plan.digest)
        self._run = str(run.path)
        self._placement.save(run.path)
        write_launch_orders(self._placement, run.path)
        for order in (run.path / "launch").glob("*.json"):
            order.write_text(json.dumps({**json.loads(order.read_text()), "python": str(self._rank)}))
        lease = self._stack.enter_context(RunLease(self._run))
        self._stack.callback(self._pilot.close)
        self._pilot.start(self._placement, lease)

    def run_group(self, number: int) -> None:
        """See :class:`Engine`."""
        self._pilot.submit(self._placement.plan.stages[number].name, self._run).result(timeout=120)

    def comes_up(self) -> bool:
        """See :class:`Engine`."""
        # Once it is there it stays: looking costs what the engine would have.
        self._has_session = self._has_session or any(Path(self._run, "radical").glob("rp.session.*"))
        return self._has_session and "agent is up" not in self._pilot.status()

    def end(self) -> None:
        """See :class:`Engine`."""
        self._stack.close()


class Bare:
    """``mpiexec`` and nothing else."""

    def __init__(self, folder: Path, rank: Path) -> None:
        from aaflow.scheduling.launch import find_launcher

        self._command = [find_launcher("mpiexec"), "-n", str(RANKS), str(rank)]

    def start(self) -> None:
        """See :class:`Engine`."""

    def run_group(self, number: int) -> None:
        """See :class:`Engine`."""
        subprocess.run(self._command, check=True)

    def comes_up(self) -> bool:
        """See :class:`Engine`."""
        return False

    def end(self) -> None:
        """See :class:`Engine`."""


class BareParsl(Bare):
    """Parsl: an app that runs ``mpiexec``, on an executor like aaflow's."""

    def __init__(self, folder: Path, rank: Path) -> None:
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        super().__init__(folder, rank)
        provider = LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1)  # type: ignore[no-untyped-call]
        executor = HighThroughputExecutor(
            label="bare", address="127.0.0.1", encrypted=True, max_workers_per_node=GROUPS, cores_per_worker=1e-6,
            provider=provider,
        )  # fmt: skip
        self._config = Config(
            executors=[executor], run_dir=str(folder), strategy="none", strategy_period=0.1, usage_tracking=0
        )
        self._kernel: Any = None

    def start(self) -> None:
        """See :class:`Engine`."""
        from parsl import DataFlowKernel

        self._kernel = DataFlowKernel(self._config)

    def run_group(self, number: int) -> None:
        """See :class:`Engine`."""
        from parsl import python_app

        python_app(subprocess.check_call, data_flow_kernel=self._kernel)(self._command).result()

    def end(self) -> None:
        """See :class:`Engine`."""
        self._kernel.cleanup()


_DESCRIBE = """
import json, pathlib, sys
from aaflow.scheduling.sitefile import load_site
from aaflow_radical.engine import engine_environment
from aaflow_radical.resource import configure

site, folder = load_site("local"), pathlib.Path(sys.argv[1])
print(json.dumps([configure(site, folder), engine_environment(site, folder, {})]))
"""


class BareRadical:
    """RADICAL-Pilot: a task with a slot for each rank, as aaflow's have.

    Slots are of nodes that it names when its agent is up. Callbacks say so, and when a task has ended, which is sooner
    than its ``wait`` and ``wait_tasks``. The resource is aaflow's: RADICAL-Pilot's own does not find an ``mpiexec`` of
    pip. The environment is all of this program's, as in a program of a person's; aaflow gives its agent a part. The
    clock counts the import, as it counts that of the process in which aaflow's pilot has its session; so another
    process describes the resource.
    """

    def __init__(self, folder: Path, rank: Path) -> None:
        files = folder / "radical"
        done = subprocess.run(
            [sys.executable, "-c", _DESCRIBE, str(files)], check=True, stdout=subprocess.PIPE, text=True
        )
        self._described, environment = json.loads(done.stdout)
        os.environ.update(environment)
        os.chdir(files)
        self._rank = str(rank)
        self._folder = str(files / "rp.session.bare")
        self._session: Any = None
        self._tasks: Any = None
        self._pilot: Any = None
        self._active, self._done = threading.Event(), threading.Event()
        self._callbacks = self._follow, self._follow_task  # RADICAL-Pilot knows them by their ids

    def start(self) -> None:
        """See :class:`Engine`."""
        import radical.pilot as rp

        self._session = rp.Session(uid=os.path.basename(self._folder))
        self._pilot = rp.PilotManager(self._session).submit_pilots(rp.PilotDescription(self._described))
        self._pilot.register_callback(self._callbacks[0])
        self._tasks = rp.TaskManager(self._session)  # while the agent comes up
        self._tasks.register_callback(self._callbacks[1])
        self._tasks.add_pilots(self._pilot)

    def _follow(self, *_: Any) -> bool:
        if self._pilot.state == "PMGR_ACTIVE":
            self._active.set()
        return True

    def _follow_task(self, _: Any, state: str, *__: Any) -> bool:
        if state in ("DONE", "FAILED", "CANCELED"):
            self._done.set()
        return True

    def run_group(self, number: int) -> None:
        """See :class:`Engine`."""
        import radical.pilot as rp

        if not self._active.wait(120):
            raise RuntimeError(f"RADICAL-Pilot's pilot is {self._pilot.state}")
        node = self._pilot.nodelist.nodes[0]
        usable = [core.index for core in node.cores if core.occupation is not None]
        slots = [
            rp.Slot(node_index=node.index, node_name=node.name, cores=[rp.RO(index=core, occupation=1.0)])
            for core in usable[:RANKS]
        ]
        described = {"executable": self._rank, "ranks": RANKS, "cores_per_rank": 1, "slots": slots}
        task = self._tasks.submit_tasks(rp.TaskDescription(described))
        ended = self._done.wait(120)
        self._done.clear()
        if not ended or task.state != rp.DONE:
            raise RuntimeError(f"RADICAL-Pilot's task is {task.state}: {task.stderr} {task.exception}")

    def comes_up(self) -> bool:
        """See :class:`Engine`."""
        # Not by looking into the folder: RADICAL-Pilot closes descriptors that it did not open.
        return os.path.exists(self._folder) and not self._active.is_set()

    def end(self) -> None:
        """See :class:`Engine`."""
        self._session.close(download=False)


BARE: dict[str, type[Any]] = {"local": Bare, "parsl": BareParsl, "radical": BareRadical}
