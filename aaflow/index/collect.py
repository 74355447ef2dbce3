"""Removing what no generation needs any more; called by the holder of the lock only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from aaflow.index.files import temporaries
from aaflow.index.manifest import (
    Manifest,
    backend_file,
    generations,
    manifest_path,
    publish_manifest,
    read_manifest,
    segment_file,
)
from aaflow.index.readers import held
from aaflow.index.stage import staged_units

#: Generations that publishing leaves, for readers that look back.
KEEP = 4


def collect(path: Path, *, keep: int = KEEP) -> None:
    """Remove all but the newest ``keep`` generations and those that readers hold, and the files that only they had."""
    have = generations(path)
    spared = set(have[-keep:]) | held(path)
    going = {generation: read_manifest(path, generation) for generation in have if generation not in spared}
    for generation in going:
        manifest_path(path, generation).unlink()
    # A reader registers before it reads the manifest: one that read it while it was there shows now.
    for generation in held(path) & set(going):
        publish_manifest(path, going.pop(generation))
    for file in dangling(path):
        file.unlink(missing_ok=True)


def drop_staging(path: Path) -> None:
    """Remove the units of every run: they are published, or the index has moved on without them."""
    shutil.rmtree(path / "staging", ignore_errors=True)


def drop_temporaries(path: Path) -> None:
    """Remove what writers that died left half written."""
    for file in temporaries(path):
        file.unlink(missing_ok=True)


def dangling(path: Path) -> Iterator[Path]:
    """Files of the index that neither a generation nor a unit not yet published needs."""
    manifests = [read_manifest(path, generation) for generation in generations(path)]
    needed = {name for manifest in manifests for name in manifest.files()}
    needed |= {*_staged(path), *_backends(manifests)}
    for folder in ("partitions", "tombstones", "sources", "backends"):
        for file in (path / folder).rglob("*"):
            if file.is_file() and str(file.relative_to(path)) not in needed:
                yield file


def _staged(path: Path) -> Iterator[str]:
    for folder in (path / "staging").glob("*"):
        yield from (segment_file(unit.partition, unit.segment.id) for unit in staged_units(folder) if unit.segment)


def _backends(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        for partition, segments in enumerate(manifest.partitions):
            for kind in ("ivf", "hnsw"):
                yield backend_file(kind, partition, segments)
