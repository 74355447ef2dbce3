"""Reading an index: one generation, memory-mapped, for as long as it is open."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from aaflow.errors import IndexMissing, VectorIndexError
from aaflow.index.advance import Advance, untold
from aaflow.index.approximate import KINDS, LEAST_ROWS, search_partition
from aaflow.index.duplicates import Mask, document_starts
from aaflow.index.exact import Found, search_block, use_one_thread
from aaflow.index.manifest import Manifest, generations, read_manifest, segment_file
from aaflow.index.readers import hold
from aaflow.index.search import allowed_rows, check_queries, deal_partitions, hits_table
from aaflow.index.segment import Block, Floats, Rows, dead_rows, open_segment, read_table
from aaflow.index.sources import read_notices, read_sources
from aaflow.index.spec import IndexSpec
from aaflow.index.verify import verify


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds.

    Attributes:
        path: the folder.
        generation: which one this is.
        digest: digest of the content, hexadecimal.
        documents: documents with at least one chunk.
        chunks: live rows.
        dimension: values of a vector.
        metric: ``cosine``, ``ip`` or ``l2``.
        embedder: fingerprint of the model.
        transform: fingerprint of the chunking.
        partitions: number of partitions.
        segments: number of segment files.
        tombstones: rows in them that are no longer in the index.
        bytes: size of the segment files.
    """

    path: str
    generation: int
    digest: str
    documents: int
    chunks: int
    dimension: int
    metric: str
    embedder: Mapping[str, Any]
    transform: Mapping[str, Any]
    partitions: int
    segments: int
    tombstones: int
    bytes: int


@dataclass(frozen=True)
class _Part:
    """A mapped segment of a partition: its blocks, its tombstoned rows, and the longest vector."""

    blocks: list[Block]
    dead: Rows
    norm: float


