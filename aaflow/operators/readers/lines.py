"""A stream of lines in blocks of whole lines, with a bound on what a line may hold in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aaflow.operators.readers.options import MIB

BLOCK_BYTES = 4 * MIB


@dataclass(frozen=True)
class Block:
    """Whole records: ``data`` begins at byte ``offset`` of the file."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Overlong:
    """A record that begins at byte ``offset`` and goes on beyond the limit; it was not kept."""

    offset: int


def line_blocks(stream: Any, start: int, end: int | None, limit: int) -> Iterator[Block | Overlong]:
    """The lines that begin in ``[start, end)`` of ``stream``, by blocks.

    A block holds at most ``limit`` + ``BLOCK_BYTES`` bytes. A line is never cut: one that begins before ``end`` is read
    to its own end, one that began before ``start`` belongs to whoever reads that range.

    Args:
        stream: has ``read(size)``, and ``seek`` where ``start`` is not 0.
        start: first byte.
        end: byte behind the last; None: to the end of the stream.
        limit: longest line in bytes that is kept for sure.
    """
    # A line begins at ``start`` if the byte before it ends one: look for the first newline from there on.
    position = max(0, start - 1)
    if position or start:
        stream.seek(position)
    skipping = start > 0
    pending: list[bytes] = []  # of a line that has no end yet
    held, line_start = 0, start
    while True:
        if end is not None and (position >= end - 1 if skipping else not held and line_start >= end):
            return
        chunk = stream.read(BLOCK_BYTES)
        if not chunk:
            break
        if skipping:
            cut = chunk.find(b"\n") + 1
            if not cut:
                position += len(chunk)
                continue
            position, chunk, skipping = position + cut, chunk[cut:], False
            line_start = position
            if not chunk or (end is not None and line_start >= end):
                continue
        if end is not None and position + len(chunk) >= end:
            # The line that holds byte end - 1 is the last of this range.
            cut = chunk.find(b"\n", max(0, end - 1 - position)) + 1
            chunk = chunk[:cut] if cut else chunk
        cut = chunk.rfind(b"\n") + 1
        position += len(chunk)
        if cut:
            yield Block(line_start, b"".join((*pending, chunk[:cut])))
            pending, held, line_start = [], 0, position - len(chunk) + cut
        if cut < len(chunk):
            pending.append(chunk[cut:])
            held += len(chunk) - cut
        if held > limit + 1:  # one more: a carriage return does not count
            yield Overlong(line_start)
            pending, held, skipping = [], 0, True
    if held:
        yield Block(line_start, b"".join(pending))
