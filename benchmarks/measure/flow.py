"""One end of a channel: ``python -m measure.flow NAME (send|receive) JOB``; JOB is JSON, see :class:`Job`.

Batches flow for a while that is not counted, which touches all memory; then the channel is empty, the consumer says
go and starts its clock, and stops it when it has read the last byte. So filling and emptying the channel count.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from measure import rows
from measure.channels import BUFFERS, Channel, End, FreshFile, Iceoryx, Memcpy, Pickle, PickleOutOfBand, stream_bytes


@dataclass(frozen=True)
class Job:
    """What both ends do.

    Attributes:
        sizes: rows of a batch, measured one after the other.
        pool: rows in different batches at least, so that no cache holds what is sent.
        computed: the sender computes the vectors of every batch, into memory that the channel gives it.
        seconds: to send for, each.
        least: batches to send at least, each.
        cores: of the sender and of the receiver.
        line, control, shared: file descriptors.
        folder, memory: see :class:`measure.channels.End`.
    """

    sizes: list[int]
    pool: int
    computed: bool
    seconds: float
    least: int
    cores: list[int]
    line: int
    control: int
    shared: int
    folder: str
    memory: str


def _edge(**how: Any) -> Callable[..., Channel]:
    def make(end: End, *, sender: bool) -> Channel:
        from measure.edge import Edge

        return Edge(end, sender=sender, **how)

    return make


def _raw(*, encrypted: bool) -> Callable[..., Channel]:
    def make(end: End, *, sender: bool) -> Channel:
        from measure.edge import RawZmq

        return RawZmq(end, sender=sender, encrypted=encrypted)

    return make


def _plain(kind: Callable[[End], Channel]) -> Callable[..., Channel]:
    return lambda end, *, sender: kind(end)


CHANNELS: dict[str, Callable[..., Channel]] = {
    "memcpy": _plain(Memcpy),
    "edge": _edge(),
    "edge, in place": _edge(in_place=True),
    "iceoryx2": Iceoryx,
    "fresh file": _plain(FreshFile),
    "pickle 5 out of band": _plain(PickleOutOfBand),
    "pickle": _plain(Pickle),
    "edge, TCP": _edge(network=True, encrypted=False),
    "ZeroMQ": _raw(encrypted=False),
    "edge, TCP, CURVE": _edge(network=True, encrypted=True),
    "ZeroMQ, CURVE": _raw(encrypted=True),
}


def main() -> None:
    """Be one end; the receiver prints what it measured."""
    name, role, job = sys.argv[1], sys.argv[2], Job(**json.loads(sys.argv[3]))
    sender = role == "send"
    os.sched_setaffinity(0, {job.cores[0 if sender else 1]})
    pa.set_cpu_count(1)
    control = socket.socket(fileno=job.control)
    line = socket.socket(fileno=job.line)
    measured = {}
    for size in job.sizes:
        batches = [rows.batch(size, seed) for seed in range(max(1, job.pool // size))] if sender else []
        largest = max((stream_bytes(batch) for batch in batches), default=0)
        largest = _agree(control, largest, sender)
        folder = Path(job.folder) / str(size)
        folder.mkdir(exist_ok=True)
        channel = CHANNELS[name](End(line, job.shared, folder, Path(job.memory), largest), sender=sender)
        if sender:
            _send(channel, control, batches, job)
        else:
            measured[str(size)] = _receive(channel, control)
        channel.close()
    if not sender:
        print(json.dumps(measured))


def _send(channel: Channel, control: socket.socket, batches: list[pa.RecordBatch], job: Job) -> None:
    def made(number: int, memory: Callable[[int], pa.Buffer] = channel.memory_for) -> pa.RecordBatch:
        batch = batches[number % len(batches)]
        if not job.computed:
            return batch
        return rows.computed(batch, memory(batch.num_rows * rows.DIMENSION * 4), number % len(batches))

    sums = [rows.read_all(made(number, pa.allocate_buffer)) for number in range(len(batches))]
    for number in range(2 * BUFFERS):
        channel.send(made(number))
    _say(control, 2 * BUFFERS)
    control.recv(1, socket.MSG_WAITALL)
    began, cpu = time.monotonic(), time.process_time()
    count = moved = 0
    while count < job.least or time.monotonic() - began < job.seconds:
        channel.send(made(count))
        moved += batches[count % len(batches)].nbytes
        count += 1
    channel.finish()
    total = sum(sums[number % len(batches)] for number in range(count)) % 2**64
    _say(control, {"batches": count, "bytes": moved, "sum": total, "cpu": time.process_time() - cpu})


def _receive(channel: Channel, control: socket.socket) -> dict[str, float]:
    for _ in range(2 * BUFFERS):
        channel.take()
    assert _listen(control) == 2 * BUFFERS
    control.sendall(b"!")
    began, cpu = time.monotonic(), time.process_time()
    total = 0
    while (part := channel.take()) is not None:
        total += part
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    sent = _listen(control)
    if sent["sum"] != total % 2**64:
        raise SystemExit("what was received is not what was sent")
    return {**sent, "seconds": seconds, "cpu": cpu + sent["cpu"]}


def _agree(control: socket.socket, largest: int, sender: bool) -> int:
    if sender:
        _say(control, largest)
        return largest
    return int(_listen(control))


def _say(control: socket.socket, words: Any) -> None:
    control.sendall(json.dumps(words).encode() + b"\n")


def _listen(control: socket.socket) -> Any:
    line = b""
    while not line.endswith(b"\n"):
        byte = control.recv(1)
        if not byte:
            raise SystemExit("the other end is gone")
        line += byte
    return json.loads(line)


if __name__ == "__main__":
    main()
