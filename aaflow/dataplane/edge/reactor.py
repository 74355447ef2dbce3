"""The I/O thread of a rank's edges: the only one that uses their sockets. It sleeps in poll and never waits elsewhere.

Peers are judged by ZMTP heartbeats, which run outside the interpreter lock, and by the end of their connection, which
the kernel tells at once when a process of this node dies.
"""

from __future__ import annotations

import contextlib
import copy
import os
import resource
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from aaflow.dataplane.edge.keys import EdgeKeys
from aaflow.dataplane.edge.memory import Releases
from aaflow.errors import EdgeError

T = TypeVar("T")

#: Open files of one channel, about: sockets with their signals and monitors, connections, memory and some to spare.
_FILES = 10

#: A peer that answers no heartbeat for this long is taken for dead; with the time between heartbeats under 5 s.
HEARTBEAT_MILLISECONDS = 1000
SILENCE_MILLISECONDS = 3000

_WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)
_ZAP = "inproc://zeromq.zap.01"


class Channel(Protocol):
    """What the reactor does its I/O for. It calls these in its thread and holds ``Reactor.changed`` meanwhile."""

    def on_connected(self) -> None:
        """The ZMTP handshake succeeded."""

    def on_refused(self) -> None:
        """The ZMTP handshake failed."""

    def on_frames(self, frames: list[zmq.Frame]) -> None:
        """A message came."""

    def on_disconnected(self, descriptor: int) -> None:
        """A connection broke; a listener may have had others than its peer's."""

    def on_released(self, number: int) -> None:
        """A lease ended in this process."""


