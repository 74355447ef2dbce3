"""Finding and ending the processes of a run through ``/proc``.

MPI launchers put ranks in sessions of their own and orphans change their parent, so neither a process group nor a
process tree reaches all of a run. Its environment does: every process of a task group carries :data:`GROUP`, every
process of a run :data:`RUN`, and an engine that aaflow started itself :data:`ENGINE`. Only processes of this user and
this pid namespace are looked at. Standard library only, and little of it (no dataclasses, which import
:mod:`inspect`): a keeper imports this before it launches a group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

#: Environment variables that mark processes: the run, ``<run>/<stage>``, and the run whose pilot started an engine.
RUN = "AAFLOW_RUN"
GROUP = "AAFLOW_GROUP"
ENGINE = "AAFLOW_ENGINE"
#: The ``TMPDIR`` of a node whose engine has been given another one.
NODE_TMPDIR = "AAFLOW_NODE_TMPDIR"
#: Tells the ranks of a group on which node (JSON of :class:`Node`) their keeper runs.
KEEPER = "AAFLOW_KEEPER"
#: What a keeper puts into the environment of its launch command.
GROUP_MARKS = (RUN, GROUP, KEEPER, "SPT_NOENV")

#: How long :func:`end_marked` goes on when processes don't die (a process in uninterruptible I/O), in seconds.
END_SECONDS = 5.0


class Node(NamedTuple):
    """What says that two pids can be compared: host name, boot and pid namespace (a container has its own)."""

    host: str
    boot: str
    namespace: str


class Process(NamedTuple):
    """A process that can't be mistaken for a later one with the same pid.

    Attributes:
        pid: process id.
        start: its start, in clock ticks since boot.
    """

    pid: int
    start: int


def this_node() -> Node:
    """The node that this process runs on."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return Node(os.uname().nodename, boot, os.readlink("/proc/self/ns/pid"))


def read_node(record: Mapping[str, Any]) -> Node:
    """The node in a JSON record that :func:`identity` made."""
    return Node(str(record["host"]), str(record["boot"]), str(record["namespace"]))


def read_process(record: Mapping[str, Any]) -> Process:
    """The process in a JSON record that :func:`identity` made."""
    return Process(int(record["pid"]), int(record["start"]))


def identity(process: Process | None = None) -> dict[str, Any]:
    """A process of this node, by default this one, and the node, as JSON values."""
    return {**this_node()._asdict(), **(process or this_process())._asdict()}


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` after the command's name: state, parent, ...; empty when there is no process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def find_process(pid: int) -> Process | None:
    """The living process with this pid; None when there is none or only a zombie."""
    fields = _stat(pid)
    if not fields or fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]))


def this_process() -> Process:
    """The process that calls."""
    return Process(os.getpid(), int(_stat(os.getpid())[19]))


def parent_of(pid: int) -> Process | None:
    """The parent of a process, or None."""
    fields = _stat(pid)
    return find_process(int(fields[1])) if fields else None


def is_alive(process: Process) -> bool:
    """Whether this very process lives (a zombie does not)."""
    return find_process(process.pid) == process


def has_died(record: Mapping[str, Any]) -> bool:
    """Whether the process of a JSON record that :func:`identity` made was one of this node and is dead."""
    return read_node(record) == this_node() and not is_alive(read_process(record))


def has_memory(pid: int) -> bool:
    """Whether a process has memory: one that was killed gives it back first, and keeps name and open files longer."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False


def children(pid: int) -> list[Process]:
    """The living children that the main thread of a process made; empty where the kernel doesn't tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            found = [find_process(int(child)) for child in file.read().split()]
    except OSError:
        return []
    return [child for child in found if child]


def boot_time() -> float:
    """When this node started, in seconds since the epoch."""
    with open("/proc/stat", encoding="ascii") as file:
        return next(float(line.split()[1]) for line in file if line.startswith("btime "))


def command_name(pid: int) -> str:
    """The kernel's name of a process (at most 15 characters), or the empty string."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def own_pids() -> Iterator[int]:
    """Pids of this user's processes."""
    user = os.geteuid()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == user:
                    yield int(name)


def _environment(pid: int) -> bytes:
    """What a process was started with, each entry between two zero bytes; empty when there is no process."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"\0" + file.read()
    except OSError:
        return b""


def _carries(pid: int, entry: bytes) -> bool:
    return entry in _environment(pid)


def has_variable(pid: int, name: str) -> bool:
    """Whether a process was started with this environment variable."""
    return _carries(pid, f"\0{name}=".encode())


def find_marked(marker: str, value: str) -> list[Process]:
    """The living processes that were started with ``marker=value`` in their environment, this one left out."""
    entry = f"\0{marker}={value}\0".encode()
    found = [find_process(pid) for pid in own_pids() if pid != os.getpid() and _carries(pid, entry)]
    return [process for process in found if process]


def find_by_value(*markers: str) -> dict[str, set[Process]]:
    """The living processes that carry any of these markers, by its value, this one left out; ``/proc`` is read once."""
    found: dict[str, set[Process]] = {}
    for pid in own_pids():
        environment = _environment(pid) if pid != os.getpid() else b""
        for marker in markers:
            _, carries, rest = environment.partition(f"\0{marker}=".encode())
            process = find_process(pid) if carries else None
            if process is not None:
                found.setdefault(os.fsdecode(rest.partition(b"\0")[0]), set()).add(process)
    return found


def kill(process: Process) -> None:
    """Send SIGKILL to this very process, and to no later one that got its pid."""
    try:
        handle = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # a kernel before 5.3, or a process that has ended
        if is_alive(process):
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        return
    try:
        if is_alive(process):
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)


def end_all(find: Callable[[], list[Process]], *, seconds: float = END_SECONDS) -> list[Process]:
    """SIGKILL what ``find`` finds until it finds nothing twice in a row; returns what is left after ``seconds``.

    Twice, because a process that is just being started or is inside ``execve`` shows no environment for a moment. One
    that dies shows none either, while it still has files open: what was found once has to be gone.
    """
    deadline = time.monotonic() + seconds
    found: set[Process] = set()
    quiet = 0
    while True:
        found |= set(find())
        alive = [process for process in found if is_alive(process)]
        quiet = 0 if alive else quiet + 1
        if quiet == 2 or time.monotonic() > deadline:
            return alive
        for process in alive:
            kill(process)
        time.sleep(0.01)


def end_marked(marker: str, value: str, *, seconds: float = END_SECONDS) -> list[Process]:
    """SIGKILL every process that carries ``marker=value`` and wait for its end; returns what is left."""
    return end_all(lambda: find_marked(marker, value), seconds=seconds)


def marked(environment: Mapping[str, str], *, run: str, stage: str) -> dict[str, str]:
    """``environment`` with the marks of a task group.

    ``SPT_NOENV`` keeps setproctitle, should a process use it, from overwriting the environment that ``/proc`` shows.
    """
    marks = {RUN: run, GROUP: f"{run}/{stage}", "SPT_NOENV": "1"}
    return {**{name: value for name, value in environment.items() if name != ENGINE}, **marks}
