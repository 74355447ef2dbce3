"""The words that the two ends of a channel say to each other over ZeroMQ, each the first byte of its frame.

======== ======== ==========================================================================================
word     from     what follows
======== ======== ==========================================================================================
HELLO    sender   JSON: who it is, the edge's schemas and bounds, where its shared memory is
READY    receiver nothing
REFUSED  receiver why, as text
DATA     sender   see :func:`pack_data`; frames with large buffers
END      sender   nothing
RELEASE  receiver int64: numbers of the buffers or messages that nothing refers to any more
DONE     receiver nothing: everything up to END was taken
======== ======== ==========================================================================================

Numbers 0 to buffers - 1 are the buffers of shared memory; larger ones are messages that have memory of their own;
:data:`SMALL` is any message whose data travels in the frame of the word.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from aaflow.dataplane.edge.spec import EdgeSpec, Form

HELLO, READY, REFUSED, DATA, END, RELEASE, DONE = (bytes([number]) for number in range(1, 8))

VERSION = 1
#: Number of messages without memory of their own.
SMALL = -1
#: Payload that travels with the control message, at most, and how many such messages may be untaken.
SMALL_BYTES = 64 << 10
SMALL_MESSAGES = 64

_LENGTHS = struct.Struct("<HI")


def pack_data(tag: bytes, record: Any, body: bytes) -> bytes:
    """The frame of DATA: tag, a JSON record (what to release, where the batches lie) and a small message's data."""
    text = json.dumps(record).encode()
    return b"".join((DATA, _LENGTHS.pack(len(tag), len(text)), tag, text, body))


def unpack_data(frame: bytes) -> tuple[bytes, Any, bytes]:
    """The inverse of :func:`pack_data`."""
    start = 1 + _LENGTHS.size
    tag, text = _LENGTHS.unpack_from(frame, 1)
    body = start + tag + text
    return frame[start : start + tag], json.loads(frame[start + tag : body]), frame[body:]


@dataclass(frozen=True)
class Hello:
    """What a sender says first.

    Attributes:
        rank: of the sender.
        form: of the channel.
        spec: of the edge.
        process: pid of the sender.
        memory: descriptor, inode and size of the shared memory; None for a socket.
    """

    rank: int
    form: Form
    spec: EdgeSpec
    process: int
    memory: tuple[int, int, int] | None

    def to_bytes(self) -> bytes:
        """JSON."""
        schemas = [base64.b64encode(schema.serialize()).decode() for schema in self.spec.schemas]
        return json.dumps(
            {
                "version": VERSION,
                "rank": self.rank,
                "form": self.form.value,
                "edge": [self.spec.source, self.spec.target, self.spec.buffers, self.spec.buffer_bytes],
                "schemas": schemas,
                "process": self.process,
                "memory": self.memory,
            }
        ).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> Hello:
        """The inverse of :meth:`to_bytes`.

        Raises:
            ValueError: another version of aaflow speaks.
        """
        record: dict[str, Any] = json.loads(text)
        if record["version"] != VERSION:
            raise ValueError(f"its edges speak version {record['version']}, these {VERSION}: use one aaflow for both")
        source, target, buffers, size = record["edge"]
        schemas = tuple(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))) for schema in record["schemas"])
        memory = tuple(record["memory"]) if record["memory"] else None
        spec = EdgeSpec(source, target, schemas, buffers, size)
        return cls(record["rank"], Form(record["form"]), spec, record["process"], memory)

    @classmethod
    def of_this_process(cls, rank: int, form: Form, spec: EdgeSpec, memory: tuple[int, int, int] | None) -> Hello:
        """What this process says of itself."""
        return cls(rank, form, spec, os.getpid(), memory)
