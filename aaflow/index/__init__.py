"""Partitioned vector index on disk: immutable Arrow segments, atomic generations, exact search where the bytes lie."""

from aaflow.index.advance import Advance, untold
from aaflow.index.approximate import build_backend
from aaflow.index.reader import Index, IndexInfo, open_index
from aaflow.index.search import deal_partitions, merge_hits
from aaflow.index.sources import SOURCES
from aaflow.index.spec import IndexSpec
from aaflow.index.stage import Stage
from aaflow.index.writer import Publication, Writer, compact

__all__ = [
    "SOURCES",
    "Advance",
    "Index",
    "IndexInfo",
    "IndexSpec",
    "Publication",
    "Stage",
    "Writer",
    "build_backend",
    "compact",
    "deal_partitions",
    "merge_hits",
    "open_index",
    "untold",
]
