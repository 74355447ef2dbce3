"""The one writer of an index: it publishes what a run's ranks have committed as the next generation."""

from __future__ import annotations

import datetime
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import StaleEpoch, VectorIndexError
from aaflow.index.advance import Advance, bytes_of, untold
from aaflow.index.change import Change, PartitionChange, change_partition, with_tombstones
from aaflow.index.collect import collect, drop_staging, drop_temporaries
from aaflow.index.compact import compact_partition
from aaflow.index.files import make_folders, write_file
from aaflow.index.lock import Claim, claim
from aaflow.index.manifest import Manifest, Segment, publish_manifest, read_manifest
from aaflow.index.segment import arrow_file
from aaflow.index.sources import (
    SOURCES,
    distinct_sources,
    next_notices,
    next_sources,
    read_notices,
    read_sources,
    refuse_second_root,
    unreadable_sources,
)
from aaflow.index.spec import IndexSpec
from aaflow.index.stage import Unit, staged_units, staging_folder, unit_notices

_FOLDERS = ("backends", "manifest", "partitions", "readers", "sources", "staging", "tombstones", "writers")


@dataclass(frozen=True)
class Publication:
    """What publishing did.

    Attributes:
        manifest: the current generation; the one before when nothing changed.
        notices: everything the run said beside ``kept``, transient notices among it, schema ``NOTICES``.
        added: chunks that are new.
        removed: chunks that left.
        data: bytes of the rows that the run's units held, as Arrow holds them.
        written: bytes written for them: segments, records, tombstones, sources, manifest.
    """

    manifest: Manifest
    notices: pa.Table
    added: int
    removed: int
    data: int
    written: int


