"""What an index is built for: its dimension, partitions and metric, and which model and chunking made its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from aaflow import schema
from aaflow.errors import EmbedderMismatch

METRICS = ("cosine", "ip", "l2")
CREATED = pa.field("created", pa.timestamp("us", tz="UTC"), nullable=False)


@dataclass(frozen=True)
class IndexSpec:
    """The properties of an index that never change.

    Attributes:
        dimension: values of one vector.
        embedder: fingerprint of the model: whatever can change a float; JSON values.
        transform: fingerprint of the chunking; JSON values.
        metadata: metadata fields beside the default ones, name to type name as in :func:`aaflow.schema.metadata_type`.
        relational: what the relational operators did to the rows, in their order: filters, joins, deduplication.
        partitions: number of partitions.
        metric: ``cosine`` and ``ip`` score by the inner product (``cosine`` refuses vectors that are neither of length
            1 nor zero), ``l2`` by the negative squared distance.

    Raises:
        ValueError: a number is not positive, or the metric is unknown.
    """

    dimension: int
    embedder: Mapping[str, Any] = field(default_factory=dict)
    transform: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    partitions: int = 64
    metric: str = "cosine"
    relational: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dimension < 1 or self.partitions < 1:
            raise ValueError(f"dimension {self.dimension} and partitions {self.partitions} must both be at least 1")
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; use {', '.join(METRICS)}")

    def rows(self) -> pa.Schema:
        """The rows that a commit takes: :func:`aaflow.schema.embedded`."""
        return schema.embedded(self.dimension, self.metadata)

    def segment(self) -> pa.Schema:
        """The rows of a segment: without ``partition``, which its folder says, and with ``created``."""
        return pa.schema([f for f in self.rows() if f.name != "partition"]).append(CREATED)

    def to_json(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_json` makes an equal spec."""
        mappings: dict[str, Any] = {name: dict(getattr(self, name)) for name in ("embedder", "transform", "metadata")}
        return {**asdict(replace(self, **mappings)), "relational": list(self.relational)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> IndexSpec:
        """The spec that :meth:`to_json` described."""
        return cls(**{**values, "relational": tuple(values.get("relational", ()))})

    def require(self, other: IndexSpec, path: Path) -> None:
        """Refuse to use the index at ``path``, which has this spec, as if it had ``other``.

        Raises:
            EmbedderMismatch: they differ; the text says both and in what.
        """
        differing = _differences(_compared(self), _compared(other))
        if differing:
            raise EmbedderMismatch(
                f"{path} was built with {_name(self.embedder, self.dimension)}; this run uses "
                f"{_name(other.embedder, other.dimension)}. They differ in {'; '.join(differing)}. "
                "Use the same options, or another index folder."
            )

    def require_embedder(self, embedder: Mapping[str, Any], dimension: int, path: Path) -> None:
        """Refuse queries of another model: :meth:`require` for the embedder and the dimension alone."""
        self.require(replace(self, embedder=dict(embedder), dimension=dimension), path)


def _compared(spec: IndexSpec) -> dict[str, Any]:
    """What has to be equal: all but where a model was found, since its fingerprint says what it is."""
    values = spec.to_json()
    if "weights" in values["embedder"]:
        values["embedder"] = {key: value for key, value in values["embedder"].items() if key != "model"}
    return values


def _name(embedder: Mapping[str, Any], dimension: int) -> str:
    model = next((str(embedder[key]) for key in ("model", "name", "kind") if key in embedder), "an unnamed embedder")
    return f"{model} (dimension {dimension})"


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: ours, not theirs`` for every key whose values differ, nested keys joined by dots."""
    found: list[str] = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{key}.")
        elif _plain(a) != _plain(b):
            found.append(f"{prefix}{key}: {a!r} in the index, {b!r} here")
    return found


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
