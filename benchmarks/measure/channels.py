"""What an edge stands against: other ways for record batches from one process to another, each at its best.

All of them know the size of the largest batch before they start and hold at most ``BUFFERS`` batches in flight, so
that none takes more memory than the others; the sockets hold what the kernel lets them. Who waits sleeps.
"""

from __future__ import annotations

import array
import json
import mmap
import pickle
import socket
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from measure import rows

#: Batches in flight, on every channel whose memory is its own.
BUFFERS = 4
_SIZE = struct.Struct("<q")


@dataclass(frozen=True)
class End:
    """What the end of a channel is given.

    Attributes:
        line: a socket between the two ends, of their own.
        shared: memory that both ends can map, ``BUFFERS`` times ``largest`` bytes, touched.
        folder: a folder of this measurement alone.
        memory: such a folder on a file system in memory.
        largest: bytes of the largest batch, its schema and padding included.
    """

    line: socket.socket
    shared: int
    folder: Path
    memory: Path
    largest: int

    def tell(self, words: Any) -> None:
        """Send something small."""
        data = json.dumps(words).encode()
        self.line.sendall(_SIZE.pack(len(data)) + data)

    def hear(self) -> Any:
        """What the other end told."""
        return json.loads(self.receive(_SIZE.unpack(self.receive(8))[0]))

    def receive(self, count: int) -> bytes:
        """Exactly so many bytes of the line."""
        data = bytearray(count)
        fill(self.line, memoryview(data))
        return bytes(data)


class Channel(ABC):
    """One way, at both ends; made at each."""

    def __init__(self, end: End) -> None:
        self.end = end
        self._own: pa.Buffer | None = None

    def memory_for(self, size: int) -> pa.Buffer:
        """Memory into which the sender computes the vectors of a batch: by default its own, the same for all."""
        if self._own is None or self._own.size != size:
            self._own = pa.allocate_buffer(size)
        return self._own

    @abstractmethod
    def send(self, batch: pa.RecordBatch) -> None:
        """Send a batch; blocks while too many are in flight."""

    @abstractmethod
    def finish(self) -> None:
        """No more are sent."""

    @abstractmethod
    def take(self) -> int | None:
        """Take a batch, read all of its bytes and let go of it; their sum, or None after the last."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Both ends are done."""


