"""aaflow's edge as a channel, in both of its forms, and raw ZeroMQ beside the form that goes between nodes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import zmq

from aaflow.dataplane.edge import EdgeSpec, Endpoint, Form, Message, write_edge_keys
from measure import rows
from measure.channels import BUFFERS, Channel, End

_SECONDS = 30.0


class Edge(Channel):
    """An edge between two stages of one rank each.

    Args:
        end: the end.
        sender: which.
        in_place: the sender computes vectors into memory that the edge allocates, as ``embed`` does.
        network: the form between nodes, over the loopback interface.
        encrypted: with CURVE.
    """

    def __init__(
        self, end: End, *, sender: bool, in_place: bool = False, network: bool = False, encrypted: bool = True
    ) -> None:
        super().__init__(end)
        self._in_place = in_place
        if sender:
            write_edge_keys(end.folder)
            end.tell("keys")
        else:
            end.hear()
        spec = EdgeSpec("producer", "consumer", (rows.SCHEMA,), buffers=BUFFERS, buffer_bytes=end.largest)
        form = Form.SOCKET if network else Form.SHARED_MEMORY
        stage = spec.source if sender else spec.target
        self._endpoint = Endpoint(end.folder, stage, 0, address="127.0.0.1", encrypted=encrypted).__enter__()
        if sender:
            self._sender = self._endpoint.send_to(spec, {0: form})[0]
        else:
            self._receiver = self._endpoint.receive_from(spec, {0: form})
        self._endpoint.connect(_SECONDS)

    def memory_for(self, size: int) -> pa.Buffer:
        """See :class:`Channel`."""
        if not self._in_place:
            return super().memory_for(size)
        memory = self._sender.allocate(size)
        if memory is None:
            raise SystemExit("the edge gave no memory for vectors that fit its buffers")
        return memory

    def send(self, batch: pa.RecordBatch) -> None:
        """See :class:`Channel`."""
        self._sender.send(Message(b"", (batch,)))

    def finish(self) -> None:
        """See :class:`Channel`."""
        self._sender.end()

    def take(self) -> int | None:
        """See :class:`Channel`."""
        _, message = self._receiver.take()
        return None if message is None else rows.read_all(message.batches[0])

    def close(self) -> None:
        """See :class:`Channel`."""
        self._endpoint.close()


class RawZmq(Channel):
    """The buffers of a batch as the frames of a ZeroMQ message, neither end copies; over the loopback interface."""

    def __init__(self, end: End, *, sender: bool, encrypted: bool) -> None:
        super().__init__(end)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH if sender else zmq.PULL)
        self._socket.set_hwm(BUFFERS)
        if sender:
            server, public, secret, port = end.hear()
            if encrypted:
                self._socket.curve_serverkey = server.encode()
                self._socket.curve_publickey, self._socket.curve_secretkey = public.encode(), secret.encode()
            self._socket.connect(f"tcp://127.0.0.1:{port}")
        else:
            server_public, server_secret = zmq.curve_keypair()
            public, secret = zmq.curve_keypair()
            if encrypted:
                self._socket.curve_server, self._socket.curve_secretkey = True, server_secret
            port = self._socket.bind_to_random_port("tcp://127.0.0.1")
            end.tell([server_public.decode(), public.decode(), secret.decode(), port])

    def send(self, batch: pa.RecordBatch) -> None:
        """See :class:`Channel`."""
        self._socket.send_multipart(list(rows.buffers(batch)), copy=False)

    def finish(self) -> None:
        """See :class:`Channel`."""
        self._socket.send(b"")

    def take(self) -> int | None:
        """See :class:`Channel`."""
        frames: list[Any] = self._socket.recv_multipart(copy=False)
        return sum(rows.read(frame.buffer) for frame in frames) % 2**64 if len(frames) > 1 else None

    def close(self) -> None:
        """See :class:`Channel`."""
        self._socket.close(linger=int(_SECONDS * 1000))
        self._context.term()
