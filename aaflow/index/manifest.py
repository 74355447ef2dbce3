"""The manifest of one generation: which segments and tombstones are the index.

A generation is published by linking its file into ``manifest/``: the link is exclusive, so of two writers only one can
publish a generation, and the highest number is the current one. Generation 0 is empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aaflow.errors import IndexCorrupt, IndexMissing
from aaflow.hashing import combine_digests, digest_hex
from aaflow.index.files import create_file
from aaflow.index.spec import IndexSpec

#: Version of everything in an index folder; another one is refused.
FORMAT = 1
_MODULUS = 1 << 256


@dataclass(frozen=True)
class Tombstones:
    """The rows of a segment that are no longer in the index.

    Attributes:
        file: Arrow file in ``tombstones/``.
        batch: the record batch of it that belongs to this segment.
        rows: how many.
        digest: digest of those rows, hexadecimal.
    """

    file: str
    batch: int
    rows: int
    digest: str


@dataclass(frozen=True)
class Segment:
    """One immutable Arrow file of a partition.

    Attributes:
        id: name of the file in the partition's folder, without suffix.
        rows: rows in the file.
        documents: live documents.
        bytes: size of the file.
        digest: digest of all rows, hexadecimal.
        file_digest: digest of the bytes of the file, hexadecimal.
        norm: no vector is longer than this (l2 norm).
        dead: its tombstones.
    """

    id: str
    rows: int
    documents: int
    bytes: int
    digest: str
    file_digest: str
    norm: float
    dead: Tombstones | None = None

    @property
    def live(self) -> int:
        """Rows that are in the index."""
        return self.rows - (self.dead.rows if self.dead else 0)

    @property
    def live_digest(self) -> int:
        """Digest of the live rows."""
        return (int(self.digest, 16) - (int(self.dead.digest, 16) if self.dead else 0)) % _MODULUS

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Segment:
        """The segment whose ``asdict`` this is."""
        dead = values["dead"]
        return cls(**{**values, "dead": Tombstones(**dead) if dead else None})


@dataclass(frozen=True)
class Manifest:
    """One generation of an index.

    Attributes:
        generation: from 0.
        spec: what the index is built for.
        partitions: the segments of every partition, in order of commit.
        sources: Arrow file in ``sources/`` with the state of every source file; None while there is none.
        notices: Arrow file in ``sources/`` with what was not indexed for good; None while there is none.
        published: UTC, ISO 8601.
    """

    generation: int
    spec: IndexSpec
    partitions: tuple[tuple[Segment, ...], ...]
    sources: str | None
    notices: str | None
    published: str

    @cached_property
    def digest(self) -> str:
        """Digest of the content, hexadecimal: a sum over live rows, whatever segments they are in."""
        total = 0
        for _, segment in self.segments():
            total = combine_digests(total, segment.live_digest)
        return digest_hex(total)

    @property
    def documents(self) -> int:
        """Documents with at least one chunk."""
        return sum(segment.documents for _, segment in self.segments())

    @property
    def chunks(self) -> int:
        """Live rows."""
        return sum(segment.live for _, segment in self.segments())

    def segments(self) -> Iterator[tuple[int, Segment]]:
        """Every segment with its partition."""
        for partition, segments in enumerate(self.partitions):
            for segment in segments:
                yield partition, segment

    def rows(self) -> list[int]:
        """Live rows of every partition."""
        return [sum(segment.live for segment in segments) for segments in self.partitions]

    def files(self) -> set[str]:
        """Every file that this generation needs, relative to the index folder."""
        found = {segment_file(partition, segment.id) for partition, segment in self.segments()}
        found |= {f"tombstones/{segment.dead.file}" for _, segment in self.segments() if segment.dead}
        return found | {f"sources/{name}" for name in (self.sources, self.notices) if name}

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        values = {
            "format": FORMAT,
            "generation": self.generation,
            "digest": self.digest,
            "spec": self.spec.to_json(),
            "partitions": [[asdict(segment) for segment in segments] for segments in self.partitions],
            "sources": self.sources,
            "notices": self.notices,
            "published": self.published,
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def segment_file(partition: int, name: str) -> str:
    """Where a segment lies, relative to the index folder."""
    return f"partitions/{partition:05d}/{name}.arrow"


def backend_file(kind: str, partition: int, segments: Sequence[Segment]) -> str:
    """Where the ``ivf`` or ``hnsw`` index over exactly these segments lies, relative to the index folder."""
    signature = hashlib.sha256(" ".join(f"{s.id} {s.file_digest}" for s in segments).encode()).hexdigest()[:16]
    return f"backends/{kind}/{partition:05d}-{signature}.faiss"


def manifest_path(path: Path, generation: int) -> Path:
    """Where a generation's manifest lies."""
    return path / "manifest" / f"{generation:08d}.json"


def generations(path: Path) -> list[int]:
    """The generations that an index folder still has, rising.

    Raises:
        IndexMissing: there is no index at ``path``.
    """
    folder = path / "manifest"
    try:
        found = sorted(int(file.stem) for file in folder.glob("*.json") if file.stem.isdigit())
    except NotADirectoryError:
        found = []
    if not found:
        raise IndexMissing(f"there is no index at {path}: make one with `aaflow ingest PATH --index {path}`")
    return found


def read_manifest(path: Path, generation: int | None = None) -> Manifest:
    """The manifest of a generation, the current one unless told.

    Raises:
        IndexMissing: there is no index at ``path``, or it no longer has that generation.
        IndexCorrupt: the manifest can't be read.
    """
    while True:
        wanted = generations(path)[-1] if generation is None else generation
        try:
            return _parse(manifest_path(path, wanted).read_bytes(), manifest_path(path, wanted))
        except FileNotFoundError:
            # A compaction took it away between the listing and the reading; the listing has a newer one by now.
            if generation is not None or generations(path)[-1] == wanted:
                have = ", ".join(map(str, generations(path)))
                raise IndexMissing(f"the index at {path} has no generation {wanted}; it has {have}") from None


def _parse(data: bytes, file: Path) -> Manifest:
    try:
        values = json.loads(data)
        if values["format"] != FORMAT:
            raise IndexCorrupt(
                f"{file} has format {values['format']}, this aaflow reads format {FORMAT}: "
                "use the version of aaflow that wrote it"
            )
        manifest = Manifest(
            generation=values["generation"],
            spec=IndexSpec.from_json(values["spec"]),
            partitions=tuple(tuple(Segment.from_json(s) for s in segments) for segments in values["partitions"]),
            sources=values["sources"],
            notices=values["notices"],
            published=values["published"],
        )
        whole = manifest.digest == values["digest"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexCorrupt(f"{file} is not a manifest ({error}): restore it, or build the index anew") from error
    if not whole:
        raise IndexCorrupt(f"{file}: its digest is not the sum of its segments: restore it, or build the index anew")
    return manifest


def publish_manifest(path: Path, manifest: Manifest) -> bool:
    """Make ``manifest`` the current generation; False when another writer was first."""
    return create_file(manifest_path(path, manifest.generation), manifest.to_bytes())
