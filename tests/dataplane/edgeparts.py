"""What the tests of edges share: an edge whose two ends are endpoints of this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from aaflow.dataplane.edge import EdgeSpec, Endpoint, Form, Message, Receiver, Sender, write_edge_keys

ROWS = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), 384))])
NOTICES = pa.schema([("partition", pa.int32()), ("text", pa.string())])


def edge(*schemas: pa.Schema, buffers: int = 2, size: int = 1 << 20) -> EdgeSpec:
    return EdgeSpec("embed", "upsert", schemas or (ROWS,), buffers, size)


def rows(count: int, vectors: pa.Buffer | None = None, seed: int = 0) -> pa.RecordBatch:
    """Rows of ROWS; the vectors lie in ``vectors`` where that is given."""
    values = np.random.default_rng(seed).random(count * 384, np.float32)
    buffer = pa.py_buffer(values)
    if vectors is not None:
        np.frombuffer(vectors, np.float32)[: len(values)] = values
        buffer = vectors
    child = pa.Array.from_buffers(pa.float32(), len(values), [None, buffer])
    vector = pa.Array.from_buffers(ROWS.field("vector").type, count, [None], 0, 0, [child])
    text = pa.array([f"text {number} " * 10 for number in range(count)], pa.string())
    return pa.RecordBatch.from_arrays([pa.array(np.arange(count)), text, vector], schema=ROWS)


@contextlib.contextmanager
def connected(
    folder: Path, spec: EdgeSpec, form: Form, *, encrypted: bool = True
) -> Iterator[tuple[Sender, Receiver, Endpoint, Endpoint]]:
    """A sender, its receiver, and their endpoints, connected; they are closed at once in the end."""
    write_edge_keys(folder)
    with contextlib.ExitStack() as stack:
        ends = [Endpoint(folder, stage, 0, address="127.0.0.1", encrypted=encrypted) for stage in ("upsert", "embed")]
        for end in ends:
            stack.callback(_abandon, end)
        receiver = ends[0].receive_from(spec, {0: form})
        sender = ends[1].send_to(spec, {0: form})[0]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda end: end.connect(20), ends))
        yield sender, receiver, ends[1], ends[0]


def _abandon(end: Endpoint) -> None:
    end.cancel()
    end.close()


def take(receiver: Receiver) -> Message:
    _, message = receiver.take()
    assert message is not None
    return message
