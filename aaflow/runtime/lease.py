"""The driver's end of the lease: who owns a run, and which of its task groups are alive.

A driver holds one :class:`RunLease` per run. Every keeper of the run beats once a second over ZeroMQ with CURVE; the
lease answers each beat. Both ends judge silence by their own monotonic clock, so no two clocks have to agree:

* a driver that is killed, stopped or cut off: its keepers end their groups and what is left of its engine;
* a keeper that is killed: its twin tells the driver at once where it has one;
* a keeper that is killed without one, or a node that is lost: the driver learns it within 3 s on its own node, within
  ``LEASE_SECONDS`` and a beat elsewhere, and
  :meth:`RunLease.watch` fails, although the engine's own future may never complete.

The lease lives in a daemon thread; a main thread that holds the interpreter lock for seconds on end loses it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import subprocess
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from aaflow.errors import RunError, StageError
from aaflow.runtime import processes, records
from aaflow.runtime.cleaning import clean_engine, clean_group
from aaflow.runtime.ending import GroupResult, stage_error
from aaflow.runtime.group import start_keeper
from aaflow.runtime.keeping import BEAT_SECONDS, LEASE_SECONDS, route_to

#: How long :meth:`RunLease.end` waits for the keepers' goodbyes: as long as a keeper may take to end its group.
END_SECONDS = 8.0


@dataclass
class _Keeper:
    """What the driver knows of one keeper."""

    kind: str
    stage: str
    host: str
    process: processes.Process | None  # None on another node
    heard: float
    dead_since: float | None = None


class _OneClient:
    """Tells the authenticator that one public key may come in: the keepers' own."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return secrets.compare_digest(key, self._public)


