"""The state of every source file, and what of it was not indexed for good."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from aaflow.errors import InputError, VectorIndexError
from aaflow.index.manifest import Manifest
from aaflow.index.segment import read_table
from aaflow.schema import NOTICES

#: One row per source file: where it lies, and what it looked like when it was read.
SOURCES = pa.schema(
    [
        pa.field("root", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
    ]
)

#: A notice whose reason starts so is not remembered: its source is tried again.
TRANSIENT = "unreadable:"


def read_sources(path: Path, manifest: Manifest) -> pa.Table:
    """The state of every source, schema :data:`SOURCES`, sorted by root and source."""
    return read_table(path / "sources" / manifest.sources) if manifest.sources else SOURCES.empty_table()


def read_notices(path: Path, manifest: Manifest) -> pa.Table:
    """What was not indexed for good, schema :data:`aaflow.schema.NOTICES`."""
    return read_table(path / "sources" / manifest.notices) if manifest.notices else NOTICES.empty_table()


def unreadable_sources(notices: pa.Table) -> pa.Array:
    """Sources that could not be read this time."""
    return pc.unique(notices["source"].filter(pc.starts_with(notices["reason"], TRANSIENT)))


def distinct_sources(sources: pa.Table) -> pa.Table:
    """``sources`` once each, sorted; byte ranges of one file share its state.

    Raises:
        InputError: two roots have the same source.
        VectorIndexError: columns are missing.
    """
    try:
        table = sources.select(SOURCES.names).cast(SOURCES)
    except (KeyError, pa.ArrowInvalid, ValueError) as error:
        raise VectorIndexError(f"sources need the columns {', '.join(SOURCES.names)}: {error}") from error
    groups = table.group_by(["root", "source"])
    newest = groups.aggregate([("size", "max"), ("mtime_ns", "max")]).select(
        ["root", "source", "size_max", "mtime_ns_max"]
    )
    table = newest.rename_columns(SOURCES.names).cast(SOURCES)
    refuse_second_root(table, table)
    return table.sort_by([("root", "ascending"), ("source", "ascending")])


def refuse_second_root(sources: pa.Table, known: pa.Table) -> None:
    """Refuse a source that ``known`` has under another root: both would name the same documents.

    Raises:
        InputError: there is one; the text names it and both roots.
    """
    where = pc.index_in(sources["source"], known["source"])
    both = sources.filter(pc.is_valid(where))
    others = known.take(where.drop_null())
    clash = both.append_column("other", others["root"]).filter(pc.not_equal(both["root"], others["root"]))
    if clash.num_rows:
        row = clash.slice(0, 1).to_pydict()
        raise InputError(
            f"{row['source'][0]} is named by two roots, {row['other'][0]} and {row['root'][0]}"
            f"{f', and {clash.num_rows - 1} more are' if clash.num_rows > 1 else ''}: ingest a folder above both, "
            "or use an index for each"
        )


#: A size that no file has: the source is looked at again.
LOOK_AGAIN = -2


def next_sources(old: pa.Table, read: pa.Table, leaving: pa.Array, again: pa.Array) -> pa.Table:
    """``old`` without ``leaving``, with the new state of the sources in ``read``; the rest of ``again`` has none."""
    replaced = pa.concat_arrays([leaving, read["source"].combine_chunks()])
    stays = old.filter(pc.invert(pc.is_in(old["source"], replaced)))
    size = pc.if_else(pc.is_in(stays["source"], again), pa.scalar(LOOK_AGAIN, pa.int64()), stays["size"])
    stays = stays.set_column(stays.schema.get_field_index("size"), SOURCES.field("size"), size)
    return pa.concat_tables([stays, read]).sort_by([("root", "ascending"), ("source", "ascending")]).combine_chunks()


def next_notices(old: pa.Table, said: pa.Table, touched: pa.Array, unreadable: pa.Array, kept: pa.Array) -> pa.Table:
    """The notices of the next generation.

    Args:
        old: those of the current one.
        said: what this run said, beside what is kept.
        touched: sources whose old notices no longer hold, except metadata conflicts of kept documents.
        unreadable: sources that stay as they were.
        kept: ids of kept documents.
    """
    conflicts = pc.and_(pc.equal(old["kind"], "conflict"), pc.is_in(old["doc_id"], kept))
    stays = old.filter(pc.or_(pc.invert(pc.is_in(old["source"], touched)), conflicts))
    said = said.filter(pc.invert(pc.is_in(said["source"], unreadable)))
    both = pa.concat_tables([stays, said]).group_by(NOTICES.names).aggregate([])
    order = ["source", "record", "doc_id", "kind", "reason", "partition"]
    return both.select(NOTICES.names).cast(NOTICES).sort_by([(name, "ascending") for name in order]).combine_chunks()
