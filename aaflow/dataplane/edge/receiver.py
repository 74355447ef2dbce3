"""The consumer's end of an edge: messages of many producers, read where they lie."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
import pyarrow as pa
import zmq

from aaflow.dataplane.edge import protocol
from aaflow.dataplane.edge.frames import decode
from aaflow.dataplane.edge.memory import Bytes, Lease, SharedMemory, leased
from aaflow.dataplane.edge.reactor import Reactor
from aaflow.dataplane.edge.spec import EdgeSpec, Form, Message
from aaflow.errors import EdgeError, PeerLost


class Inbox:
    """The channel from one producer.

    Attributes:
        rank: the producer's.
        queue: messages that came and were not taken, with the order of their coming; None for the end.
        up: whether the producer is connected and its memory mapped.
        taken_all: whether the end of the stream was taken.
        hello: what the producer said first, until then None.
        address: where this end listens.
        spec: of the edge.
        form: of the channel.
        process: pid of the producer.
    """

    def __init__(
        self, reactor: Reactor, spec: EdgeSpec, rank: int, form: Form, own_rank: int, order: Iterator[int]
    ) -> None:
        self.rank = rank
        self.queue: deque[tuple[int, Incoming | None]] = deque()
        self.up = False
        self.taken_all = False
        self.hello: bytes | None = None
        self.address = ""
        self._reactor = reactor
        self.spec = spec
        self.form = form
        self.process = 0
        self._own_rank = own_rank
        self._order = order
        self._socket: zmq.Socket[bytes] | None = None
        self._descriptor = -1
        self._complete = False
        self._memory: SharedMemory | None = None

    def listen(self, socket: zmq.Socket[bytes], host: str) -> None:
        """Bind and publish the address as :attr:`address`.

        Raises:
            EdgeError: the address is none of this node.
        """
        try:
            self.address = f"tcp://{host}:{socket.bind_to_random_port(f'tcp://{host}')}"
        except zmq.ZMQError as error:
            socket.close(0)
            raise EdgeError(
                f"{self.spec}: rank {self._own_rank} of {self.spec.target!r} can't listen on {host} ({error}); give "
                "the address of an interface of this node (`interface` of the site)"
            ) from error
        self._socket = socket
        self._reactor.add(self, socket)

    def accept(self) -> None:
        """Answer the producer's hello: map its memory, in the caller's thread.

        Raises:
            EdgeError: the two ends don't agree, or the memory can't be opened; the producer is told as well.
        """
        assert self.hello is not None
        try:
            self._open(self.hello)
        except (EdgeError, OSError, ValueError) as error:
            text = f"{self.spec}: rank {self._own_rank} of {self.spec.target!r} refuses rank {self.rank} of "
            text += f"{self.spec.source!r}: {error}"
            self._post([protocol.REFUSED + text.encode()])
            raise EdgeError(text) from error
        self._post([protocol.READY])
        self.up = True

    def _open(self, text: bytes) -> None:
        hello = protocol.Hello.from_bytes(text)
        if (hello.rank, hello.form) != (self.rank, self.form):
            raise EdgeError(f"it says it is rank {hello.rank} by {hello.form.value}, not {self.form.value}")
        if hello.spec != self.spec:
            raise EdgeError(f"it has another idea of the edge:\n{hello.spec!r}\nnot\n{self.spec!r}")
        self.process = hello.process
        if hello.memory is None:
            return
        try:
            self._memory = SharedMemory.open(hello.process, *hello.memory)
        except OSError as error:
            raise EdgeError(
                f"its shared memory can't be opened ({error}); ranks of one node must run as one user in one pid "
                "namespace (one container), or the edge must go over sockets"
            ) from error
        self._memory.touch()

    def finish(self) -> None:
        """The end of the stream was taken."""
        self.taken_all = True
        self._post([protocol.DONE])

    def buffer(self, number: int) -> Bytes:
        """One of the buffers of shared memory."""
        assert self._memory is not None
        size = self._memory.size // self.spec.buffers
        return self._memory.array[number * size : (number + 1) * size]

    def lease(self, number: int) -> Lease:
        """A lease whose end is told to the producer."""
        return Lease(self._reactor.releases, self, number)

    def release(self, numbers: list[int]) -> None:
        """Tell the producer that nothing refers to these any more."""
        self._post([protocol.RELEASE + np.array(numbers, np.int64).tobytes()])

    def _post(self, frames: list[bytes]) -> None:
        assert self._socket is not None
        self._reactor.post(self._socket, frames)

    def _lost(self) -> PeerLost:
        return PeerLost(
            f"{self.spec}: rank {self.rank} of stage {self.spec.source!r} is gone before the end of its stream to "
            f"rank {self._own_rank} of {self.spec.target!r}; see the log of stage {self.spec.source!r} for why",
            stage=self.spec.source,
            rank=self.rank,
        )

    def on_connected(self) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""

    def on_refused(self) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""

    def on_disconnected(self, descriptor: int) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""
        if descriptor == self._descriptor and not self._complete:
            assert self._socket is not None
            self._reactor.remove(self._socket)
            self._reactor.fail(self._lost())

    def on_released(self, number: int) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""
        self.release([number])

    def on_frames(self, frames: list[zmq.Frame]) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""
        frame = frames[0].bytes
        word = frame[:1]
        if word == protocol.DATA:
            self._receive(frame, frames[1:])
        elif word == protocol.END:
            self._complete = True
            self.queue.append((next(self._order), None))
        elif word == protocol.HELLO:
            self._descriptor = int(frames[0].get(zmq.SRCFD))
            self.hello = frame[1:]

    def _receive(self, frame: bytes, frames: list[zmq.Frame]) -> None:
        try:
            self.queue.append((next(self._order), Incoming(self, frame, frames)))
        except (FileNotFoundError, PermissionError, ProcessLookupError):  # its process has died since it answered
            self._reactor.fail(self._lost())
        except OSError as error:
            why = f"{self.spec}: the shared memory of a large message of rank {self.rank} can't be opened: {error}"
            self._reactor.fail(EdgeError(why))

    def drop(self) -> None:
        """Let go of the memory; what was taken stays."""
        self.queue.clear()
        self._memory = None


class Incoming:
    """A message that came; decoded by whoever takes it."""

    def __init__(self, inbox: Inbox, frame: bytes, frames: list[zmq.Frame]) -> None:
        self._inbox = inbox
        self._tag, (self._numbers, own, self._sizes, self._layouts), self._body = protocol.unpack_data(frame)
        self._frames = frames
        # Mapped at once: its producer may end as soon as everything has come.
        self._own = SharedMemory.open(inbox.process, *own) if own is not None else None

    def message(self) -> Message:
        """The message, with batches that point into the memory it came in."""
        memory = self._memory()
        schemas = self._inbox.spec.schemas
        batches = tuple(
            None if layout is None else decode(layout, schema, memory)
            for layout, schema in zip(self._layouts, schemas)  # noqa: B905 - of one length
        )
        return Message(self._tag, batches)

    def _memory(self) -> Callable[[int], pa.Buffer]:
        """What the numbers in this message's places mean."""
        inbox = self._inbox
        if inbox.form is Form.SOCKET and self._numbers != [protocol.SMALL]:
            lease = inbox.lease(self._numbers[0])
            found = dict(enumerate(self._from_frames(lease)))
            return found.__getitem__
        memories: dict[int, pa.Buffer] = {}
        for number in self._numbers:
            if number == protocol.SMALL:
                memories[number] = pa.py_buffer(self._body)
                inbox.release([number])
            elif number < inbox.spec.buffers:
                memories[number] = leased(inbox.buffer(number), inbox.lease(number))
            else:
                assert self._own is not None
                memories[number] = leased(self._own.array, inbox.lease(number))
        return memories.__getitem__

    def _from_frames(self, lease: Lease) -> Iterator[pa.Buffer]:
        frames = iter(self._frames)
        for size in self._sizes:
            pieces = [np.frombuffer(next(frames).buffer, np.uint8)]
            while (came := sum(len(piece) for piece in pieces)) < size:
                pieces.append(np.frombuffer(next(frames).buffer, np.uint8))
            assert came == size
            yield leased(pieces[0] if len(pieces) == 1 else np.concatenate(pieces), lease)


