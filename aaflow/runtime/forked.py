"""A keeper in a fork of the process that starts it, which spares a group the start of an interpreter.

For a process of its own that does nothing else: with one thread, and with the marks of a keeper from its start, since
``/proc`` shows those of the interpreter that was forked.
"""

from __future__ import annotations

import os
import traceback
from typing import NoReturn

from aaflow.runtime import processes, records

#: What ``ps`` shows, whose command line is that of the process that forked.
NAME = "aaflow-keeper"


class ForkedKeeper:
    """Like the :class:`subprocess.Popen` of :func:`aaflow.runtime.group.start_keeper`, as far as it is used.

    Args:
        run_folder: of the run.
        stage: of the group.
        run: id of the run.

    Attributes:
        stdin: a pipe whose end tells the keeper that this process died.
        returncode: its exit code, minus the signal that ended it; None until :meth:`wait`.

    Raises:
        ValueError: this process has other marks than a keeper.
    """

    def __init__(self, run_folder: str, stage: str, run: str) -> None:
        marks = (os.environ.get(name) for name in (processes.RUN, processes.ENGINE, processes.GROUP))
        if tuple(marks) != (run, None, None):
            raise ValueError(f"a process that forks the keeper of a group has to have {processes.RUN}={run} alone")
        log = records.log_path(run_folder, stage)
        os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        read, write = os.pipe()
        self.returncode: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            _keep(run_folder, stage, read, handle)
        os.close(read)
        os.close(handle)
        self.stdin = os.fdopen(write, "wb")

    def wait(self) -> int:
        """Sleep until it has ended."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        """End it at once; not after :meth:`wait`."""
        os.kill(self._pid, 9)


def _keep(run_folder: str, stage: str, stdin: int, log: int) -> NoReturn:
    """Be the keeper, with its files and no others."""
    code = 1
    try:
        os.setsid()
        for descriptor, source in enumerate((stdin, log, log)):
            os.dup2(source, descriptor)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(NAME)
        from aaflow.runtime import keeper

        keeper.main([run_folder, stage])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
