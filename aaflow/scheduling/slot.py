"""Slots: where one rank runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerators:
    """Accelerators that one rank sees.

    Attributes:
        kind: ``cuda``, ``rocm`` or ``level-zero``.
        ids: device ids as the visibility variable wants them.
        variable: environment variable that makes them visible, e.g. ``CUDA_VISIBLE_DEVICES``.
    """

    kind: str
    ids: tuple[str, ...]
    variable: str


@dataclass(frozen=True)
class Slot:
    """The fixed place of one rank.

    Attributes:
        node: node index, from 0.
        cores: core ids that the rank pins itself to; never empty.
        accelerators: what it sees, or None.
        memory: bytes of main memory that the rank may count on.
    """

    node: int
    cores: tuple[int, ...]
    accelerators: Accelerators | None
    memory: int


def shares_cores(slots: Sequence[Slot]) -> bool:
    """Whether two ranks of a group pin to the same core."""
    pinned = [(slot.node, core) for slot in slots for core in slot.cores]
    return len(set(pinned)) < len(pinned)
