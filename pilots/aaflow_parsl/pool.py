"""Parsl's pool of workers, which ends where it has lost a thread or the process without which it starts no task.

    python -m aaflow_parsl.pool OPTIONS

The options are those of Parsl's ``process_worker_pool.py``. It notes what its workers do in a process of
:mod:`multiprocessing`'s manager. Nobody watches that one: where it dies before a worker took its task, no worker does
any more, but the pool beats on, and whoever waits for the task waits for ever. So it does where one of its threads
fails, or its workers as they start, as when the shared folder is gone from its node.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from typing import NoReturn

from aaflow.runtime import processes

POOL = "parsl.executors.high_throughput.process_worker_pool"
#: Seconds between two looks at the pool's processes.
LOOK_SECONDS = 0.5


def watch() -> None:
    """End this process, at once, when it has lost its manager, or when a worker of aaflow's own engine failed.

    The pool starts another for each, for ever. Tasks of a program may end theirs by ``sys.exit``; a group's doesn't, so
    a worker that ends with an exception was not able to start.
    """
    own = processes.ENGINE in os.environ
    seen: set[BaseProcess] = set()
    # At its own end a pool stops its manager; the main thread has ended by then.
    while threading.main_thread().is_alive():
        children = multiprocessing.active_children()
        seen.update(children)
        if seen and not any(child.name.startswith("SyncManager") for child in children):
            end("the manager process of Parsl's pool died: no worker takes a task any more")
        # One that was ended by a signal has another exit code.
        if own and any(child.exitcode == 1 for child in seen):
            end("a worker of Parsl's pool failed as it started: the next would too")
        time.sleep(LOOK_SECONDS)


def end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """End this process, at once, when a thread of it has failed; the traceback is in Parsl's log."""
    if failed.exc_type is SystemExit:  # as Python has it
        return
    name = failed.thread.name if failed.thread is not None else "?"
    end(f"a thread of Parsl's pool failed ({name}: {failed.exc_value}): no worker takes a task any more")


def end(words: str) -> NoReturn:
    """Say why, and end this process with its own; its threads may hold it, and whoever watches it notices its end."""
    print(f"aaflow: {words}", file=sys.stderr, flush=True)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


if __name__ == "__main__":
    threading.excepthook = end_with_thread
    threading.Thread(target=watch, name="watch", daemon=True).start()
    # Kept to the end: without its module the pool's manager would end before the main thread, as if it had died.
    kept = runpy.run_module(POOL, run_name="__main__", alter_sys=True)
