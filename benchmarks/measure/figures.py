"""Figures of repeated rounds: a median and its spread, never one timing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """Figures of all rounds, in their order."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({min(self.values):.3g}..{max(self.values):.3g})"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "median": self.median, "least": min(self.values), "most": max(self.values)}


def ratios(above: Figure, below: Figure) -> Figure:
    """The ratio of two figures, round by round: what disturbs a round disturbs both."""
    return Figure(tuple(a / b for a, b in zip(above.values, below.values, strict=True)))


def differences(first: Figure, second: Figure) -> Figure:
    """``first`` less ``second``, round by round."""
    return Figure(tuple(a - b for a, b in zip(first.values, second.values, strict=True)))


def figure(values: Sequence[float]) -> Figure:
    """A figure of these rounds."""
    return Figure(tuple(values))
