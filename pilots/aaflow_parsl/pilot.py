"""The Parsl pilot."""

from __future__ import annotations

import contextlib
import textwrap
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, cast

import zmq
from parsl.app.python import PythonApp
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from parsl.executors.status_handling import BlockProviderExecutor

from aaflow.errors import PilotError
from aaflow.runtime.enginejob import EngineJob
from aaflow.runtime.lease import RunLease
from aaflow.runtime.runs import cancelled
from aaflow.scheduling.placement import Placement
from aaflow.scheduling.site import Site
from aaflow_parsl.capacity import all_at_once, require_workers, workers_of
from aaflow_parsl.config import LABEL, engine_config
from aaflow_parsl.tasks import run_stage

#: Seconds that a question to an interchange may take; Parsl itself waits for ever for one that died.
PATIENCE_SECONDS = 5.0
#: Seconds within which a job that runs has to start a group, the site's ``worker_init`` included: a pool that does not
#: reach its interchange waits for it for ever.
START_SECONDS = 600.0
#: Seconds within which the keepers of groups tell that their pool died: they know the stages, Parsl does not.
KEEPERS_SECONDS = 3.0


class ParslPilot:
    """Starts each task group as one Parsl task.

    Args:
        data_flow_kernel: one that is there: the pilot uses it and leaves it as it is. By default the pilot makes one
            of its own from the site and ends it after the run.
        executors: labels of that kernel's executors that may start groups; by default all of them.
    """

    name = "parsl"

    def __init__(self, data_flow_kernel: DataFlowKernel | None = None, executors: Sequence[str] | None = None) -> None:
        self._given = data_flow_kernel
        self._labels = list(executors) if executors is not None else None
        self._kernel: DataFlowKernel | None = data_flow_kernel
        self._job: EngineJob | None = None
        self._failed: float | None = None
        self._lease: RunLease | None = None
        self._stages: tuple[str, ...] = ()
        self._running: float | None = None
        self._begun = False
        self._room = contextlib.ExitStack()

    def start(self, placement: Placement, lease: RunLease) -> None:
        """See :class:`aaflow.pilot.Pilot`. Waits where other runs of this program hold an executor's workers.

        Raises:
            PilotError: an executor can't start all concurrent groups at once, or is unknown; or the engine can't start.
        """
        groups = len(placement.plan.stages)
        if self._given is None:
            self._lease, self._stages = lease, tuple(stage.name for stage in placement.plan.stages)
            folder = Path(lease.run_folder, "parsl")
            folder.mkdir(mode=0o700)
            marks = lease.keep_engine(nodes=placement.site.nodes)
            config = engine_config(placement.site, groups=groups, folder=folder, environment=marks)
            self._kernel = start_engine(config)
            if placement.site.scheduler != "local":
                self._job = EngineJob(lease.run_folder)
            limit_waiting(own_executor(self._kernel))
            self._labels = [LABEL]
            return
        self._labels = self._labels or [label for label in self._given.executors if label != "_parsl_internal"]
        workers = self._workers(placement.site, groups)

        def check() -> None:
            if (unwanted := cancelled(Path(lease.run_folder))) is not None:
                raise unwanted

        self._room.enter_context(all_at_once(workers, groups, check))

    def _workers(self, site: Site, groups: int) -> dict[Any, int | None]:
        """The workers of each executor that may start groups."""
        assert self._given is not None
        scales = self._given.config.strategy not in (None, "none")
        found = {}
        for label in self._labels or ():
            if label not in self._given.executors:
                known = ", ".join(sorted(set(self._given.executors) - {"_parsl_internal"}))
                raise PilotError(f"this Parsl configuration has no executor {label!r}; it has {known}")
            executor = self._given.executors[label]
            found[executor] = workers_of(executor, cores=len(site.node.cores), memory=site.node.memory, scales=scales)
            require_workers(found[executor], label, groups)
        return found

    def submit(self, stage: str, run_folder: str) -> Future[str]:
        """See :class:`aaflow.pilot.Pilot`; the future is an AppFuture."""
        app: Any = PythonApp(run_stage, data_flow_kernel=self._kernel, executors=self._labels or "all")
        app.func.__name__ = stage  # Parsl's log and monitoring call the task by this name
        return cast("Future[str]", app(run_folder, stage))

    def check(self, *, anew: bool = False) -> None:
        """See :class:`aaflow.pilot.Pilot`."""
        assert self._kernel is not None
        if self._job is not None:
            self._job.look(anew=anew)
        for label in self._labels or ():
            executor = self._kernel.executors[label]
            if interchange_died(executor):
                raise PilotError(f"Parsl's interchange of executor {label!r} died")
        self._check_begun()
        if (why := self._failure()) is not None:
            self._failed = self._failed or time.monotonic()
            if time.monotonic() - self._failed > KEEPERS_SECONDS:
                raise PilotError(why)

    def _check_begun(self) -> None:
        """Raise where an engine of our own has had nodes for long, and has started no group."""
        if self._lease is None or self._begun:
            return
        self._begun = any(self._lease.alive(stage) for stage in self._stages)
        if self._job is not None and not self._job.running:
            self._running = None  # it waits in its queue, perhaps again
            return
        self._running = self._running or time.monotonic()
        if not self._begun and time.monotonic() - self._running > START_SECONDS:
            assert self._kernel is not None
            raise PilotError(
                f"Parsl has had its nodes for {START_SECONDS:g} s and started no task group: do they reach "
                f"{own_executor(self._kernel).address} (the site's `interface`)? Logs: parsl/ in the run folder"
            )

    def _failure(self) -> str | None:
        """How the pool of an executor failed, as Parsl says."""
        assert self._kernel is not None
        for label in self._labels or ():
            executor = self._kernel.executors[label]
            if isinstance(executor, BlockProviderExecutor) and executor.bad_state_is_set:
                why = textwrap.shorten(str(executor.executor_exception), 400)
                return f"Parsl's executor {label!r} failed: {why}"
        if self._given is None:
            blocks = own_executor(self._kernel).status_facade.values()
            if blocks and all(block.terminal for block in blocks):
                ends = ", ".join(block.state.name for block in blocks)
                return f"the job of Parsl's executor {LABEL!r} ended ({ends})"
        return None

    def status(self) -> str:
        """See :class:`aaflow.pilot.Pilot`: where the batch job of an engine of our own is."""
        return self._job.words if self._job is not None else ""

    def close(self) -> None:
        """See :class:`aaflow.pilot.Pilot`; a kernel that was given is left alone."""
        self._room.close()
        if self._given is None and self._kernel is not None:
            end_engine(self._kernel)
            self._kernel = None
            if self._job is not None:
                self._job.ended()


