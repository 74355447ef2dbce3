"""What an embedder is, and how to get one by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.operators.embedders import folder
from aaflow.operators.embedders.hash import HashEmbedder


class Embedder(Protocol):
    """A pure function from one text to one vector: neighbours, position and batch change no bit of it."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """All that can change a float, as JSON values; equal fingerprints give equal vectors on one kind of CPU."""
        ...

    def embed(self, texts: pa.Array, out: npt.NDArray[np.float32]) -> None:
        """Write the vectors of ``texts`` (string or large_string, null reads as empty) to ``out``.

        Args:
            texts: the rows.
            out: float32 [rows, dimension], C-contiguous, written in place.
        """
        ...


def make_embedder(model: str, *, dimension: int | None = None, device: str = "cpu") -> Embedder:
    """The embedder that ``model`` names, loaded and ready.

    Args:
        model: ``hash``, ``all-MiniLM-L6-v2`` (or ``minilm``), the name of a sentence-transformers model, or its folder.
        dimension: of the vectors; None for the model's own.
        device: the torch device; ``hash`` always runs on the CPU.

    Raises:
        InputError: the model is unknown, unusable or has another dimension.
        DependencyError: a package of the extra ``models`` is missing.
    """
    if model == "hash":
        return HashEmbedder(_hash_dimension(dimension))
    from aaflow.operators.embedders.sentence import SentenceEmbedder

    return SentenceEmbedder(folder.find(model), dimension, device)


def describe_embedder(model: str, dimension: int | None = None) -> tuple[int, Mapping[str, Any]]:
    """Dimension and fingerprint of :func:`make_embedder`'s embedder, read from its files without loading it.

    Raises:
        InputError: the model is unknown, unusable or has another dimension.
        DependencyError: a package of the extra ``models`` is missing.
    """
    if model == "hash":
        embedder = HashEmbedder(_hash_dimension(dimension))
        return embedder.dimension, embedder.fingerprint
    found = folder.find(model)
    return folder.dimension_of(found, dimension), folder.fingerprint(found)


def model_folder(model: str) -> Path:
    """The folder of a model that isn't ``hash``.

    Raises:
        InputError: the model is unknown.
        DependencyError: a package of the extra ``models`` is missing.
    """
    return folder.find(model).path


def _hash_dimension(dimension: int | None) -> int:
    return 384 if dimension is None else dimension
