"""A keeper in a fork of the process that starts it, which spares a group the start of an interpreter.

For a process of its own that does nothing else: with one thread, and with the marks of a keeper from its start, since
``/proc`` shows those of the interpreter that was forked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import traceback
from typing import NoReturn

from aaflow.runtime import processes, records

#: What ``ps -e`` and ``top`` show; its command line is that of the process that forked.
NAME = "aaflow-keeper"


class ForkedKeeper:
    """Like the :class:`subprocess.Popen` of :func:`aaflow.runtime.group.start_keeper`, as far as it is used.

    Args:
        run_folder: of the run.
        stage: of the group.
        run: id of the run.

    Attributes:
        stdin: a pipe whose end tells the keeper that this process died.

    Raises:
        ValueError: this process has other marks than a keeper, or several threads.
    """

    def __init__(self, run_folder: str, stage: str, run: str) -> None:
        marks = (os.environ.get(name) for name in (processes.RUN, processes.ENGINE, processes.GROUP))
        if tuple(marks) != (run, None, None):
            raise ValueError(f"a process that forks the keeper of a group has to have {processes.RUN}={run} alone")
        if len(os.listdir("/proc/self/task")) > 1:
            raise ValueError("a process that forks the keeper of a group has to have one thread")
        log = records.log_path(run_folder, stage)
        os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        read, write = os.pipe()
        self._code: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            _keep(run_folder, stage, read, handle)
        os.close(read)
        os.close(handle)
        self.stdin = os.fdopen(write, "wb")

    def wait(self) -> int:
        """Sleep until it has ended; its exit code, minus the signal that ended it."""
        if self._code is None:
            try:
                self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            except ChildProcessError:  # SIGCHLD is ignored: what it wrote says how the group ended
                self._code = 0
        return self._code

    def kill(self) -> None:
        """End it at once; not after :meth:`wait`."""
        os.kill(self._pid, signal.SIGKILL)


def _keep(run_folder: str, stage: str, stdin: int, log: int) -> NoReturn:
    """Be the keeper, with its files and no others."""
    code, parent = 1, os.getppid()
    try:
        os.setsid()
        # Both may be among the first three, where this process began without them.
        stdin, log = (fcntl.fcntl(descriptor, fcntl.F_DUPFD, 3) for descriptor in (stdin, log))
        for descriptor, source in enumerate((stdin, log, log)):
            os.dup2(source, descriptor)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2:
                with contextlib.suppress(OSError):  # that of the listing
                    os.close(descriptor)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        sys.stderr.reconfigure(errors="backslashreplace")
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(NAME)
        from aaflow.runtime import keeper

        keeper.main([run_folder, stage])
        code = 0
        if keeper.run_is_over(run_folder) and os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)  # it may be stopped, and carries no mark of an engine by which it would end
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
