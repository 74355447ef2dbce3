"""What a keeper does when it has launched: the lease, watching, and cleaning up at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import zmq

from aaflow.runtime import processes, records
from aaflow.runtime.cleaning import clean_engine, clean_group
from aaflow.runtime.ending import GroupResult, keeper_ended
from aaflow.runtime.kept import Launch, Ranks
from aaflow.runtime.wakeup import Wakeup

#: Silence after which either end of a lease takes the other for dead, and the time between beats; seconds.
LEASE_SECONDS = 6.0
BEAT_SECONDS = 1.0

#: Seconds that a driver has to answer.
ANSWER_SECONDS = 1.0
#: How long a word of the driver's may take from when another keeper acts on it.
WORD_MILLISECONDS = 200

#: Exit code of a keeper in a batch job whose driver is gone.
DRIVER_GONE = 3


def route_to(hello: Mapping[str, Any]) -> bytes:
    """The name of a keeper as a peer of the driver's socket, by what each of its messages says of it."""
    return ":".join(str(hello[part]) for part in ("kind", "stage", "host", "pid")).encode()


class Lease:
    """A keeper's end of the lease: beats to the driver, and what the driver says or no longer says.

    Args:
        run_folder: of the run.
        driver: its record.
        keys: of the lease.
        kind: of the keeper.
        stage: of the group.
        process: the keeper whose lease it is, where that is another one: its twin goes on with it.
    """

    def __init__(
        self,
        run_folder: str,
        driver: dict[str, Any],
        keys: dict[str, Any],
        kind: str,
        stage: str,
        process: processes.Process | None = None,
    ) -> None:
        self._run_folder = run_folder
        self._driver = processes.read_process(driver) if _on_this_node(driver) else None
        self._hello = hello = {**processes.identity(process), "kind": kind, "stage": stage}
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, route_to(hello))
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

    def announce(self, result: GroupResult) -> None:
        """Tell the driver that the group must end, and come back when it tells all keepers of it."""
        self._send({"word": "ends", "result": result.to_json()})
        deadline = time.monotonic() + ANSWER_SECONDS
        while self.read() is None and (left := deadline - time.monotonic()) > 0:
            self.socket.poll(round(1000 * left))

    def goodbye(self, result: GroupResult) -> None:
        """Tell the driver how the group ended and leave."""
        self._send({"word": "bye", "result": result.to_json()})
        self._context.destroy(linger=1000)

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(zmq.Again):
            self.socket.send(json.dumps({**self._hello, **message}).encode(), zmq.NOBLOCK)

    def read(self) -> str | None:
        """Take what the driver said; returns the reason if it said that the group must end."""
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


def _watch(lease: Lease, wakeup: Wakeup, kept: Launch | Ranks | None, *, owner: bool) -> str | None:
    """Sleep until the group has ended (returns None) or must be ended (returns why).

    Args:
        lease: of the driver.
        wakeup: signals.
        kept: what is kept; None for an engine, which only its driver ends.
        owner: whether stdin is a pipe from the process that wants this group.
    """
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
            if not (isinstance(kept, Launch) and kept.status):
                return None
            # Others of the group may have been ended by now, and the word to end all of it is on its way.
            lease.socket.poll(WORD_MILLISECONDS)
            return lease.read()
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


def keep_group(
    run_folder: str, stage: str, run: str, launch: Launch | str, wakeup: Wakeup, lease: Lease | None
) -> None:
    """Keep a group that has been launched to its end, or say why it was not; stdin is a pipe from whoever wants it."""
    if isinstance(launch, str) or lease is None:
        records.write(records.group_path(run_folder, stage), GroupResult(stage, reason=str(launch)).to_json())
        return
    reason = _watch(lease, wakeup, launch, owner=True)
    lost = reason is not None and lease.lost() is not None

    def find() -> list[processes.Process]:
        launch.reap()
        return list({*processes.find_marked(processes.GROUP, f"{run}/{stage}"), *processes.children(os.getpid())})

    clean = reason is None and launch.status == 0
    if not clean:
        _close_node(run_folder, stage)
    left = clean_group(run_folder, stage, find, since=None if clean else launch.since)
    status = launch.status
    code, number = (status, None) if status is None or status >= 0 else (None, -status)
    result = GroupResult(stage, code, number, reason, launch.seconds, left)
    records.write(records.group_path(run_folder, stage), result.to_json())
    lease.goodbye(result)
    if lost:
        clean_engine(run_folder)


def _close_node(run_folder: str, stage: str) -> None:
    """Have ranks that come to this node from now on go again; those that came before can be found, and are ended."""
    with contextlib.suppress(OSError):  # the node may have lost the folder, to which no rank comes then
        records.write(records.on_node_path(run_folder, stage, "over"), None)


class Dead(NamedTuple):
    """A keeper that ended before its ranks, and its exit code or minus its signal."""

    process: processes.Process
    code: int


def outlive_a_twin() -> Dead | None:
    """Have a child do what this process came for: on a further node nobody else would clean up after a killed keeper.

    Returns:
        None in the child. Here, where the child was killed, who that was; where it ended well so does this process.
    """
    try:
        pid = os.fork()
    except OSError:  # too many processes: without a twin, then
        return None
    if pid == 0:
        return None
    process = processes.find_process(pid) or processes.Process(pid, 0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        os._exit(0)
    return Dead(process, code)


def keep_ranks(run_folder: str, stage: str, run: str, lease: Lease | None, since: int, dead: Dead | None) -> None:
    """Keep the ranks of a group on a further node until they have ended or must end; how they ended is not known.

    Args:
        run_folder: of the run.
        stage: of the group.
        run: id of the run.
        lease: of the driver; None where the run has ended.
        since: when the first of them came, ns.
        dead: the keeper that kept them until it died.
    """
    wakeup = Wakeup()
    group = f"{run}/{stage}"
    reason = None
    if dead is not None and lease is not None:
        lease.announce(GroupResult(stage, reason=keeper_ended(dead.code)))
    elif lease is not None:
        reason = _watch(lease, wakeup, Ranks(group), owner=False)
    _close_node(run_folder, stage)

    def find() -> list[processes.Process]:
        return processes.find_marked(processes.GROUP, group)

    left = clean_group(run_folder, stage, find, since=since)
    if lease is not None:
        lease.goodbye(GroupResult(stage, reason=reason, left=left))


def keep_engine(run_folder: str, lease: Lease | None) -> None:
    """Keep the engine that a driver started until the driver ends it or dies."""
    reason = _watch(lease, Wakeup(), None, owner=True) if lease is not None else None
    clean_engine(run_folder)
    if lease is not None:
        lease.goodbye(GroupResult("", reason=reason))


def find_driver(lease: Lease | None) -> bool:
    """Whether the driver answers: its job waited in a queue, and nobody may need it now."""
    while lease is not None and not lease.met:
        lease.beat()
        lease.socket.poll(round(BEAT_SECONDS * 1000))
        if reason := lease.read() or lease.lost():
            print(f"{reason}: this job ends", file=sys.stderr)
            return False
    if lease is not None:
        lease.goodbye(GroupResult(""))
    return lease is not None
