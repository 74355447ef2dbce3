"""What turns texts into vectors: feature hashing and sentence-transformers models."""

from aaflow.operators.embedders.base import Embedder, describe_embedder, make_embedder

__all__ = ["Embedder", "describe_embedder", "make_embedder"]