class Slots(Channel):
    """What memory in slots has in common: the line carries the size of each batch one way, a byte of credit back."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self._credits, self._number = BUFFERS, 0

    def send(self, batch: pa.RecordBatch) -> None:
        """See :class:`Channel`."""
        if not self._credits:
            self._credits += len(self.end.line.recv(BUFFERS))
        self._credits -= 1
        self.end.tell(self.put(batch, self._number))
        self._number += 1

    def finish(self) -> None:
        """See :class:`Channel`."""
        self.end.tell(None)
        while self._credits < BUFFERS:
            self._credits += len(self.end.line.recv(BUFFERS))

    def take(self) -> int | None:
        """See :class:`Channel`."""
        words = self.end.hear()
        if words is None:
            return None
        total = self.get(words, self._number)
        self._number += 1
        self.end.line.sendall(b"+")
        return total

    @abstractmethod
    def put(self, batch: pa.RecordBatch, number: int) -> Any:
        """Put the ``number``-th batch into its slot; what the other end needs to know."""

    @abstractmethod
    def get(self, words: Any, number: int) -> int:
        """The sum of the bytes that lie in the slot."""


class Memcpy(Slots):
    """The machine's own rate: every buffer copied once into shared memory used before, and read there. No Arrow."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        memory = mmap.mmap(end.shared, BUFFERS * end.largest)
        self._slots = np.frombuffer(memory, np.uint8).reshape(BUFFERS, end.largest)

    def put(self, batch: pa.RecordBatch, number: int) -> Any:
        """See :class:`Slots`."""
        slot, at, sizes = self._slots[number % BUFFERS], 0, []
        for buffer in rows.buffers(batch):
            np.copyto(slot[at : at + buffer.size], np.frombuffer(buffer, np.uint8))
            sizes.append(buffer.size)
            at += -(-buffer.size // 64) * 64
        return sizes

    def get(self, words: Any, number: int) -> int:
        """See :class:`Slots`."""
        slot, at, total = self._slots[number % BUFFERS], 0, 0
        for size in words:
            total += rows.read(slot[at : at + size].data)
            at += -(-size // 64) * 64
        return total


class FreshFile(Slots):
    """A new file in memory for every batch, written as an Arrow stream, read in place through a mapping, removed.

    write(2) is faster here than writing through a mapping, also than through one populated beforehand.
    """

    def put(self, batch: pa.RecordBatch, number: int) -> Any:
        """See :class:`Slots`."""
        path = self.end.memory / str(number)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return path.name

    def get(self, words: Any, number: int) -> int:
        """See :class:`Slots`."""
        path = self.end.memory / words
        with path.open("rb") as file:
            path.unlink()
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return read_stream(pa.py_buffer(mapping))


class Pickle(Channel):
    """``pickle.dumps`` of the batch, the bytes over a Unix socket, ``pickle.loads``."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self._received = bytearray(end.largest + 4096)

    def send(self, batch: pa.RecordBatch) -> None:
        """See :class:`Channel`."""
        data = pickle.dumps(batch, protocol=5)
        self.end.line.sendall(_SIZE.pack(len(data)))
        self.end.line.sendall(data)

    def finish(self) -> None:
        """See :class:`Channel`."""
        self.end.line.sendall(_SIZE.pack(-1))

    def take(self) -> int | None:
        """See :class:`Channel`."""
        size = _SIZE.unpack(self.end.receive(8))[0]
        if size < 0:
            return None
        data = memoryview(self._received)[:size]
        fill(self.end.line, data)
        return rows.read_all(pickle.loads(data))


class PickleOutOfBand(Channel):
    """Pickle protocol 5: columns go over a Unix socket as they lie in memory, into buffers that are used again."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self._received: list[bytearray] = []

    def send(self, batch: pa.RecordBatch) -> None:
        """See :class:`Channel`."""
        columns: list[pickle.PickleBuffer] = []
        data = pickle.dumps(batch, protocol=5, buffer_callback=columns.append)
        views = [memoryview(data), *(column.raw() for column in columns)]
        sizes = array.array("q", [len(views), *map(len, views)])
        self.end.line.sendall(sizes)
        for view in views:
            self.end.line.sendall(view)

    def finish(self) -> None:
        """See :class:`Channel`."""
        self.end.line.sendall(_SIZE.pack(0))

    def take(self) -> int | None:
        """See :class:`Channel`."""
        count = _SIZE.unpack(self.end.receive(8))[0]
        if not count:
            return None
        sizes = struct.unpack(f"<{count}q", self.end.receive(8 * count))
        views = []
        for number, size in enumerate(sizes):
            if number == len(self._received):
                self._received.append(bytearray())
            if len(self._received[number]) < size:
                self._received[number] = bytearray(size * 5 // 4)
            views.append(memoryview(self._received[number])[:size])
            fill(self.end.line, views[-1])
        return rows.read_all(pickle.loads(views[0], buffers=views[1:]))


class Iceoryx(Channel):
    """An Arrow stream in samples on loan from iceoryx2, read in place; the line tells of samples and of their release.

    iceoryx2 alone polls: for a sample that comes, and at a full queue.
    """

    def __init__(self, end: End, *, sender: bool) -> None:
        import ctypes

        import iceoryx2

        super().__init__(end)
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        config = iceoryx2.config.default()
        config.global_cfg.root_path = iceoryx2.Path.new(str(end.memory))
        config.global_cfg.prefix = iceoryx2.FileName.new(end.memory.name)
        self._node = iceoryx2.NodeBuilder.new().config(config).create(iceoryx2.ServiceType.Ipc)
        self._service = (
            self._node.service_builder(iceoryx2.ServiceName.new("rows"))
            .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
            .payload_alignment(iceoryx2.Alignment.new(64))
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(BUFFERS)
            .subscriber_max_borrowed_samples(BUFFERS)
            .open_or_create()
        )
        self._credits = BUFFERS
        if sender:
            self._port = self._service.publisher_builder().initial_max_slice_len(end.largest).create()
            assert end.hear() == "subscribed"
            self._port.update_connections()
        else:
            self._port = self._service.subscriber_builder().buffer_size(BUFFERS).create()
            end.tell("subscribed")

    def send(self, batch: pa.RecordBatch) -> None:
        """See :class:`Channel`."""
        if not self._credits:
            self._credits += len(self.end.line.recv(BUFFERS))
        self._credits -= 1
        sample = self._port.loan_slice_uninit(stream_bytes(batch))
        write_stream(batch, pa.py_buffer(sample.payload().as_memory_view()))
        sample.assume_init().send()
        self.end.line.sendall(b"+")

    def finish(self) -> None:
        """See :class:`Channel`."""
        self.end.line.sendall(b".")
        while self._credits < BUFFERS:
            self._credits += len(self.end.line.recv(BUFFERS))

    def take(self) -> int | None:
        """See :class:`Channel`."""
        if self.end.receive(1) == b".":
            return None
        sample = self._port.receive()
        total = read_stream(pa.py_buffer(sample.payload().as_memory_view()))
        sample.delete()
        self.end.line.sendall(b"+")
        return total

    def close(self) -> None:
        """See :class:`Channel`."""
        self._port.delete()
        del self._port, self._service, self._node


def stream_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the Arrow stream that :func:`write_stream` writes; the schema takes less than 4 KiB."""
    return int(pa.ipc.get_record_batch_size(batch)) + 4096


def write_stream(batch: pa.RecordBatch, memory: pa.Buffer) -> None:
    """Write a batch with its schema as an Arrow stream into memory that can be written."""
    with pa.FixedSizeBufferWriter(memory) as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_stream(memory: pa.Buffer) -> int:
    """Sum of all bytes of the batch in an Arrow stream, read in place."""
    return rows.read_all(pa.ipc.open_stream(memory).read_next_batch())


def fill(line: socket.socket, view: memoryview) -> None:
    """Receive until a view is full.

    Raises:
        EOFError: the other end is gone.
    """
    while view:
        count = line.recv_into(view, len(view), socket.MSG_WAITALL)
        if not count:
            raise EOFError("the other end is gone")
        view = view[count:]