def start_engine(config: Config) -> DataFlowKernel:
    """Start an engine of our own. Parsl itself waits two minutes for an interchange that died while it started.

    Raises:
        PilotError: it can't start; the text says why.
    """
    (executor,) = config.executors
    made: Future[DataFlowKernel] = Future()

    def make() -> None:
        try:
            made.set_result(DataFlowKernel(config))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=make, name="parsl-start", daemon=True).start()
    while not wait([made], timeout=0.1).done:
        if interchange_died(executor):
            raise PilotError(f"Parsl's interchange of executor {LABEL!r} died while it started")
    try:
        return made.result()
    except Exception as error:
        why = textwrap.shorten(str(error), 400)
        raise PilotError(f"Parsl can't start executor {LABEL!r}: {type(error).__name__}: {why}") from error


def own_executor(kernel: DataFlowKernel) -> HighThroughputExecutor:
    """The one executor of an engine of our own."""
    return cast(HighThroughputExecutor, kernel.executors[LABEL])


def interchange_died(executor: Any) -> bool:
    """Whether an executor had an interchange process and has it no longer."""
    interchange = getattr(executor, "interchange_proc", None)
    return interchange is not None and interchange.poll() is not None


def limit_waiting(executor: HighThroughputExecutor) -> None:
    """Bound the time for which Parsl's threads wait for the interchange: they would hold a driver that wants to end."""
    for pipe in (executor.command_client, executor.outgoing_q):
        for option in (zmq.SNDTIMEO, zmq.RCVTIMEO):
            pipe.zmq_socket.setsockopt(option, round(PATIENCE_SECONDS * 1000))


def end_engine(kernel: DataFlowKernel) -> None:
    """End an engine of our own.

    Where its interchange is dead, its block is cancelled without asking it, and Parsl's threads, which may wait for it
    for :data:`PATIENCE_SECONDS`, are left to end by themselves.
    """
    executor = own_executor(kernel)
    if not interchange_died(executor) and _clean_up(kernel):
        return
    if not executor.bad_state_is_set:
        executor.set_bad_state_and_fail_all(PilotError(f"Parsl's interchange of executor {LABEL!r} died"))
    assert executor.provider is not None
    executor.provider.cancel(list(executor.job_ids_to_block))
    if not kernel.cleanup_called:
        threading.Thread(target=_clean_up, args=(kernel,), name="parsl-end", daemon=True).start()


def _clean_up(kernel: DataFlowKernel) -> bool:
    """Parsl's own end; False where its interchange died meanwhile."""
    with contextlib.suppress(zmq.ZMQError):
        kernel.cleanup()
        return True
    return False