class Receiver:
    """Takes the messages of an edge's producers. May be used from several threads."""

    def __init__(self, reactor: Reactor, spec: EdgeSpec, producers: Mapping[int, Form], own_rank: int) -> None:
        order = itertools.count()
        self._reactor = reactor
        self._spec = spec
        self.inboxes = {
            rank: Inbox(reactor, spec, rank, form, own_rank, order) for rank, form in sorted(producers.items())
        }

    def take(self, among: Collection[int] | None = None) -> tuple[int, Message | None]:
        """The next message, in order of coming; sleeps until there is one.

        The batches point into the edge's memory: when nothing refers to them any more, the memory is the sender's
        again. Rows that are kept for long should be copied.

        Args:
            among: producer ranks to take from; all by default. Those that have ended don't count.

        Returns:
            The producer's rank, and its message or None for the end of its stream.

        Raises:
            PeerLost: a peer of this rank's edges is gone.
            EdgeCancelled: this rank gave its edges up.
            LookupError: all of these producers have ended.
        """
        chosen = list(self.inboxes.values()) if among is None else [self.inboxes[rank] for rank in among]

        def first() -> Inbox | None:
            if all(inbox.taken_all for inbox in chosen):
                raise LookupError(f"{self._spec}: all producers have ended")
            return min((inbox for inbox in chosen if inbox.queue), key=lambda inbox: inbox.queue[0][0], default=None)

        with self._reactor.changed:
            inbox = self._reactor.wait(first)
            assert inbox is not None
            _, incoming = inbox.queue.popleft()
            if incoming is None:
                inbox.finish()
        return inbox.rank, None if incoming is None else incoming.message()
