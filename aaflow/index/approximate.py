"""IVF and HNSW beside the segments: one FAISS index per partition, built over exactly its segments.

They propose candidates only; the score is the exact one. A partition with few rows is searched exactly, as is one that
a search can't use its index for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np

from aaflow.errors import IndexCorrupt, VectorIndexError
from aaflow.index.advance import Advance, bytes_of, untold
from aaflow.index.duplicates import Mask
from aaflow.index.exact import Found, use_one_thread
from aaflow.index.files import make_folder, write_file
from aaflow.index.manifest import Segment, backend_file, read_manifest
from aaflow.index.scores import score_candidates
from aaflow.index.segment import Block, Floats, Rows, open_segment
from aaflow.index.spec import IndexSpec
from aaflow.index.writer import Writer

KINDS = ("ivf", "hnsw")
#: Below so many rows a partition is searched exactly: that is as quick.
LEAST_ROWS = 1024
_MARGIN = 16


def build_backend(path: str | Path, kind: str, *, owner: str = "aaflow index build", advance: Advance = untold) -> int:
    """Build ``kind`` for every partition of the current generation that lacks it; returns how many were built.

    The same rows in the same segments give the same index: seeds are fixed and each is built by one thread.

    Raises:
        VectorIndexError: the kind is unknown.
        IndexMissing: there is no index.
        IndexLocked: a writer lives.
    """
    if kind not in KINDS:
        raise VectorIndexError(f"unknown search backend {kind!r}; use {', '.join(KINDS)}")
    folder = Path(path).absolute()
    with Writer.acquire(folder, owner=owner):
        manifest = read_manifest(folder)
        lacking = [
            (partition, segments)
            for partition, segments in enumerate(manifest.partitions)
            if _rows(segments) >= LEAST_ROWS and not (folder / backend_file(kind, partition, segments)).exists()
        ]

        def build(job: tuple[int, Sequence[Segment]]) -> None:
            partition, segments = job
            blocks = [b for segment in segments for b in open_segment(folder, partition, segment, manifest.spec)]
            target = folder / backend_file(kind, partition, segments)
            make_folder(target.parent)
            write_file(target, _build(kind, blocks, manifest.spec))

        whole, done = sum(bytes_of(segments) for _, segments in lacking), 0
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "aaflow-build", use_one_thread) as pool:
            for (_, segments), _ in zip(lacking, pool.map(build, lacking), strict=True):
                done += bytes_of(segments)
                advance(done, whole)
        return len(lacking)


def search_partition(
    path: Path,
    kind: str,
    segments: Sequence[Segment],
    blocks: Sequence[Block],
    allowed: Sequence[Mask | None],
    queries: Floats,
    k: int,
    metric: str,
    loaded: dict[str, Any],
) -> Found:
    """The best ``k`` that the index of a partition proposes, scored exactly.

    Args:
        path: the index folder.
        kind: ``ivf`` or ``hnsw``.
        segments: the partition's segments.
        blocks: all their blocks, in order.
        allowed: rows of each block that may be found; None for all.
        queries: float32 [q, dimension].
        k: how many.
        metric: of the index.
        loaded: FAISS indices by file, kept between searches.

    Raises:
        VectorIndexError: the partition has changed since its index was built, or it never was.
        IndexCorrupt: the file can't be read.
    """
    index = _load(path / backend_file(kind, blocks[0].partition, segments), kind, loaded)
    starts = np.cumsum([0, *(len(block.vectors) for block in blocks)])
    rows = _propose(index, kind, queries, k, _selector(blocks, allowed))
    owner = np.searchsorted(starts, rows, side="right") - 1
    found = []
    for number, block in enumerate(blocks):
        local = np.where(owner == number, rows - starts[number], -1)
        scores = np.empty(local.shape, dtype=np.float32)
        score_candidates(block.vectors, queries, local, metric == "l2", scores)
        query, place = np.nonzero(local >= 0)
        found.append(Found.of(block, number, query, scores[query, place], local[query, place]))
    return Found.concatenate(found).best(k)


def _rows(segments: Sequence[Segment]) -> int:
    return sum(segment.rows for segment in segments)


def _build(kind: str, blocks: Sequence[Block], spec: IndexSpec) -> bytes:
    """The file of a FAISS index over these blocks."""
    import faiss

    index: Any
    quantizer: Any
    metric = faiss.METRIC_L2 if spec.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(spec.dimension, 32, metric)
        index.hnsw.efConstruction = 100
    else:
        rows = sum(len(block.vectors) for block in blocks)
        lists = max(1, min(int(4 * math.sqrt(rows)), rows // 39))  # FAISS wants 39 training points a list
        quantizer = faiss.IndexFlat(spec.dimension, metric)
        index = faiss.IndexIVFFlat(quantizer, spec.dimension, lists, metric)
        index.cp.seed = 1
        index.train(np.concatenate([block.vectors for block in blocks])[:: max(1, rows // (lists * 256))])
        index.own_fields = True
        quantizer.this.disown()
    for block in blocks:
        index.add(block.vectors)
    return faiss.serialize_index(index).tobytes()


def _load(file: Path, kind: str, loaded: dict[str, Any]) -> Any:
    import faiss

    name = str(file)
    if name not in loaded:
        if not file.exists():
            raise VectorIndexError(
                f"{file.parent.parent.parent} has no {kind} index over its current generation for partition "
                f"{file.stem[:5]}: build it with `aaflow index build INDEX {kind}`, or search with exact"
            )
        try:
            loaded[name] = faiss.read_index(name)
        except RuntimeError as error:
            raise IndexCorrupt(f"{file} can't be read ({error}): remove it and build it again") from error
    return loaded[name]


def _selector(blocks: Sequence[Block], allowed: Sequence[Mask | None]) -> Mask | None:
    """Rows of the partition that may be found, None for all."""
    if all(mask is None for mask in allowed):
        return None
    return np.concatenate(
        [
            np.ones(len(block.vectors), dtype=np.bool_) if mask is None else mask
            for block, mask in zip(blocks, allowed, strict=True)
        ]
    )


def _propose(index: Any, kind: str, queries: Floats, k: int, allowed: Mask | None) -> Rows:
    """Numbers of candidate rows, int64 [queries, k + margin], -1 where there are fewer."""
    import faiss

    made: Any = faiss  # its own annotations lack what is generated
    most = int(index.ntotal if allowed is None else allowed.sum())
    count = min(k + _MARGIN, most)
    if not count:
        return np.full((len(queries), 1), -1, dtype=np.int64)
    selector = None
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")
        selector = made.IDSelectorBitmap(len(allowed), made.swig_ptr(bits))
    if kind == "hnsw":
        parameters = made.SearchParametersHNSW(efSearch=max(128, 2 * count), sel=selector)
    else:
        parameters = made.SearchParametersIVF(nprobe=max(8, index.nlist // 8), sel=selector)
    return cast(Rows, index.search(queries, count, params=parameters)[1])
