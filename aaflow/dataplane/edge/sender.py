"""The producer's end of a channel: buffers and credits, and messages written into them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import zmq

from aaflow.dataplane.edge import protocol
from aaflow.dataplane.edge.credits import Credits
from aaflow.dataplane.edge.frames import Encoded, Locate, Place, aligned, encode, write_stream
from aaflow.dataplane.edge.memory import Bytes, Lease, SharedMemory, leased
from aaflow.dataplane.edge.reactor import Reactor
from aaflow.dataplane.edge.spec import TAG_BYTES, EdgeSpec, Form, Message
from aaflow.errors import EdgeError, PeerLost

#: The longest frame, and the smallest column that gets one. Heartbeats wait for the frame on its way: a channel must
#: get a frame across within their silence. A longer buffer is cut, and put together by one copy.
FRAME_BYTES = 32 << 20
_IN_PLACE_BYTES = 64 << 10
_SOCKET_BYTES = 2 << 30


class Sender:
    """Sends messages to one rank of the next stage. May be used from several threads.

    Attributes:
        rank: the consumer's.
        connected: whether the consumer's rank was reached and knows the keys.
        up: whether it has answered.
        refused: what is wrong with the keys, if anything.
    """

    def __init__(self, reactor: Reactor, spec: EdgeSpec, rank: int, form: Form, own_rank: int) -> None:
        self.rank = rank
        self.up = False
        self.refused = ""
        self._reactor = reactor
        self._spec = spec
        self._form = form
        self._own_rank = own_rank
        self._socket: zmq.Socket[bytes] | None = None
        self._hello = b""
        self.connected = False
        self._ended = False
        self._done = False
        self._memory: SharedMemory | None = None
        self._buffer_bytes = aligned(spec.buffer_bytes)
        buffers = spec.buffers if form is Form.SHARED_MEMORY else 0
        self._credits = Credits(spec.buffers, buffers, self._buffer_bytes)

    def __repr__(self) -> str:
        return f"<Sender {self._spec.source}.{self._own_rank} -> {self._spec.target}.{self.rank} {self._form.value}>"

    # Messages

    def send(self, message: Message) -> None:
        """Send a message; sleeps while the edge is full.

        Raises:
            PeerLost: the receiver, or another peer of this rank's edges, is gone.
            EdgeCancelled: this rank gave its edges up.
            EdgeError: there is no memory for a message larger than a buffer.
            ValueError: the message does not fit the edge's schemas, or its tag is too long.
        """
        self._reactor.check()
        self._require_fit(message)
        frames: list[pa.Buffer] = []
        locate: Locate | None = None
        if self._form is Form.SOCKET:
            locate = functools.partial(_in_frames, frames)
        elif self._credits.any_loaned:
            locate = self._in_buffers
        apart = self._form is Form.SHARED_MEMORY
        parts = [None if batch is None else encode(batch, locate, apart=apart) for batch in message.batches]
        size = sum(part.size for part in parts if part is not None)
        if size <= protocol.SMALL_BYTES and not frames:
            self._send_small(message.tag, parts, size)
        elif self._form is Form.SOCKET:
            self._send_frames(message.tag, parts, frames)
        else:
            self._send_shared(message.tag, parts, size)

    def allocate(self, size: int) -> pa.Buffer | None:
        """A mutable buffer inside the edge's memory, for a large column to be written in place.

        Messages with columns inside it are sent without copying these; several messages may share one such buffer.
        Refer to it, and to what is made of it, no longer than needed: the memory is free for reuse when this process
        and the receiver have dropped their last references.

        Args:
            size: bytes.

        Returns:
            None where the caller should use memory of its own: ``size`` does not fit one buffer, the form is a
            socket, or this process itself holds all buffers, so that waiting might never end.

        Raises:
            PeerLost, EdgeCancelled: as :meth:`send`.
        """
        if self._form is Form.SOCKET or size > self._buffer_bytes:
            return None
        with self._reactor.changed:
            index = self._reactor.wait(self._credits.free_buffer)
            assert index is not None
            if index < 0:
                return None
            self._credits.loan(index, aligned(size))
        assert self._memory is not None
        start = index * self._buffer_bytes
        return leased(self._memory.array[start : start + size], Lease(self._reactor.releases, self, index))

    def end(self) -> None:
        """End of the stream: nothing is sent afterwards.

        Raises:
            PeerLost, EdgeCancelled: as :meth:`send`.
        """
        with self._reactor.changed:
            self._reactor.check()
            if not self._ended:
                self._ended = True
                self._post([protocol.END])

    # Sending

    def _require_fit(self, message: Message) -> None:
        if self._ended:
            raise ValueError(f"{self._spec}: a message after the end of the stream")
        if len(message.tag) > TAG_BYTES:
            raise ValueError(f"{self._spec}: a tag of {len(message.tag)} bytes; {TAG_BYTES} are allowed")
        if len(message.batches) != len(self._spec.schemas):
            raise ValueError(f"{self._spec}: {len(message.batches)} batches for {len(self._spec.schemas)} schemas")
        for batch, schema in zip(message.batches, self._spec.schemas):  # noqa: B905 - of one length
            if batch is not None and not batch.schema.equals(schema):
                raise ValueError(f"{self._spec}: a batch of\n{batch.schema}\nwhere this was agreed:\n{schema}")

    def _send_small(self, tag: bytes, parts: Sequence[Encoded | None], size: int) -> None:
        numbers = [protocol.SMALL, *_located(parts)]
        body = np.empty(size, np.uint8)
        _write(parts, protocol.SMALL, body, 0)
        with self._reactor.changed:
            self._reactor.wait(self._credits.small_allowed)
            self._credits.hold(numbers)
            self._post_data(numbers, parts, tag, body=body.tobytes())

    def _send_frames(self, tag: bytes, parts: Sequence[Encoded | None], frames: list[pa.Buffer]) -> None:
        for part in parts:
            if part is not None and part.rest is not None:
                buffer = pa.allocate_buffer(part.rest_size)
                write_stream(part.rest, buffer)
                part.place = (len(frames), 0, part.rest_size)
                frames.append(buffer)
        total = sum(frame.size for frame in frames)
        if total > _SOCKET_BYTES:
            raise EdgeError(
                f"{self._spec}: a message of {total >> 20} MiB; over a socket at most {_SOCKET_BYTES >> 20} MiB go at "
                "once: use smaller batches"
            )
        with self._reactor.changed:
            self._reactor.wait(self._credits.own_allowed)
            self._post_data([self._credits.number_own()], parts, tag, frames=frames)

    def _send_shared(self, tag: bytes, parts: Sequence[Encoded | None], size: int) -> None:
        located = _located(parts)
        with self._reactor.changed:
            room = self._reactor.wait(lambda: self._credits.room(located, size))
            assert room is not None
            index, start = room
            in_buffer = index >= 0
            if in_buffer:
                self._credits.use(index, start + size)
            else:
                index = self._credits.number_own()
            numbers = located | {index}
            self._credits.hold(numbers)
        try:
            if in_buffer:
                assert self._memory is not None
                first = index * self._buffer_bytes
                target, own = self._memory.array[first : first + self._buffer_bytes], None
            else:
                memory = SharedMemory.reserve(size)
                self._credits.keep(index, memory)
                target, own = memory.array, memory.handle
            _write(parts, index, target, start)
        except BaseException:
            with self._reactor.changed:
                for number in numbers:
                    self._credits.release(number)
                self._reactor.changed.notify_all()
            raise
        with self._reactor.changed:
            self._reactor.check()
            self._post_data(sorted(numbers), parts, tag, own=own)

    def _post_data(
        self,
        numbers: list[int],
        parts: Sequence[Encoded | None],
        tag: bytes,
        *,
        frames: Sequence[pa.Buffer] = (),
        own: tuple[int, int, int] | None = None,
        body: bytes = b"",
    ) -> None:
        layouts = [None if part is None else part.to_json() for part in parts]
        pieces: list[Any] = []
        for frame in frames:
            starts = range(0, frame.size, FRAME_BYTES)
            pieces += [frame.slice(at, min(FRAME_BYTES, frame.size - at)) for at in starts] or [b""]
        sizes = [frame.size for frame in frames]
        self._post([protocol.pack_data(tag, [numbers, own, sizes, layouts], body), *pieces])

    def _post(self, frames: Sequence[Any]) -> None:
        assert self._socket is not None, "the endpoint was not connected"
        self._reactor.post(self._socket, frames)

    def _in_buffers(self, found: Sequence[pa.Buffer]) -> list[Place] | None:
        """Places of buffers that all lie in the edge's memory."""
        assert self._memory is not None
        base = self._memory.array.ctypes.data
        places = []
        for buffer in found:
            offset = buffer.address - base
            if not 0 <= offset < self._memory.size or not buffer.size:
                return None
            index, inside = divmod(offset, self._buffer_bytes)
            places.append((index, inside, buffer.size))
        return places

    # What the endpoint does with it

    def prepare(self) -> None:
        """Reserve the memory, in the caller's thread.

        Raises:
            EdgeError: there is not enough.
        """
        memory = None
        if self._form is Form.SHARED_MEMORY:
            self._memory = SharedMemory.reserve(self._buffer_bytes * self._spec.buffers)
            self._memory.touch()
            memory = self._memory.handle
        self._hello = protocol.Hello.of_this_process(self._own_rank, self._form, self._spec, memory).to_bytes()

    def connect(self, socket: zmq.Socket[bytes], address: str) -> None:
        """Call the receiver."""
        if self._socket is not None:
            self._reactor.remove(self._socket)
        self._socket = socket

        def call() -> None:
            socket.connect(address)

        self._reactor.add(self, socket, call)

    @property
    def form(self) -> Form:
        """How its messages get to the receiver."""
        return self._form

    @property
    def finished(self) -> bool:
        """Whether the receiver has taken everything."""
        return self._done

    @property
    def ended(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._ended

    def drop(self) -> None:
        """Let go of the memory; what the receiver still uses stays."""
        if self._memory is not None:
            self._memory.close_descriptor()
        self._memory = None
        self._credits.drop()

    def _lost(self) -> PeerLost:
        return PeerLost(
            f"{self._spec}: rank {self.rank} of stage {self._spec.target!r} is gone before it had taken everything "
            f"from rank {self._own_rank} of {self._spec.source!r}; see the log of stage {self._spec.target!r} for why",
            stage=self._spec.target,
            rank=self.rank,
        )

    def on_connected(self) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""
        self.connected = True
        self._post([protocol.HELLO + self._hello])

    def on_refused(self) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""
        self.refused = "refused this rank's keys, or shows others"

    def on_disconnected(self, descriptor: int) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""
        if self.connected and not self._done:
            assert self._socket is not None
            self._reactor.remove(self._socket)
            self._reactor.fail(self._lost())

    def on_released(self, number: int) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""
        self._credits.end_loan(number)

    def on_frames(self, frames: list[zmq.Frame]) -> None:
        """See :class:`aaflow.dataplane.edge.reactor.Channel`."""
        frame = frames[0].bytes
        word = frame[:1]
        if word == protocol.RELEASE:
            for number in np.frombuffer(frame, np.int64, offset=1).tolist():
                self._credits.release(number)
        elif word == protocol.READY:
            self.up = True
            if self._memory is not None:
                self._memory.close_descriptor()
        elif word == protocol.REFUSED:
            self._reactor.fail(EdgeError(frame[1:].decode()))
        elif word == protocol.DONE:
            self._done = True
            assert self._socket is not None
            self._reactor.remove(self._socket)


def _write(parts: Sequence[Encoded | None], number: int, target: Bytes, start: int) -> None:
    """Write a message's parts one after another."""
    for part in parts:
        if part is not None:
            part.write(number, target, start)
            start += part.size


def _in_frames(frames: list[pa.Buffer], found: Sequence[pa.Buffer]) -> list[Place] | None:
    """Places of buffers as frames of their own, where they are worth it."""
    if sum(buffer.size for buffer in found) < _IN_PLACE_BYTES:
        return None
    places = [(len(frames) + number, 0, buffer.size) for number, buffer in enumerate(found)]
    frames += found
    return places


def _located(parts: Sequence[Encoded | None]) -> set[int]:
    """The buffers that hold columns which stay where they are."""
    columns = [places for part in parts if part is not None for places in part.columns.values()]
    return {place[0] for places in columns for place in places}
