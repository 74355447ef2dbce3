"""How far an operation on a whole index is, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aaflow.index.manifest import Segment

#: Told the bytes of the segments that are done, and of all.
Advance = Callable[[int, int], None]


def untold(done: int, whole: int) -> None:
    """For operations that nobody watches."""


def bytes_of(segments: Iterable[Segment]) -> int:
    """Size of the segments' files."""
    return sum(segment.bytes for segment in segments)