class Index:
    """One generation of an index, open for reading; made by :func:`open_index`. Safe to use from several threads.

    Attributes:
        path: the index folder.
        manifest: the generation.
        spec: what the index is built for.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int) -> None:
        self.path = path
        self.manifest = manifest
        self.spec: IndexSpec = manifest.spec
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "aaflow-search", use_one_thread)
        self._parts: dict[int, list[_Part]] = {}
        self._built: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._let_go = hold(path, manifest.generation, self)

    def close(self) -> None:
        """Let the generation go; hits and tables already returned stay valid. Idempotent."""
        self._pool.shutdown()
        self._parts.clear()
        self._let_go()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def info(self) -> IndexInfo:
        """What the index holds, by its manifest."""
        segments = [segment for _, segment in self.manifest.segments()]
        return IndexInfo(
            path=str(self.path),
            generation=self.manifest.generation,
            digest=self.manifest.digest,
            documents=self.manifest.documents,
            chunks=self.manifest.chunks,
            dimension=self.spec.dimension,
            metric=self.spec.metric,
            embedder=self.spec.embedder,
            transform=self.spec.transform,
            partitions=self.spec.partitions,
            segments=len(segments),
            tombstones=sum(segment.rows - segment.live for segment in segments),
            bytes=sum(segment.bytes for segment in segments),
        )

    def search(
        self,
        vectors: Any,
        k: int,
        *,
        partitions: Sequence[int] | None = None,
        where: Mapping[str, Any] | None = None,
        backend: str = "exact",
    ) -> pa.Table:
        """The ``k`` best chunks for every query, by falling score and then by rising chunk id.

        Scores and order of ``exact`` are the same, bit for bit, however rows lie in segments, queries in calls and
        partitions on ranks; ``ivf`` and ``hnsw`` may miss rows but score those they find alike.

        Args:
            vectors: float32 [queries, dimension].
            k: at least 1; fewer rows give fewer hits.
            partitions: search only these; their answers are joined by :func:`merge_hits`.
            where: column or metadata field to the value it must have, or a list of such values.
            backend: ``exact``, or ``ivf`` or ``hnsw`` where :func:`build_backend` has made one.

        Returns:
            Schema :func:`aaflow.schema.hits`; ``query_id`` is the row of ``vectors``.

        Raises:
            VectorIndexError: queries, ``k`` or ``where`` don't fit the index, or the backend is not built.
            IndexCorrupt: a file is missing or damaged.
        """
        queries = check_queries(vectors, self.spec.dimension, k)
        if backend != "exact" and backend not in KINDS:
            raise VectorIndexError(f"unknown search backend {backend!r}; use exact, {', '.join(KINDS)}")
        rows = self.manifest.rows()
        wanted = [p for p in (range(len(rows)) if partitions is None else sorted(set(partitions))) if rows[p]]
        dealt = deal_partitions([rows[p] for p in wanted], self._threads)
        work = [[wanted[place] for place in places] for places in dealt if places]
        jobs = [self._pool.submit(self._search, part, queries, k, where, backend) for part in work]
        found: list[Found] = []
        blocks: list[Block] = []
        for job in jobs:
            local, searched = job.result()
            found.append(local.shifted(len(blocks)))
            blocks += searched
        return hits_table(Found.concatenate(found).best(k), blocks, self.spec, k)

    def _search(
        self, partitions: list[int], queries: Floats, k: int, where: Mapping[str, Any] | None, backend: str
    ) -> tuple[Found, list[Block]]:
        found: list[Found] = []
        blocks: list[Block] = []
        for partition in partitions:
            parts = self._open(partition)
            masks = [[allowed_rows(block, part.dead, where) for block in part.blocks] for part in parts]
            here = [block for part in parts for block in part.blocks]
            segments = self.manifest.partitions[partition]
            if backend == "exact" or sum(segment.rows for segment in segments) < LEAST_ROWS:
                local = self._exact(parts, masks, queries, k)
            else:
                flat = [mask for part in masks for mask in part]
                local = search_partition(
                    self.path, backend, segments, here, flat, queries, k, self.spec.metric, self._built
                )
            found.append(local.shifted(len(blocks)))
            blocks += here
        return Found.concatenate(found).best(k), blocks

    def _exact(self, parts: list[_Part], masks: list[list[Mask | None]], queries: Floats, k: int) -> Found:
        found, number = [], 0
        for part, allowed in zip(parts, masks, strict=True):
            for block, mask in zip(part.blocks, allowed, strict=True):
                found.append(search_block(block, number, queries, k, self.spec.metric, norm=part.norm, allowed=mask))
                number += 1
        return Found.concatenate(found)

    def _open(self, partition: int) -> list[_Part]:
        with self._lock:
            if partition not in self._parts:
                self._parts[partition] = [
                    _Part(
                        open_segment(self.path, partition, segment, self.spec),
                        dead_rows(self.path, segment),
                        segment.norm,
                    )
                    for segment in self.manifest.partitions[partition]
                ]
            return self._parts[partition]

    def documents(self, partition: int) -> pa.Table:
        """The live documents of a partition: doc_id, doc_hash, source, record.

        A document whose hash, source and record are still these needs no new rows.
        """
        tables = list(self._live(partition, ["doc_id", "doc_hash", "source", "record"]))
        return pa.concat_tables([tables[0], *(rows.take(pa.array(document_starts(rows)[:-1])) for rows in tables[1:])])

    def rows(self, partition: int, columns: Sequence[str]) -> pa.Table:
        """The live rows of a partition, by segment; the columns of :meth:`IndexSpec.rows` that are asked for."""
        return pa.concat_tables(self._live(partition, columns))

    def _live(self, partition: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """An empty table, and then the live rows of every segment."""
        yield pa.schema([self.spec.rows().field(name) for name in columns]).empty_table()
        for segment in self.manifest.partitions[partition]:
            rows = read_table(self.path / segment_file(partition, segment.id)).select(list(columns))
            alive = np.ones(rows.num_rows, dtype=np.bool_)
            alive[dead_rows(self.path, segment)] = False
            yield rows.filter(pa.array(alive))

    def sources(self) -> pa.Table:
        """The state of every source file when it was read: root, source, size, mtime_ns."""
        return read_sources(self.path, self.manifest)

    def notices(self) -> pa.Table:
        """What was not indexed for good, or not wholly: schema :data:`aaflow.schema.NOTICES`."""
        return read_notices(self.path, self.manifest)

    def verify(self, advance: Advance = untold) -> list[str]:
        """Everything wrong with this generation's files; empty where all is well. Reads all of them."""
        return verify(self.path, self.manifest, advance)


def open_index(
    path: str | Path,
    *,
    generation: int | None = None,
    embedder: Mapping[str, Any] | None = None,
    dimension: int | None = None,
    threads: int | None = None,
) -> Index:
    """Open an index for reading; it keeps its generation until it is closed or forgotten.

    Args:
        path: the index folder.
        generation: which one; the current one unless told.
        embedder: fingerprint of the model whose vectors will be searched for.
        dimension: their dimension.
        threads: partitions searched at a time; as many as this process has cores unless told.

    Raises:
        IndexMissing: there is no index, or it no longer has that generation.
        EmbedderMismatch: the index was built with another model or dimension; the text says both.
        IndexCorrupt: the manifest can't be read.
    """
    folder = Path(path).absolute()
    while True:
        manifest = read_manifest(folder, generation)
        manifest.spec.require_embedder(
            manifest.spec.embedder if embedder is None else embedder,
            manifest.spec.dimension if dimension is None else dimension,
            folder,
        )
        index = Index(folder, manifest, threads or len(os.sched_getaffinity(0)))
        # Held from here on, unless a compaction took it away just before.
        if manifest.generation in generations(folder):
            return index
        index.close()
        if generation is not None:
            raise IndexMissing(f"the index at {folder} no longer has generation {generation}")
