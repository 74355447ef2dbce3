"""aaflow inside a Parsl program: futures in, an AppFuture out; the program's own configuration does the work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import parsl
from parsl.dataflow.dflow import DataFlowKernel, DataFlowKernelLoader
from parsl.dataflow.futures import AppFuture

from aaflow.driver import RunResult, compile, place, run
from aaflow.scheduling.site import Site
from aaflow.workflow import Workflow
from aaflow_parsl.pilot import ParslPilot

Outcome = dict[str, Any] | BaseException


def submit(
    workflow: Workflow | Callable[..., Workflow],
    *,
    inputs: Sequence[Any] = (),
    site: str | Site | None = None,
    ranks: int | Mapping[str, int] | None = None,
    fuse: bool = True,
    data_flow_kernel: DataFlowKernel | None = None,
    executors: Sequence[str] | None = None,
    run_folder: str | Path | None = None,
) -> AppFuture:
    """Compile, place and run a workflow once its inputs are there, on executors of the running Parsl program.

    Args:
        workflow: what to do; or a function that makes it, called with the resolved ``inputs`` when they are all done.
        inputs: values and futures (AppFutures, DataFutures); the workflow is compiled when they resolve.
        site: what the executors' nodes have.
        ranks: see :func:`aaflow.compile`.
        fuse: see :func:`aaflow.compile`.
        data_flow_kernel: by default the loaded one; neither loaded nor cleared here.
        executors: labels of the executors that may start groups; by default all of them.
        run_folder: parent of the run folder; by default that of the site.

    Returns:
        An AppFuture that other apps can depend on. Its result is a dict of JSON values: ``run_folder``, ``index``,
        ``generation``, ``skipped``, ``seconds``. It fails with Parsl's DependencyError where an input failed, and with
        an error of :mod:`aaflow.errors` as it is.
    """
    kernel = data_flow_kernel or DataFlowKernelLoader.dfk()

    def job(*resolved: Any) -> dict[str, Any]:
        made = workflow if isinstance(workflow, Workflow) else workflow(*resolved)
        placement = place(compile(made, site=site, ranks=ranks, fuse=fuse), site)
        return _summary(run(placement, ParslPilot(kernel, executors), run_folder=run_folder))

    def aaflow_workflow(inputs: Sequence[Any] = ()) -> Future[Outcome]:
        return _in_thread(job, inputs)

    outcome = parsl.join_app(aaflow_workflow, data_flow_kernel=kernel)(inputs=list(inputs))
    opened = parsl.python_app(aaflow_result, data_flow_kernel=kernel, executors=["_parsl_internal"])
    return cast("AppFuture", opened(outcome))


def aaflow_result(outcome: Outcome) -> dict[str, Any]:
    """Raise what the driver raised: inside a join app it would become a JoinError without its text."""
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _in_thread(job: Callable[..., dict[str, Any]], inputs: Sequence[Any]) -> Future[Outcome]:
    """Run the driver in a thread of its own: Parsl's own threads are few, and it waits for tasks of the same kernel."""
    future: Future[Outcome] = Future()

    def drive() -> None:
        try:
            future.set_result(job(*inputs))
        except BaseException as error:
            future.set_result(error)

    threading.Thread(target=drive, name="aaflow-driver", daemon=True).start()
    return future


def _summary(result: RunResult) -> dict[str, Any]:
    index = result.placement.plan.index
    return {
        "run_folder": str(result.folder),
        "index": index["path"] if index else None,
        "generation": result.generation,
        "skipped": result.notices.num_rows,
        "seconds": result.seconds,
    }
