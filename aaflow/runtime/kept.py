"""What a keeper keeps: a launch command with all below it, or the ranks of a group on a further node.

Standard library only, and little of it: a keeper imports this before it launches.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

from aaflow.runtime import processes

#: A child of the launcher that holds its ranks on this node: when it dies, launcher and ranks live on and wait.
_PROXIES = frozenset({"hydra_pmi_proxy", "prted", "orted"})
#: What launchers set for a rank and not for themselves.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


class Launch:
    """The launch command of the group and the processes under it.

    Attributes:
        since: when it began, in ns since the epoch.
        seconds: from then to its end.

    Raises:
        OSError: it can't be started.
    """

    def __init__(self, argv: list[str], environment: dict[str, str], log: str) -> None:
        os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.since = time.time_ns()
        _adopt_orphans()
        try:
            self._process = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, start_new_session=True
            )
        finally:
            os.close(handle)
        self._started = time.monotonic()
        self._rank_variables = [name for name in _RANK_VARIABLES if name not in environment]
        self._proxies: dict[processes.Process, int] = {}
        self._orphaned = 0
        self.seconds = 0.0

    @property
    def status(self) -> int | None:
        """Exit code, minus the signal that ended it, or None while it runs."""
        return self._process.returncode

    def reap(self) -> bool:
        """Collect every child that has ended; whether the launch command is among the dead."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self._process.pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self.seconds = time.monotonic() - self._started
        return self._process.returncode is not None

    def broken(self) -> str | None:
        """A proxy that died while the launcher lives on; twice seen, as a launcher outlives its proxies briefly."""
        below = processes.children(self._process.pid)
        for child in below:
            if processes.command_name(child.pid) in _PROXIES:
                self._proxies.setdefault(child, 0)
        # A proxy that died before the first look has left its ranks to this process.
        self._orphaned = self._orphaned + 1 if not below and self._has_orphaned_rank() else 0
        return _dead_proxy(self._proxies) or ("the launcher's proxy died" if self._orphaned == 2 else None)

    def _has_orphaned_rank(self) -> bool:
        adopted = [child.pid for child in processes.children(os.getpid()) if child.pid != self._process.pid]
        return any(processes.has_variable(pid, name) for pid in adopted for name in self._rank_variables)


def _dead_proxy(proxies: dict[processes.Process, int]) -> str | None:
    for proxy in proxies:
        proxies[proxy] = 0 if processes.is_alive(proxy) else proxies[proxy] + 1
        if proxies[proxy] == 2:
            return f"the launcher's proxy (pid {proxy.pid}) died"
    return None


class Ranks:
    """The ranks of a group on a further node, whose launcher is elsewhere."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._alive = processes.find_marked(processes.GROUP, group)
        parents = {processes.parent_of(process.pid) for process in self._alive}
        self._proxies = {p: 0 for p in parents if p is not None and processes.command_name(p.pid) in _PROXIES}

    def reap(self) -> bool:
        """Whether no process of the group is left on this node."""
        self._alive = [process for process in self._alive if processes.is_alive(process)]
        if not self._alive:
            self._alive = processes.find_marked(processes.GROUP, self._group)
        return not self._alive

    def broken(self) -> str | None:
        """A proxy that died while its ranks live on."""
        return _dead_proxy(self._proxies)


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that they can be found and collected."""
    import ctypes

    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