class RunLease:
    """Ownership of a run, from ``driver.json`` in its folder to the last keeper's goodbye. A context manager.

    Args:
        run_folder: folder of the run; made with mode 0700.
        address: IP address that keepers reach: 127.0.0.1, or that of the site's interface.

    Raises:
        RunError: another living driver owns the folder, or the address can't be bound.
    """

    def __init__(self, run_folder: str, address: str = "127.0.0.1") -> None:
        self.run_folder = os.path.abspath(run_folder)
        os.makedirs(self.run_folder, mode=0o700, exist_ok=True)
        _refuse_owned(self.run_folder)
        #: Id of the run, in the environment of all its processes; new for every lease.
        self.run = f"{os.path.basename(self.run_folder)}-{secrets.token_hex(6)}"
        self._lock = threading.Lock()
        self._keepers: dict[bytes, _Keeper] = {}
        self._watched: dict[str, Future[GroupResult]] = {}
        self._ending: dict[str, str] = {}
        self._ended: str | None = None
        self._engine: subprocess.Popen[bytes] | None = None
        self._quiet = threading.Event()
        self._context = zmq.Context()
        self._authenticator = ThreadAuthenticator(self._context)
        self._socket = self._bind(address)
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="aaflow-lease", daemon=True)
        self._thread.start()
        self._driver = {**processes.identity(), "run": self.run, "address": self._address, "began": time.time()}
        records.write(records.driver_path(self.run_folder), self._driver)

    def _bind(self, address: str) -> zmq.Socket[bytes]:
        server_public, server_secret = zmq.curve_keypair()
        public, secret = zmq.curve_keypair()
        keys = {"server": server_public.decode(), "public": public.decode(), "secret": secret.decode()}
        records.write(records.client_keys_path(self.run_folder), keys)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain="aaflow", credentials_provider=_OneClient(public))
        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.setsockopt(zmq.IPV6, 1)
        socket.zap_domain = b"aaflow"
        socket.curve_server = True
        socket.curve_secretkey = server_secret
        host = f"[{address}]" if ":" in address else address
        try:
            port = socket.bind_to_random_port(f"tcp://{host}")
        except zmq.ZMQError as error:
            socket.close(0)
            self._authenticator.stop()
            self._context.term()
            raise RunError(
                f"run folder {self.run_folder}: the lease can't listen on {address} ({error}); "
                "give the address of an interface of this node (`interface` of the site)"
            ) from error
        self._address = f"tcp://{host}:{port}"
        return socket

    def watch(self, stage: str) -> Future[GroupResult]:
        """A future of the end of a stage's next task group, as its keeper tells it; call it before the group starts.

        It fails with :class:`aaflow.errors.StageError` when the group failed, when its keeper fell silent or when the
        process that started it died, so wait for it beside the engine's own future: whichever comes first. A group
        that ends well is told here a moment before the engine tells it. Callbacks run in the lease's thread.
        """
        future: Future[GroupResult] = Future()
        with self._lock:
            self._watched[stage] = future
            self._ending.pop(stage, None)
            if self._ended is not None:
                self._watched.pop(stage).set_exception(StageError(self._ended, stage=stage))
        return future

    def alive(self, stage: str) -> bool:
        """Whether a keeper of this stage holds the lease now."""
        with self._lock:
            return any(keeper.stage == stage for keeper in self._keepers.values())

    def keep_engine(self, *, nodes: int = 1) -> dict[str, str]:
        """Start a keeper for an engine that this run's pilot is about to start on this node.

        Args:
            nodes: on which its groups run. Where there are several, ranks don't get the engine's ``TMPDIR``.

        Returns:
            The variables that mark the engine's processes: they must be in the environment that these are started
            with. What carries them is ended with SIGKILL when the driver dies (at once) and when the lease ends.
            ``TMPDIR`` is among them, a folder of this node that is removed then: engines leave temporary files.
        """
        base = tempfile.gettempdir()
        # Engines make sockets in there, whose whole path may have 107 characters.
        temporary = os.path.join(base if len(base) < 50 else "/tmp", f"aaflow-{secrets.token_hex(8)}")
        engine = {"run": self.run, "temporary": temporary, "since": time.time_ns()}
        records.write(records.engine_path(self.run_folder), engine)
        self._engine = start_keeper(self.run_folder, "-", "engine", run=self.run)
        os.mkdir(temporary, 0o700)  # by now there is a keeper to remove it, whoever is killed
        marks = {processes.ENGINE: self.run, "SPT_NOENV": "1", "TMPDIR": temporary}
        return marks if nodes == 1 else {**marks, processes.NODE_TMPDIR: os.environ.get("TMPDIR", "")}

    def end_group(self, stage: str, reason: str) -> None:
        """Tell the keepers of a stage to end their group now."""
        with self._lock:
            self._ending[stage] = reason
        os.write(self._waker, b"x")

    def end(self, reason: str) -> None:
        """Tell every keeper to end what it keeps, wait for their goodbyes (at most 8 s) and give the run up."""
        with self._lock:
            if self._ended is not None:
                return
            self._ended = f"the driver ended the run: {reason}"
        records.write(records.driver_path(self.run_folder), {**self._driver, "ended": reason})
        os.write(self._waker, b"x")
        self._quiet.wait(END_SECONDS)
        if self._engine is not None:
            assert self._engine.stdin is not None
            self._engine.stdin.close()
            if self._engine.wait():  # it was killed
                clean_engine(self.run_folder)
        os.close(self._waker)
        self._thread.join()
        os.close(self._wake)
        self._authenticator.stop()
        self._context.destroy(linger=1000)
        for stage, future in self._watched.items():
            future.set_exception(StageError(f"stage {stage!r}: {self._ended}", stage=stage))
        self._watched.clear()

    def __enter__(self) -> RunLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end("it is done" if kind is None else f"{kind.__name__}: {error}".removesuffix(": "))

    def _serve(self) -> None:
        """Answer beats and judge silence, until :meth:`end` closes the pipe; the one thread that uses the socket."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN | zmq.POLLERR)
        checked = time.monotonic()
        while True:
            events = dict(poller.poll(round(BEAT_SECONDS * 1000)))
            if self._wake in events and not os.read(self._wake, 64):
                break
            while self._socket.poll(0):
                self._receive(self._socket.recv_multipart()[1])
            if self._wake in events:
                self._spread_end()
            # Silence counts only while this thread itself was awake to hear.
            now = time.monotonic()
            if now - checked > 3 * BEAT_SECONDS:
                with self._lock:
                    for keeper in self._keepers.values():
                        keeper.heard = max(keeper.heard, now - BEAT_SECONDS)
            checked = now
            self._judge(now)
            if self._ended is not None and not self._keepers:
                self._quiet.set()
        self._socket.close()

    def _receive(self, payload: bytes) -> None:
        message = json.loads(payload)
        route = route_to(message)  # what a dead keeper sent comes under another name once its twin is here
        stage, kind = str(message["stage"]), str(message["kind"])
        if message["word"] == "bye":
            with self._lock:
                self._keepers.pop(route, None)
            self._ended_group(stage, kind, GroupResult.from_json(message["result"]), str(message["host"]))
            return
        with self._lock:
            if route not in self._keepers:
                here = processes.read_node(message) == processes.this_node()
                process = processes.read_process(message) if here else None
                self._keepers[route] = _Keeper(kind, stage, str(message["host"]), process, 0.0)
                if kind == "group":
                    self._ending.pop(stage, None)
            self._keepers[route].heard = time.monotonic()
        if message["word"] == "ends":
            self._ended_group(stage, kind, GroupResult.from_json(message["result"]), str(message["host"]))
        with self._lock:
            reason = self._ended or self._ending.get(stage)
        self._answer(route, {"word": "held"} if reason is None else {"word": "end", "reason": reason})

    def _answer(self, route: bytes, message: dict[str, Any]) -> None:
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart([route, json.dumps(message).encode()], zmq.NOBLOCK)

    def _spread_end(self) -> None:
        """Tell those who must end now, without waiting for their next beat."""
        with self._lock:
            told = [(route, self._ended or self._ending.get(keeper.stage)) for route, keeper in self._keepers.items()]
        for route, reason in told:
            if reason is not None:
                self._answer(route, {"word": "end", "reason": reason})

    def _ended_group(self, stage: str, kind: str, result: GroupResult, host: str) -> None:
        """A keeper said goodbye: the others of its stage end too, and who watches the stage is told."""
        if kind in ("engine", "job") or (kind == "node" and result.reason is None):
            return
        why = result.reason or "the group ended"
        with self._lock:
            self._ending.setdefault(stage, why if kind == "group" else f"on node {host}: {why}")
            future = self._watched.pop(stage, None) if kind == "group" else None
        self._spread_end()
        if future is None:
            return
        if result.succeeded:
            future.set_result(result)
        else:
            future.set_exception(stage_error(self.run_folder, result))

    def _judge(self, now: float) -> None:
        """Give up keepers that fell silent or died, end what they kept if it is on this node, tell who watches."""
        with self._lock:
            judged = {route: _why_lost(keeper, now) for route, keeper in self._keepers.items()}
            lost = [(self._keepers.pop(route), why) for route, why in judged.items() if why is not None]
        for keeper, why in lost:
            if keeper.process is not None:  # one that stands still: who started it waits for its end
                processes.kill(keeper.process)
            if keeper.kind not in ("engine", "job"):
                self._ended_group(keeper.stage, "group", self._end_lost(keeper, why), keeper.host)

    def _end_lost(self, keeper: _Keeper, why: str) -> GroupResult:
        """End what a lost keeper kept, if it is on this node; elsewhere the other keepers of its stage end theirs.

        Only then: where this reached further, a keeper that lives would tell of what was done to its launch command
        before this thread has told it why.
        """
        left: tuple[str, ...] = ()
        if keeper.process is not None:
            find = functools.partial(processes.find_marked, processes.GROUP, f"{self.run}/{keeper.stage}")
            left = clean_group(self.run_folder, keeper.stage, find, seconds=1.0)
        return GroupResult(keeper.stage, reason=f"its keeper on {keeper.host} {why}", left=left)


def _why_lost(keeper: _Keeper, now: float) -> str | None:
    """Why a keeper must be given up, or None; one that died has a second for its goodbye to arrive."""
    if now - keeper.heard > LEASE_SECONDS:
        lost = "" if keeper.process is not None else ": its node or the way there is lost"
        return f"was silent for {LEASE_SECONDS:g} s{lost}"
    if keeper.process is None or processes.is_alive(keeper.process):
        return None
    if keeper.dead_since is None:
        keeper.dead_since = now
    return "died" if now - keeper.dead_since > BEAT_SECONDS else None


def _refuse_owned(run_folder: str) -> None:
    driver = records.read(records.driver_path(run_folder))
    if driver is None or "ended" in driver:
        return
    if processes.read_node(driver) == processes.this_node() and processes.is_alive(processes.read_process(driver)):
        raise RunError(
            f"run folder {run_folder}: the driver with pid {driver['pid']} owns it; "
            "wait for its end or use another folder"
        )