class Reactor:
    """Sockets of a rank, the thread that serves them, and the condition that everybody else waits on.

    Attributes:
        changed: guards the state of all channels and tells of its changes.
        releases: leases that ended.
        context: of all sockets.
    """

    def __init__(self, name: str, keys: EdgeKeys, *, encrypted: bool) -> None:
        self.changed = threading.Condition()
        self.releases = Releases()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, self.context.get(zmq.SOCKET_LIMIT))
        self._keys = keys
        self._encrypted = encrypted
        self._wakeup = self.releases.wakeup
        self._failure: EdgeError | None = None
        self._todo: deque[Callable[[], None]] = deque()
        self._channels: dict[zmq.Socket[bytes], Channel] = {}
        self._monitors: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()
        self._stopped = False
        self._expected = 0
        self._zap = self.context.socket(zmq.REP)
        self._zap.bind(_ZAP)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def socket(self) -> zmq.Socket[bytes]:
        """A new socket for a channel; whoever made it may bind or connect it, and hands it over with :meth:`add`."""
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)  # credits are the bound
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MILLISECONDS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MILLISECONDS)
        return socket

    def expect(self, channels: int) -> None:
        """Raise the limit of open files where ``channels`` more than now need it: ZeroMQ aborts at the limit.

        Raises:
            EdgeError: the hard limit is too low.
        """
        self._expected += channels
        needed = len(os.listdir("/proc/self/fd")) + _FILES * self._expected
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and needed > hard:
            raise EdgeError(
                f"{self._expected} channels of edges need about {needed} open files and this process may have {hard}: "
                "raise the hard limit (ulimit -Hn), or use fewer ranks"
            )
        if soft != resource.RLIM_INFINITY and needed > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

    def add(self, channel: Channel, socket: zmq.Socket[bytes], start: Callable[[], None] | None = None) -> None:
        """Serve a socket from now on.

        Args:
            channel: told what happens.
            socket: of :meth:`socket`.
            start: called in the thread once the socket is watched.
        """

        def run() -> None:
            monitor = socket.get_monitor_socket(_WATCHED)
            self._channels[socket] = channel
            self._monitors[monitor] = socket
            self._poller.register(socket, zmq.POLLIN)
            self._poller.register(monitor, zmq.POLLIN)
            if start is not None:
                start()

        self._do(run)

    def remove(self, socket: zmq.Socket[bytes]) -> None:
        """Close a socket that was added; unsent messages are dropped."""
        self._do(lambda: self._close(socket))

    def post(self, socket: zmq.Socket[bytes], frames: Sequence[Any]) -> None:
        """Send a message; large frames are not copied. Never blocks."""
        self._do(lambda: self._send(socket, frames))

    def _do(self, action: Callable[[], None]) -> None:
        self._todo.append(action)
        if threading.current_thread() is not self._thread:
            self._wakeup.ring()

    def fail(self, failure: EdgeError) -> None:
        """Wake all waiters, now and later, with an error; the first one counts."""
        with self.changed:
            if self._failure is None:
                self._failure = failure
            self.changed.notify_all()

    @property
    def failed(self) -> bool:
        """Whether :meth:`fail` was called."""
        return self._failure is not None

    def check(self) -> None:
        """Raise what the reactor failed with, if it did."""
        if self._failure is not None:
            raise copy.copy(self._failure)

    def wait(self, ready: Callable[[], T | None], timeout: float | None = None) -> T | None:
        """Sleep until ``ready`` gives something, which is returned; None when the time is over.

        The caller holds :attr:`changed`.

        Raises:
            PeerLost, EdgeCancelled: the edges of this rank failed.
        """
        waited = False
        while True:
            if self.settle():
                # Another thread may wait for just that, and this one has taken it from the reactor's.
                self.changed.notify_all()
            self.check()
            found = ready()
            if found is not None or (waited and timeout is not None):
                return found
            self.changed.wait(timeout)
            waited = True

    def settle(self) -> bool:
        """Account for leases that ended, and say whether there were any; the caller holds :attr:`changed`."""
        ended = self.releases.take()
        for channel, number in ended:
            channel.on_released(number)
        return bool(ended)

    def stop(self, linger: int) -> None:
        """End the thread and close all sockets.

        Args:
            linger: milliseconds in which what was posted may still go out.
        """

        def run() -> None:
            self._stopped = True

        self.fail(EdgeError("the endpoint of these edges is closed"))
        self._do(run)
        self._thread.join()
        self.context.destroy(linger)
        # Channels and reactor refer to each other; memory should not wait for the garbage collector.
        self._channels.clear()
        self._monitors.clear()
        self._todo.clear()
        self.releases.close()

    def _run(self) -> None:
        try:
            self._poller.register(self._wakeup.descriptor, zmq.POLLIN)
            self._poller.register(self._zap, zmq.POLLIN)
            while not self._stopped:
                self._turn()
        except Exception as error:
            self.fail(EdgeError(f"the I/O thread of the edges failed: {error!r}"))

    def _turn(self) -> None:
        """Sleep until something happens, and see to it."""
        ready = [source for source, _ in self._poller.poll()]
        self._wakeup.clear()
        with self.changed:
            happened = self.settle() or ready != [self._wakeup.descriptor]
            # Messages before the end of their connection.
            for source in ready:
                if source in self._channels:
                    self._receive(source)
            for source in ready:
                if source in self._monitors:
                    self._observe(source)
                elif source is self._zap:
                    self._admit()
            if happened:
                self.changed.notify_all()
        while self._todo:
            self._todo.popleft()()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        channel = self._channels[socket]
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            channel.on_frames(frames)

    def _observe(self, monitor: zmq.Socket[bytes]) -> None:
        socket = self._monitors[monitor]
        channel = self._channels[socket]
        while True:
            try:
                event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                channel.on_connected()
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._receive(socket)
                channel.on_disconnected(int(event["value"]))
            else:
                channel.on_refused()

    def _admit(self) -> None:
        """Answer a request of the ZeroMQ Authentication Protocol (RFC 27)."""
        version, request, _domain, _address, _identity, mechanism, *credentials = self._zap.recv_multipart()
        admitted = self._keys.admits(mechanism, credentials, encrypted=self._encrypted)
        status = [b"200", b"OK"] if admitted else [b"400", b"unknown key"]
        self._zap.send_multipart([version, request, *status, b"", b""])

    def _send(self, socket: zmq.Socket[bytes], frames: Sequence[Any]) -> None:
        if socket in self._channels:
            # Nobody to send to: the peer is gone, and the end of its connection tells whether that matters. One that
            # has delivered everything leaves before the last of its batches is released.
            with contextlib.suppress(zmq.Again):
                socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def _close(self, socket: zmq.Socket[bytes]) -> None:
        if self._channels.pop(socket, None) is None:
            return
        monitor = next(monitor for monitor, watched in self._monitors.items() if watched is socket)
        del self._monitors[monitor]
        self._poller.unregister(socket)
        self._poller.unregister(monitor)
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)
