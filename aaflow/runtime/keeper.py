"""The keeper: a small process per node, outside MPI, that ends a task group when whoever owns it is gone.

    python -m aaflow.runtime.keeper RUN_FOLDER STAGE        starts the group and keeps it
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
keeper                           run_group (its parent); driver (pid, lease) at once; 3 s, or ``LEASE_SECONDS``
===============================  ==========================================  ======================================

The keeper then ends the group with SIGKILL (a rank inside a collective runs no signal handler), removes the shared
memory that killed ranks left, writes ``groups/<stage>.json`` and says goodbye to the driver. Between ticks of one
second it sleeps. Imports are kept small and zmq comes after the launch, so that a keeper costs a group next to nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any

from aaflow.runtime import processes, records
from aaflow.runtime.cleaning import clean_engine, clean_engine_job, clean_group
from aaflow.runtime.ending import GroupResult

if TYPE_CHECKING:
    import zmq

#: Silence after which either end of a lease takes the other for dead, and the time between beats; seconds.
LEASE_SECONDS = 6.0
BEAT_SECONDS = 1.0

#: Exit code of a keeper in a batch job whose driver is gone.
DRIVER_GONE = 3

#: A child of the launcher that holds its ranks on this node: when it dies, launcher and ranks live on and wait.
_PROXIES = frozenset({"hydra_pmi_proxy", "prted", "orted"})
#: What launchers set for a rank and not for themselves.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


class Lease:
    """A keeper's end of the lease: beats to the driver, and what the driver says or no longer says."""

    def __init__(self, run_folder: str, driver: dict[str, Any], keys: dict[str, Any], hello: dict[str, Any]) -> None:
        import zmq

        self._run_folder = run_folder
        self._driver = processes.read_process(driver) if _on_this_node(driver) else None
        self._hello = hello
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        name = ":".join(str(hello[part]) for part in ("kind", "stage", "host", "pid"))
        self.socket.setsockopt(zmq.ROUTING_ID, name.encode())
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.IPV6, 1)
        self.socket.curve_serverkey = keys["server"].encode()
        self.socket.curve_publickey = keys["public"].encode()
        self.socket.curve_secretkey = keys["secret"].encode()
        self.socket.connect(driver["address"])
        self._heard = time.monotonic()
        #: Whether the driver has answered.
        self.met = False

    def beat(self) -> None:
        """Tell the driver that the group lives."""
        self._send({"word": "beat"})

    def goodbye(self, result: GroupResult) -> None:
        """Tell the driver how the group ended and leave."""
        self._send({"word": "bye", "result": result.to_json()})
        self._context.destroy(linger=1000)

    def _send(self, message: dict[str, Any]) -> None:
        import zmq

        with contextlib.suppress(zmq.Again):
            self.socket.send(json.dumps({**self._hello, **message}).encode(), zmq.NOBLOCK)

    def read(self) -> str | None:
        """Take what the driver said; returns the reason if it said that the group must end."""
        import zmq

        while True:
            try:
                answer = json.loads(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return None
            self._heard = time.monotonic()
            self.met = True
            if answer["word"] == "end":
                return str(answer["reason"])

    def ended(self) -> str | None:
        """That the driver ended the run, as its record says, which comes before its word."""
        ended = (records.read(records.driver_path(self._run_folder)) or {}).get("ended")
        return None if ended is None else f"the driver ended the run: {ended}"

    def lost(self) -> str | None:
        """Why the driver must be taken for dead, or None."""
        if self._driver is not None and not processes.is_alive(self._driver):
            return f"the driver (pid {self._driver.pid}) died"
        if not self.met and (ended := self.ended()):
            return ended
        silence = time.monotonic() - self._heard
        return f"the driver was silent for {silence:.1f} s" if silence > LEASE_SECONDS else None


def _on_this_node(record: dict[str, Any]) -> bool:
    return processes.read_node(record) == processes.this_node()


class Launch:
    """The launch command of the group and the processes under it."""

    def __init__(self, argv: list[str], environment: dict[str, str], log: str) -> None:
        os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
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


class Wakeup:
    """A file descriptor that becomes readable with SIGCHLD, and the signal that asked the keeper to end."""

    def __init__(self) -> None:
        self.descriptor, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.asked: int | None = None
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number

    def drain(self) -> None:
        """Forget the wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, 512):
                pass


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that they can be found and collected."""
    import ctypes

    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _watch(lease: Lease, wakeup: Wakeup, kept: Launch | Ranks | None, *, owner: bool) -> str | None:
    """Sleep until the group has ended (returns None) or must be ended (returns why).

    Args:
        lease: of the driver.
        wakeup: signals.
        kept: what is kept; None for an engine, which only its driver ends.
        owner: whether stdin is a pipe from the process that wants this group.
    """
    import zmq

    pipe, parent = sys.stdin.fileno(), os.getppid()
    poller = zmq.Poller()
    poller.register(lease.socket, zmq.POLLIN)
    poller.register(wakeup.descriptor, zmq.POLLIN)
    if owner:
        poller.register(pipe, zmq.POLLIN | zmq.POLLERR)
    tick = time.monotonic()
    while True:
        events = dict(poller.poll(max(0, round((tick - time.monotonic()) * 1000))))
        wakeup.drain()
        if kept is not None and kept.reap():
            return None
        if wakeup.asked is not None:
            return f"its keeper got {signal.Signals(wakeup.asked).name}"
        if owner and (os.getppid() != parent or (pipe in events and not os.read(pipe, 512))):
            return lease.ended() or f"the process that started it (pid {parent}) died"
        if reason := lease.read():
            return reason
        if time.monotonic() >= tick:
            tick = time.monotonic() + BEAT_SECONDS
            lease.beat()
            if reason := lease.lost() or (kept.broken() if kept is not None else None):
                return reason


def _keep_group(run_folder: str, stage: str, run: str, lease: Callable[[], Lease]) -> None:
    """Start a group and keep it to its end; what to start is a line of JSON on stdin."""
    wakeup = Wakeup()
    since = time.time_ns()
    order = json.loads(sys.stdin.buffer.readline())
    environment = processes.marked(order["environment"], run=run, stage=stage)
    environment[processes.KEEPER] = json.dumps(asdict(processes.this_node()))
    _adopt_orphans()
    try:
        launch = Launch(order["argv"], environment, records.log_path(run_folder, stage))
    except OSError as error:
        failed = GroupResult(stage, reason=f"its launch command {order['argv'][0]!r} can't be started: {error}")
        records.write(records.group_path(run_folder, stage), failed.to_json())
        return
    held = lease()
    reason = _watch(held, wakeup, launch, owner=True)
    lost = reason is not None and held.lost() is not None

    def find() -> list[processes.Process]:
        launch.reap()
        return list({*processes.find_marked(processes.GROUP, f"{run}/{stage}"), *processes.children(os.getpid())})

    clean = reason is None and launch.status == 0
    if not clean:
        _close_node(run_folder, stage)
    left = clean_group(run_folder, stage, find, since=None if clean else since)
    status = launch.status
    code, number = (status, None) if status is None or status >= 0 else (None, -status)
    result = GroupResult(stage, code, number, reason, launch.seconds, left)
    records.write(records.group_path(run_folder, stage), result.to_json())
    held.goodbye(result)
    if lost:
        clean_engine(run_folder)


def _close_node(run_folder: str, stage: str) -> None:
    """Have ranks that come to this node from now on go again; those that came before can be found, and are ended."""
    records.write(records.on_node_path(run_folder, stage, "over"), None)


def _keep_ranks(run_folder: str, stage: str, run: str, lease: Callable[[], Lease] | None) -> None:
    """Keep the ranks of a group on a further node until they have ended or must end; how they ended is not known.

    Args:
        run_folder: of the run.
        stage: of the group.
        run: id of the run.
        lease: makes the keeper's end of the lease; None where the run has ended.
    """
    wakeup = Wakeup()
    with open(records.on_node_path(run_folder, stage, "keeper"), encoding="ascii") as file:
        since = int(file.read())
    group = f"{run}/{stage}"
    held, reason = None, None
    if lease is not None:
        ranks = Ranks(group)
        held = lease()
        reason = _watch(held, wakeup, ranks, owner=False)
    _close_node(run_folder, stage)

    def find() -> list[processes.Process]:
        return processes.find_marked(processes.GROUP, group)

    left = clean_group(run_folder, stage, find, since=since)
    if held is not None:
        held.goodbye(GroupResult(stage, reason=reason, left=left))


def _keep_engine(run_folder: str, lease: Callable[[], Lease]) -> None:
    """Keep the engine that a driver started until the driver ends it or dies."""
    held = lease()
    reason = _watch(held, Wakeup(), None, owner=True)
    clean_engine(run_folder)
    held.goodbye(GroupResult("", reason=reason))


def _find_driver(lease: Callable[[], Lease]) -> None:
    """End with :data:`DRIVER_GONE` unless the driver answers: its job waited in a queue, and nobody may need it now."""
    held = lease()
    while not held.met:
        held.beat()
        held.socket.poll(round(BEAT_SECONDS * 1000))
        if reason := held.read() or held.lost():
            print(f"{reason}: this job ends", file=sys.stderr)
            sys.exit(DRIVER_GONE)
    held.goodbye(GroupResult(""))


def main(arguments: list[str]) -> None:
    """Run a keeper until what it keeps has ended.

    Args:
        arguments: run folder, stage and ``group`` (if left out), ``node``, ``engine``, ``job`` or ``job-end``.
    """
    run_folder, stage, kind = [*arguments, "group"][:3]
    if kind == "job-end":
        sys.stdin.buffer.read()
        clean_engine_job(run_folder)
        return
    driver = records.read(records.driver_path(run_folder))
    keys = records.read(records.client_keys_path(run_folder))
    if driver is None or keys is None:
        raise SystemExit(f"run folder {run_folder}: driver.json or keys/ is missing, so there is nothing to keep")
    run = str(driver["run"])
    if "ended" in driver:
        if kind == "engine":
            clean_engine(run_folder)
        elif kind == "group":
            refused = GroupResult(stage, reason=f"its run has ended ({driver['ended']}), so nothing was started")
            records.write(records.group_path(run_folder, stage), refused.to_json())
        elif kind == "node":
            _keep_ranks(run_folder, stage, run, None)
        elif kind == "job":
            sys.exit(DRIVER_GONE)
        return
    hello = {**processes.identity(), "kind": kind, "stage": stage}

    def lease() -> Lease:
        return Lease(run_folder, driver, keys, hello)

    if kind == "group":
        _keep_group(run_folder, stage, run, lease)
    elif kind == "node":
        _keep_ranks(run_folder, stage, run, lease)
    elif kind == "job":
        _find_driver(lease)
    else:
        _keep_engine(run_folder, lease)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # whoever waits for the group waits for this process, which has nothing to finalise
