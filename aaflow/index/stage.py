"""Units of commit that a run has made durable and not yet published.

A unit is what one (tranche, partition) became: at most one segment, and notices. It counts from the moment its record
lies in ``staging/<key>/``; ``key`` is the digest of the work (listing and options), so a run that does the same work
again finds what is done.
"""

from __future__ import annotations

import datetime
import json
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import IndexCorrupt, StaleEpoch, VectorIndexError
from aaflow.index.duplicates import sort_and_reduce
from aaflow.index.files import make_folder, write_file
from aaflow.index.lock import check_epoch
from aaflow.index.manifest import Segment, read_manifest
from aaflow.index.segment import arrow_file, read_table, write_segment
from aaflow.index.spec import CREATED, IndexSpec
from aaflow.schema import NOTICES


@dataclass(frozen=True)
class Unit:
    """A committed unit.

    Attributes:
        tranche: slice of the input listing.
        partition: owner of the rows.
        segment: the rows, None where there are none.
        notices: file of its notices beside its record, None where there are none.
        data: bytes of the rows that were committed, as Arrow holds them.
        written: bytes written for them, notices and record among them.
    """

    tranche: int
    partition: int
    segment: Segment | None
    notices: str | None
    data: int
    written: int


class Stage:
    """Commits units under a writer's epoch; used by ranks, which may be on other nodes than the writer.

    One rank at a time commits units of a partition.

    Args:
        path: the index folder.
        epoch: :attr:`Writer.epoch` of the run's writer.
        key: digest of the work, letters and digits.

    Raises:
        IndexMissing: there is no index.
        StaleEpoch: another writer took over, or the run's writer has released the index.
    """

    def __init__(self, path: str | Path, epoch: int, key: str) -> None:
        self._path = Path(path)
        self._epoch = epoch
        self._key = key
        self._folder = staging_folder(self._path, key)
        self.spec: IndexSpec = read_manifest(self._path).spec
        check_epoch(self._path, epoch)
        make_folder(self._folder)

    def committed(self) -> set[tuple[int, int]]:
        """The units (tranche, partition) that are durable under this key."""
        return {(int(file.stem[:6]), int(file.stem[7:])) for file in self._folder.glob("*.json")}

    def commit(self, tranche: int, partition: int, rows: pa.Table | None, notices: pa.Table | None) -> None:
        """Make one unit durable; one that already is stays as it is.

        Args:
            tranche: slice of the input listing.
            partition: owner of every row.
            rows: schema :meth:`IndexSpec.rows`, in any order; None and empty are the same.
            notices: schema :data:`aaflow.schema.NOTICES`.

        Raises:
            StaleEpoch: another writer took over, or the run's writer has released the index.
            VectorIndexError: the rows don't fit the index.
        """
        name = f"{tranche:06d}-{partition:05d}"
        check_epoch(self._path, self._epoch)
        if (self._folder / f"{name}.json").exists():
            return
        written, segment, notices_file = 0, None, None
        said = [notices] if notices is not None else []
        if rows is not None and rows.num_rows:
            reduced, duplicates = sort_and_reduce(self._checked(rows, partition), partition)
            created = pa.scalar(datetime.datetime.now(datetime.timezone.utc), CREATED.type)
            reduced = reduced.drop(["partition"]).append_column(CREATED, pa.repeat(created, reduced.num_rows))
            segment_name = f"{self._epoch:06d}-{tranche:06d}-{uuid.uuid4().hex[:12]}"
            segment = write_segment(self._path, partition, segment_name, reduced, self.spec)
            said.append(duplicates)
            written += segment.bytes
        told = pa.concat_tables([part.cast(NOTICES) for part in said]) if said else NOTICES.empty_table()
        try:
            if told.num_rows:
                notices_file, data = f"{name}.arrow", arrow_file(told)
                write_file(self._folder / notices_file, memoryview(data))
                written += data.size
            size = 0 if rows is None else rows.nbytes
            unit = Unit(tranche, partition, segment, notices_file, size, written)
            check_epoch(self._path, self._epoch)
            write_file(self._folder / f"{name}.json", json.dumps(asdict(unit)).encode())
        except FileNotFoundError:
            raise StaleEpoch(f"{self._folder} is gone: another run has published since") from None

    def _checked(self, rows: pa.Table, partition: int) -> pa.Table:
        expected = self.spec.rows()
        if not rows.schema.equals(expected):
            names = expected.names
            wrong = [str(f) for f in rows.schema if f.name not in names or not f.equals(expected.field(f.name))]
            raise VectorIndexError(
                f"rows of partition {partition} don't fit the index at {self._path}: "
                f"{', '.join(wrong) or 'columns are missing or in another order'}"
            )
        if not pc.all(pc.equal(rows["partition"], partition)).as_py():
            raise VectorIndexError(f"{self._path}: rows of other partitions were committed to partition {partition}")
        return rows


def staging_folder(path: Path, key: str) -> Path:
    """Where units of ``key`` lie.

    Raises:
        ValueError: the key is no digest.
    """
    if not re.fullmatch(r"[0-9A-Za-z]+", key):
        raise ValueError(f"a key of work is a digest of letters and digits, not {key!r}")
    return path / "staging" / key


def staged_units(folder: Path) -> list[Unit]:
    """The committed units in a staging folder, by partition and tranche.

    Raises:
        IndexCorrupt: a record can't be read.
    """
    units = []
    for file in folder.glob("*.json"):
        try:
            values = json.loads(file.read_bytes())
            segment = values.pop("segment")
            units.append(Unit(segment=Segment.from_json(segment) if segment else None, **values))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IndexCorrupt(f"{file} is no record of a unit ({error}): remove it and run again") from error
    return sorted(units, key=lambda unit: (unit.partition, unit.tranche))


def unit_notices(folder: Path, units: list[Unit]) -> pa.Table:
    """The notices of ``units``."""
    tables = [read_table(folder / unit.notices) for unit in units if unit.notices]
    return pa.concat_tables([NOTICES.empty_table(), *tables])
