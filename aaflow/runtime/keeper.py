"""The keeper: a small process per node, outside MPI, that ends a task group when whoever owns it is gone.

    python -m aaflow.runtime.keeper RUN_FOLDER STAGE        starts the group and keeps it; may be a fork of its starter
    python -m aaflow.runtime.keeper RUN_FOLDER STAGE node   keeps the ranks of a group on a further node
    python -m aaflow.runtime.keeper RUN_FOLDER - engine     keeps the engine that a driver started
    python -m aaflow.runtime.keeper RUN_FOLDER - job        asks in a batch job that starts whether its driver lives
    python -m aaflow.runtime.keeper RUN_FOLDER - job-end    removes what an engine leaves when its batch job ends

Who notices what, and within which time:

===============================  ==========================================  ======================================
dies                             noticed by                                  within
===============================  ==========================================  ======================================
driver                           every keeper: pid (same node) or lease      1 s, or ``LEASE_SECONDS`` elsewhere
process that called run_group    keeper: end of file on its stdin            at once
launch command                   keeper: SIGCHLD                             at once
a rank                           the launcher, then as above                 at once
the launcher's proxy             keeper: its pid is gone, launcher stays     2 to 3 s
keeper                           run_group, or on a further node its twin    at once
                                 (its parent); driver (pid, lease)           3 s, or ``LEASE_SECONDS``
===============================  ==========================================  ======================================

The keeper then ends the group with SIGKILL (a rank inside a collective runs no signal handler), removes the shared
memory that killed ranks left, writes ``groups/<stage>.json`` and says goodbye to the driver. Between ticks of one
second it sleeps. What is imported before the launch is little, and the rest (:mod:`aaflow.runtime.keeping`) comes after
it, so that a keeper costs a group next to nothing.
"""

from __future__ import annotations

import json
import os
import select
import sys

from aaflow.runtime import processes, records
from aaflow.runtime.kept import Launch
from aaflow.runtime.wakeup import Wakeup

#: Seconds between two looks at the driver while there is no order.
TICK_SECONDS = 1.0


def read_order(run_folder: str) -> bytes:
    """The line that says what to start; empty where whoever would send it is gone, or the run is over."""
    while not select.select([0], [], [], TICK_SECONDS)[0]:
        if run_is_over(run_folder):
            return b""
    return sys.stdin.buffer.readline()


def run_is_over(run_folder: str) -> bool:
    """Whether the run has ended, or its driver has died on this node."""
    driver = records.read(records.driver_path(run_folder))
    return driver is None or "ended" in driver or processes.has_died(driver)


def launch_group(run_folder: str, stage: str, run: str, line: bytes) -> Launch | str:
    """Start what a line of JSON says, or say why it can't be started."""
    if not line.endswith(b"\n"):
        return "the process that started it died"
    order = json.loads(line)
    environment = processes.marked(order["environment"], run=run, stage=stage)
    environment[processes.KEEPER] = json.dumps(processes.this_node()._asdict())
    try:
        return Launch(order["argv"], environment, records.log_path(run_folder, stage))
    except OSError as error:
        return f"its launch command {order['argv'][0]!r} can't be started: {error}"


def main(arguments: list[str]) -> None:
    """Run a keeper until what it keeps has ended.

    Args:
        arguments: run folder, stage and ``group`` (if left out), ``node``, ``engine``, ``job`` or ``job-end``.
    """
    run_folder, stage, kind = [*arguments, "group"][:3]
    if kind == "job-end":
        from aaflow.runtime.cleaning import clean_engine_job

        engine = records.read(records.engine_path(run_folder))  # now: the node may lose the folder
        sys.stdin.buffer.read()
        clean_engine_job(engine)
        return
    line = read_order(run_folder) if kind == "group" else b""  # its run may end before it comes
    driver = records.read(records.driver_path(run_folder))
    keys = records.read(records.client_keys_path(run_folder))
    if driver is None or keys is None:
        raise SystemExit(f"run folder {run_folder}: driver.json or keys/ is missing, so there is nothing to keep")
    run, ended = str(driver["run"]), driver.get("ended")
    if kind == "group":
        wakeup = Wakeup()
        refused = f"its run has ended ({ended}), so nothing was started"
        launch = launch_group(run_folder, stage, run, line) if ended is None else refused

    from aaflow.runtime import keeping

    since = records.node_claimed(run_folder, stage) if kind == "node" else 0
    dead = keeping.outlive_a_twin() if kind == "node" else None
    process = None if dead is None else dead.process
    lease = keeping.Lease(run_folder, driver, keys, kind, stage, process) if ended is None else None
    if kind == "group":
        keeping.keep_group(run_folder, stage, run, launch, wakeup, lease)
    elif kind == "node":
        keeping.keep_ranks(run_folder, stage, run, lease, since, dead)
    elif kind == "engine":
        keeping.keep_engine(run_folder, lease)
    elif not keeping.find_driver(lease):
        sys.exit(keeping.DRIVER_GONE)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # whoever waits for the group waits for this process, which has nothing to finalise
