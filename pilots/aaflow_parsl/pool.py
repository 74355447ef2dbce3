"""Parsl's pool of workers, which ends where it has lost the process without which it starts no task.

    python -m aaflow_parsl.pool OPTIONS

The options are those of Parsl's ``process_worker_pool.py``. It notes what its workers do in a process of
:mod:`multiprocessing`'s manager. Nobody watches that one: where it dies before a worker took its task, no worker does
any more, but the pool beats on, and whoever waits for the task waits for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import threading
import time

POOL = "parsl.executors.high_throughput.process_worker_pool"
#: Seconds between two looks at the pool's processes.
LOOK_SECONDS = 0.5


def end_with_manager() -> None:
    """End this process, at once, when it has children but its manager, the first of them, is none any more."""
    started = False
    # At its own end a pool stops its manager; the main thread has ended by then.
    while threading.main_thread().is_alive():
        names = [child.name for child in multiprocessing.active_children()]
        started = started or bool(names)
        if started and not any(name.startswith("SyncManager") for name in names):
            print("aaflow: the manager process of Parsl's pool died: no worker takes a task any more", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    threading.Thread(target=end_with_manager, name="manager-watch", daemon=True).start()
    # Kept to the end: without its module the pool's manager would end before the main thread, as if it had died.
    kept = runpy.run_module(POOL, run_name="__main__", alter_sys=True)
