"""What an edge is: its stages, schemas and bounds, and the messages that it carries."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pyarrow as pa

#: Bytes that the tag of a message may have.
TAG_BYTES = 1024


class Form(enum.Enum):
    """How batches get from a producer's rank to a consumer's."""

    SHARED_MEMORY = "shared-memory"
    SOCKET = "socket"


@dataclass(frozen=True)
class EdgeSpec:
    """An edge between two stages. Each pair of a producer's and a consumer's rank has a channel of these bounds.

    Attributes:
        source: stage that sends.
        target: stage that receives.
        schemas: a message carries up to one batch of each.
        buffers: messages with data that may be on their way or in use by the receiver; at least 2.
        buffer_bytes: size of a buffer; a larger message gets memory of its own.
    """

    source: str
    target: str
    schemas: tuple[pa.Schema, ...]
    buffers: int
    buffer_bytes: int

    def __post_init__(self) -> None:
        if self.buffers < 2:
            raise ValueError(f"{self}: an edge needs at least 2 buffers, so that both ends can work at once")
        if self.buffer_bytes < 1:
            raise ValueError(f"{self}: buffer_bytes must be positive")

    def __str__(self) -> str:
        return f"edge {self.source} -> {self.target}"


@dataclass(frozen=True)
class Message:
    """What a sender sends at once.

    Attributes:
        tag: the sender's own words, at most 1 KiB.
        batches: one per schema of the edge, or None.
    """

    tag: bytes
    batches: tuple[pa.RecordBatch | None, ...]
