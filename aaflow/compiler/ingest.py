"""What a plan that builds an index needs to know before it runs: the index it goes to and the listing of its input."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.compiler.plan import PlannedOperator
from aaflow.errors import IndexMissing, InputError, WorkflowError
from aaflow.hashing import row_digest_sum
from aaflow.index import IndexSpec, open_index
from aaflow.operators.embedders import describe_embedder
from aaflow.operators.listing import LoadOptions, cut_tranches, list_inputs, split_sizes
from aaflow.operators.operator import Operator
from aaflow.operators.transform import TransformOptions
from aaflow.schema import DEFAULT_METADATA

#: Bytes of input in one tranche: what a run that is cut short may have to repeat.
TRANCHE_BYTES = 64 << 20
#: Partitions of a run that neither writes nor searches an index.
DEFAULT_PARTITIONS = 64

_SOURCE_COLUMNS = ["root", "source", "size", "mtime_ns"]


@dataclass(frozen=True)
class IndexTarget:
    """The index that a workflow writes.

    Attributes:
        path: its folder.
        spec: what it is built with; that of the folder where there is one already.
        exists: whether there is one already.
        prune: whether documents of the given roots that are gone leave it.
    """

    path: Path
    spec: IndexSpec
    exists: bool
    prune: bool

    def to_dict(self) -> dict[str, Any]:
        """The JSON that a plan names it by."""
        return {"path": str(self.path), "spec": self.spec.to_json(), "prune": self.prune}


@dataclass(frozen=True)
class Inputs:
    """What ``load`` reads.

    Attributes:
        operator: name of the ``load`` operator.
        listing: :data:`aaflow.schema.LISTING`, unchanged files left out.
        notices: what listing already found unreadable.
        sources: root, source, size, mtime_ns of every file in ``listing``.
        pruned: root, source of the files that are gone from the given roots.
        unchanged: files that the index holds as they are.
        roots: absolute URIs that sources are relative to.
        again: sources of dropped duplicates, which have to be looked at again; those that are not in ``listing``, by a
            later run.
    """

    operator: str
    listing: pa.Table
    notices: pa.Table
    sources: pa.Table
    pruned: pa.Table
    unchanged: int
    roots: tuple[str, ...]
    again: pa.Array

    @property
    def digest(self) -> str:
        """SHA-256 over the number of rows and the sum of their digests."""
        parts = [self.listing, self.pruned]
        return hashlib.sha256(repr([(t.num_rows, row_digest_sum(t)) for t in parts]).encode()).hexdigest()

    @property
    def has_records(self) -> bool:
        """Whether any split holds records that are documents of their own."""
        return bool(pc.any(self.listing["records"]).as_py())

    @property
    def record_bytes(self) -> int:
        """Bytes of the splits that hold records."""
        records = self.listing.filter(self.listing["records"])
        return int(split_sizes(records).sum())

    @property
    def tables(self) -> dict[str, pa.Table]:
        """By name, the Arrow files that travel with the plan."""
        roots = pa.table({"root": pa.array(self.roots, pa.string())})
        named = {"listing": self.listing, "notices": self.notices, "sources": self.sources, "pruned": self.pruned}
        return {**named, "roots": roots, "again": pa.table({"source": self.again})}


def load_options(operator: Operator | PlannedOperator, partitions: int) -> LoadOptions:
    """The options of a ``load`` operator.

    Raises:
        WorkflowError: an option is unknown.
    """
    given = {key: value for key, value in operator.options.items() if key != "paths"}
    try:
        return LoadOptions.from_json({**given, "partitions": partitions})
    except (InputError, TypeError, ValueError) as error:
        raise WorkflowError(f"operator {operator.name!r}: {error}") from error


def index_target(ordered: Sequence[Operator], metadata: Mapping[str, str]) -> IndexTarget | None:
    """The index that the workflow writes, None where it writes none.

    Raises:
        WorkflowError: it writes more than one, or rows that were never embedded.
        EmbedderMismatch: the index exists with another embedder, dimension, chunking or metadata.
    """
    writers = [operator for operator in ordered if operator.kind == "upsert"]
    if not writers:
        return None
    if len(writers) > 1:
        raise WorkflowError(f"operators {', '.join(w.name for w in writers)} all write an index; a workflow writes one")
    upsert = writers[0]
    chain = ancestors(upsert, ordered)
    embed = next((operator for operator in chain if operator.kind == "embed"), None)
    if embed is None:
        raise WorkflowError(f"operator {upsert.name!r} needs vectors: put an embed before it")
    transform = next((operator for operator in chain if operator.kind == "transform"), None)
    dimension, fingerprint = describe_embedder(embed.options["model"], embed.options["dimension"])
    path = Path(upsert.options["index"])
    chunking = transform_options(transform).to_json() if transform else {}
    known = _spec_of(path)
    partitions = upsert.options["partitions"] or (known.partitions if known else DEFAULT_PARTITIONS)
    try:
        spec = IndexSpec(
            dimension=dimension,
            partitions=partitions,
            metric=upsert.options["metric"],
            embedder=fingerprint,
            transform=chunking,
            metadata=_metadata(metadata, chain),
            relational=_relational(chain),
        )
    except ValueError as error:
        raise WorkflowError(f"operator {upsert.name!r}: {error}") from error
    if known is not None:
        known.require(spec, path)
    return IndexTarget(path, known or spec, known is not None, bool(upsert.options["prune"]))


def _metadata(declared: Mapping[str, str], chain: Sequence[Operator]) -> dict[str, str]:
    """The metadata of the rows of an index: what the workflow declared and what tables added."""
    joined = [operator.options["fields"] for operator in chain if operator.kind == "join"]
    added = {name: kind for fields in joined for name, kind in fields.items() if name not in DEFAULT_METADATA}
    return {**declared, **added}


def _relational(chain: Sequence[Operator]) -> tuple[str, ...]:
    kinds = ("filter", "join", "deduplicate")
    found = [operator for operator in reversed(chain) if operator.kind in kinds]
    if not found:
        return ()
    from aaflow.operators.declare import described

    return tuple(described(operator) for operator in found)


def _spec_of(path: Path) -> IndexSpec | None:
    """What an index is built with; None where there is none."""
    try:
        with open_index(path) as opened:
            return opened.spec
    except IndexMissing:
        return None


def transform_options(operator: Operator | PlannedOperator) -> TransformOptions:
    """The options of a ``transform`` operator.

    Raises:
        WorkflowError: an option is unknown or out of range.
    """
    try:
        return TransformOptions.from_json(dict(operator.options))
    except (InputError, TypeError, ValueError) as error:
        raise WorkflowError(f"operator {operator.name!r}: {error}") from error


def list_load(ordered: Sequence[Operator], target: IndexTarget | None) -> Inputs | None:
    """List what the workflow's ``load`` reads; files that the index holds unchanged (size and mtime) are left out.

    What has no mtime, as on a web server that tells none, is always read.

    Raises:
        WorkflowError: the workflow has more than one ``load``.
        InputError: a path is missing or can't be used.
    """
    loads = [operator for operator in ordered if operator.kind == "load"]
    if not loads:
        return None
    if len(loads) > 1:
        raise WorkflowError(f"operators {', '.join(op.name for op in loads)} all load; give one of them all the paths")
    options = load_options(loads[0], target.spec.partitions if target else DEFAULT_PARTITIONS)
    listed = list_inputs(loads[0].options["paths"], options)
    roots = tuple(sorted({*listed.roots, *pc.unique(listed.table["root"]).to_pylist()}))
    table, unchanged, pruned = listed.table, 0, listed.table.select(["root", "source"]).slice(0, 0)
    again = pa.array([], pa.string())
    if target is not None and target.exists:
        with open_index(target.path) as opened:
            known, remembered = opened.sources(), opened.notices()
        same = _is_in(table.select(_SOURCE_COLUMNS), known.select(_SOURCE_COLUMNS))
        same &= pc.or_(pc.not_equal(table["mtime_ns"], 0), pc.starts_with(table["uri"], "file://")).to_numpy()
        if target.prune:
            mine = known.filter(pc.is_in(known["root"], pa.array(listed.roots, pa.string()))).select(["root", "source"])
            gone = ~_is_in(mine, listed.table.select(["root", "source"])) & ~_out_of_sight(mine, listed.notices)
            pruned = mine.filter(pa.array(gone))
        changed = table["source"].filter(pa.array(~same))
        if pruned.num_rows or pc.any(pc.is_in(changed, known["source"].combine_chunks())).as_py():
            # What a duplicate lost against may leave, so its file is looked at again, in this run or in a later one.
            again = pc.unique(remembered["source"].filter(pc.equal(remembered["kind"], "duplicate")))
            same &= ~pc.is_in(table["source"], again).to_numpy()
        unchanged = len(set(table.filter(pa.array(same))["uri"].to_pylist()))
        table = table.filter(pa.array(~same))
    table = cut_tranches(table, TRANCHE_BYTES)
    sources = table.select(_SOURCE_COLUMNS).group_by(_SOURCE_COLUMNS).aggregate([]).select(_SOURCE_COLUMNS)
    return Inputs(loads[0].name, table, listed.notices, sources, pruned, unchanged, roots, again)


def _out_of_sight(rows: pa.Table, notices: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which sources listing met, or whose folder it met, without seeing them: they are not gone; bool [rows]."""
    hidden = pc.is_in(rows["source"], notices["source"].combine_chunks())
    for row in notices.filter(pc.starts_with(notices["reason"], "folder:")).to_pylist():
        hidden = pc.or_(hidden, pc.starts_with(rows["source"], row["source"] + "/"))
    return np.asarray(hidden.to_numpy(), np.bool_)


def _is_in(rows: pa.Table, known: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows stand in ``known``; bool [rows]."""
    if not rows.num_rows or not known.num_rows:
        return np.zeros(rows.num_rows, np.bool_)
    numbered = rows.append_column("_row", pa.array(np.arange(rows.num_rows)))
    found = numbered.join(
        known.group_by(rows.column_names).aggregate([]), keys=rows.column_names, join_type="left semi"
    )
    mask = np.zeros(rows.num_rows, np.bool_)
    mask[found["_row"].to_numpy()] = True
    return mask


def ancestors(operator: Operator, ordered: Sequence[Operator]) -> list[Operator]:
    """The operators whose rows lead to this one, the nearest first."""
    by_name = {other.name: other for other in ordered}
    chain = []
    current = operator.upstream
    while current is not None:
        chain.append(by_name[current])
        current = by_name[current].upstream
    return chain