class Writer:
    """Holds the right to write an index; made by :meth:`acquire`, used as a context manager.

    Attributes:
        path: the index folder.
        epoch: what the ranks of the run commit under.
    """

    def __init__(self, path: Path, held: Claim) -> None:
        self.path = path
        self.epoch = held.epoch
        self._claim = held

    @classmethod
    def acquire(cls, path: str | Path, spec: IndexSpec | None = None, *, owner: str) -> Writer:
        """Take the right to write the index at ``path``, which is made where there is none.

        Args:
            path: the index folder.
            spec: what the index is built for; None takes an index as it is.
            owner: what a person should read about this writer when another one is refused.

        Raises:
            IndexLocked: another writer lives; the text names it.
            EmbedderMismatch: the index was built for another spec; the text says both.
            IndexMissing: there is no index, and no spec to make one.
            VectorIndexError: the folder holds something else.
        """
        folder = Path(path).absolute()
        if spec is not None:
            _refuse_other_folder(folder)
            make_folders(folder, _FOLDERS)
            if not any((folder / "manifest").glob("*.json")):
                publish_manifest(folder, Manifest(0, spec, ((),) * spec.partitions, None, None, _now()))
        found = read_manifest(folder).spec
        if spec is not None:
            found.require(spec, folder)
        held = claim(folder, owner)
        drop_temporaries(folder)
        return cls(folder, held)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let the next writer in. Ranks that still commit are refused from now on. Idempotent."""
        self._claim.release()

    def publish(
        self,
        key: str,
        *,
        sources: pa.Table,
        pruned: pa.Table | None = None,
        again: pa.Array | None = None,
        units: Collection[tuple[int, int]] | None = None,
    ) -> Publication:
        """Make the units committed under ``key`` the next generation; none where nothing changes.

        Of a source that was read, documents that are neither new nor ``kept`` leave. A source with a notice whose
        reason starts with ``unreadable:`` stays as it was. Units of other keys are dropped: the index has moved on.

        Args:
            key: digest of the work.
            sources: root, source, size and mtime_ns of every source that this run read.
            pruned: root and source of those that leave.
            again: sources that a later run has to look at even if they stay as they are, unless this one read them.
            units: the (tranche, partition) that the work has; None trusts the caller that all are committed.

        Raises:
            StaleEpoch: another writer took over.
            VectorIndexError: units are missing, or rows came of a source that is not in ``sources``.
            InputError: a source is in the index under another root.
        """
        self._claim.check()
        before = read_manifest(self.path)
        folder = staging_folder(self.path, key)
        staged = staged_units(folder)
        missing = sorted(set(units or ()) - {(unit.tranche, unit.partition) for unit in staged})
        if missing:
            raise VectorIndexError(
                f"{self.path}: {len(missing)} units of the run are not committed, the first is tranche {missing[0][0]} "
                f"of partition {missing[0][1]}: run again, what is committed is kept"
            )
        said = unit_notices(folder, staged)
        known = read_sources(self.path, before)
        gone = (
            (pruned if pruned is not None else SOURCES.empty_table())
            .select(["root", "source"])
            .cast(pa.schema([SOURCES.field("root"), SOURCES.field("source")]))
        )
        leaving = gone["source"].combine_chunks()
        read = distinct_sources(sources)
        refuse_second_root(read, known.filter(pc.invert(pc.is_in(known["source"], leaving))))
        unreadable = unreadable_sources(said)
        fine = read.filter(pc.invert(pc.is_in(read["source"], unreadable)))
        touched = pa.concat_arrays([leaving, fine["source"].combine_chunks()])
        touched = touched.filter(pc.is_in(touched, known["source"].combine_chunks()))
        changes = _change_partitions(self.path, before, staged, said, touched, unreadable, read)

        loud = said.filter(pc.not_equal(said["kind"], "kept"))
        loud = pa.concat_tables([loud, *(change.notices for change in changes)])
        kept = pa.concat_arrays([change.kept for change in changes])
        state = next_sources(known, fine, leaving, pa.array([], pa.string()) if again is None else again)
        remembered = next_notices(read_notices(self.path, before), loud, touched, unreadable, kept)
        after, written = self._write(before, [change.changes for change in changes], state, remembered)
        drop_staging(self.path)
        collect(self.path)
        return Publication(
            after,
            loud,
            sum(change.added for change in changes),
            sum(change.removed for change in changes),
            sum(unit.data for unit in staged),
            written + sum(unit.written for unit in staged),
        )

    def compact(self, advance: Advance = untold) -> Manifest:
        """Rewrite partitions of many segments or with tombstones; the content and its digest stay.

        Raises:
            StaleEpoch: another writer took over.
            IndexCorrupt: a file of the index is missing or damaged.
        """
        before = read_manifest(self.path)
        partitions = []
        done, whole = 0, sum(map(bytes_of, before.partitions))
        for partition, segments in enumerate(before.partitions):
            self._claim.check()
            name = f"{self.epoch:06d}-compact-{before.generation + 1:08d}"
            merged = compact_partition(self.path, partition, segments, before.spec, name)
            partitions.append([Change(segment) for segment in merged])
            done += bytes_of(segments)
            advance(done, whole)
        after, _ = self._write(before, partitions, read_sources(self.path, before), read_notices(self.path, before))
        collect(self.path, keep=1)
        return after

    def _write(
        self, before: Manifest, partitions: Sequence[Sequence[Change]], sources: pa.Table, notices: pa.Table
    ) -> tuple[Manifest, int]:
        """Publish the next generation unless it equals ``before``; returns the current one and the bytes written."""
        generation = before.generation + 1
        name = f"{generation:08d}-{self.epoch:06d}.arrow"
        segments, tombstones = with_tombstones(partitions, name)
        same_sources = sources.equals(read_sources(self.path, before))
        same_notices = notices.equals(read_notices(self.path, before))
        if segments == before.partitions and same_sources and same_notices:
            return before, 0
        files = {f"tombstones/{name}": tombstones}
        if not same_sources:
            files[f"sources/{name}"] = arrow_file(sources)
        if not same_notices:
            files[f"sources/notices-{name}"] = arrow_file(notices)
        written = 0
        for target, data in files.items():
            if data is not None:
                write_file(self.path / target, memoryview(data))
                written += data.size
        after = Manifest(
            generation,
            before.spec,
            segments,
            before.sources if same_sources else name,
            before.notices if same_notices else f"notices-{name}",
            _now(),
        )
        self._claim.check()
        if not publish_manifest(self.path, after):
            raise StaleEpoch(f"{self.path}: another writer has published generation {generation}: this run is over")
        return after, written + len(after.to_bytes())


def _change_partitions(
    path: Path,
    before: Manifest,
    staged: list[Unit],
    said: pa.Table,
    touched: pa.Array,
    unreadable: pa.Array,
    read: pa.Table,
) -> list[PartitionChange]:
    kept = said.filter(pc.equal(said["kind"], "kept"))
    new: list[list[Segment]] = [[] for _ in before.partitions]
    for unit in staged:
        if unit.segment is not None:
            new[unit.partition].append(unit.segment)

    def change(partition: int) -> PartitionChange:
        return change_partition(
            path,
            partition,
            before.partitions[partition],
            new[partition],
            kept.filter(pc.equal(kept["partition"], partition)),
            touched=touched,
            unreadable=unreadable,
            read=read["source"].combine_chunks(),
        )

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))), "aaflow-publish") as pool:
        return list(pool.map(change, range(len(before.partitions))))


def _refuse_other_folder(path: Path) -> None:
    """Refuse a folder that holds anything but an index or the beginning of one."""
    if path.exists() and not path.is_dir():
        raise VectorIndexError(f"{path} is a file, not a folder for an index: name another")
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in _FOLDERS) if path.is_dir() else []
    if strange and not (path / "manifest").is_dir():
        raise VectorIndexError(f"{path} is no index and is not empty (it holds {strange[0]!r}): name another folder")


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def compact(path: str | Path, *, owner: str = "aaflow index compact", advance: Advance = untold) -> Manifest:
    """Compact the index at ``path``; see :meth:`Writer.compact`.

    Raises:
        IndexMissing: there is none.
        IndexLocked: another writer lives.
        IndexCorrupt: a file of the index is missing or damaged.
    """
    with Writer.acquire(path, owner=owner) as writer:
        return writer.compact(advance)
