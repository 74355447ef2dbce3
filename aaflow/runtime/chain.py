"""From a stage of the plan to the functions that run in one rank."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from aaflow.compiler.ingest import load_options, transform_options
from aaflow.compiler.partitioning import split_readers
from aaflow.compiler.plan import Plan, PlannedOperator, Stage, schema_of
from aaflow.dataplane.communicator import Communicator
from aaflow.errors import IndexMissing
from aaflow.hashing import sha256
from aaflow.index import IndexSpec, open_index
from aaflow.index import Stage as IndexStage
from aaflow.operators.apply import Apply
from aaflow.operators.embed import Embed
from aaflow.operators.embedders import Embedder, make_embedder
from aaflow.operators.listing import split_sizes
from aaflow.operators.load import Load
from aaflow.operators.operator import Item, Pattern, StreamFunction
from aaflow.operators.retrieve import Queries, Retrieve
from aaflow.operators.transform import Transform
from aaflow.operators.upsert import Upsert
from aaflow.runtime.shuffle import Shuffle
from aaflow.runtime.unchanged import KnownDocuments, Unchanged

Unit = tuple[int, int]


@dataclass(frozen=True)
class RankContext:
    """What a rank knows besides its plan.

    Attributes:
        plan: the whole plan.
        stage: the stage that this rank runs.
        communicator: of its task group.
        epoch: the writer's epoch; None where nothing is written.
        device: torch device of the slot.
        allocate: memory of so many bytes for a large column of what the last operator gives.
        spool: folder for what an operator has to put by.
    """

    plan: Plan
    stage: Stage
    communicator: Communicator
    epoch: int | None
    device: str
    allocate: Callable[[int], pa.Buffer] = pa.allocate_buffer
    spool: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))


def chain_of(context: RankContext) -> list[tuple[str, StreamFunction]]:
    """The named functions of a stage, in order: its operators, and between them what moves or drops rows."""
    # The first kernel of a process takes about 1 s to load, which is start-up and no operator's work.
    sha256(pa.array([""]))
    staging = _staging(context)
    committed = staging.committed() if staging is not None else set()
    entire = _need_every_row(context.plan)
    functions: list[tuple[str, StreamFunction]] = []
    before: PlannedOperator | None = None
    for operator in context.stage.operators:
        shuffled = operator.shuffle and context.plan.listing is not None
        if shuffled:
            functions.append(("shuffle", _shuffle(context, operator)))
        begins = before is None or before.name in entire
        if committed and operator.kind != "load" and operator.name not in entire and (shuffled or begins):
            functions.append(("committed", DropCommitted(committed)))
        skipped = committed if operator.name not in entire else set()
        functions.append((operator.name, _function(operator, context, staging, skipped)))
        if operator.kind == "load":
            known = _known_documents(context)
            if known is not None:
                functions.append(("unchanged", Unchanged(known)))
        before = operator
    return functions


def _need_every_row(plan: Plan) -> set[str]:
    """The operators before which no committed unit may be left out: those that need all rows, and what leads there."""
    operators = [operator for stage in plan.stages for operator in stage.operators]
    names = {operator.name for operator in operators if operator.kind in ("deduplicate", "aggregate")}
    for edge in reversed(plan.edges):
        if edge.target in names:
            names.add(edge.source)
    return names


class DropCommitted:
    """Leaves out the units that an earlier run of the same work committed."""

    def __init__(self, committed: set[Unit]) -> None:
        self._committed = committed

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        return (item for item in items if (item.tranche, item.partition) not in self._committed)


def _staging(context: RankContext) -> IndexStage | None:
    if context.plan.index is None or context.epoch is None:
        return None
    return IndexStage(Path(context.plan.index["path"]), context.epoch, context.plan.work_key)


def _function(
    operator: PlannedOperator, context: RankContext, staging: IndexStage | None, committed: set[Unit]
) -> StreamFunction:
    options = operator.options
    if operator.kind == "load":
        listing, mine = context.plan.tables["listing"], _my_splits(context, committed)
        pieces, sizes = listing.filter(pa.array(mine)), split_sizes(listing)[mine]
        return Load(load_options(operator, context.plan.partitions), pieces, sizes)
    if operator.kind == "transform":
        return Transform(transform_options(operator))
    if operator.kind == "embed":
        allocate = context.allocate if operator is context.stage.operators[-1] else pa.allocate_buffer
        return Embed(lambda: _embedder(operator, context), operator.batch_rows, operator.workers, allocate)
    if operator.kind == "upsert":
        assert staging is not None
        return Upsert(staging, operator.workers)
    if operator.kind == "queries":
        return Queries(options["texts"], context.communicator)
    if operator.kind == "retrieve":
        return Retrieve(Path(options["index"]), options["k"], options["backend"], context.communicator)
    if operator.kind in ("filter", "join", "deduplicate", "aggregate"):
        return _relational(operator, context)
    whole = operator.pattern in (Pattern.SHUFFLE_REDUCE.value, Pattern.SHUFFLE_COMPUTE.value)
    return Apply(operator.name, operator.function, options, schema_of(operator.output), whole_units=whole)


def _relational(operator: PlannedOperator, context: RankContext) -> StreamFunction:
    # Imported here: they need parts of pyarrow whose import takes 30 ms.
    from aaflow.operators.aggregate import Aggregate
    from aaflow.operators.deduplicate import Deduplicate, HeldByIndex
    from aaflow.operators.relational import Filter, Join

    rows, group, stage = schema_of(operator.input), context.communicator, context.stage
    if operator.kind == "filter":
        return Filter(operator.options)
    if operator.kind == "join":
        return Join(operator.options, rows, group)
    if operator.kind == "aggregate":
        return Aggregate(operator.options, rows, group)
    held = None
    if context.plan.index is not None and context.epoch is not None:
        read = [chunk for name in ("sources", "pruned") for chunk in context.plan.tables[name]["source"].chunks]
        owned = np.flatnonzero(np.asarray(stage.owners) == group.rank).tolist()
        chunks = "ordinal" in rows.names
        held = HeldByIndex(
            Path(context.plan.index["path"]), pa.concat_arrays([pa.array([], pa.string()), *read]), owned, chunks=chunks
        )
    return Deduplicate(rows, context.spool, group, stage.owners, held)


def _embedder(operator: PlannedOperator, context: RankContext) -> Embedder:
    """The model of this rank's node, which must be the one of every index that its vectors meet.

    Raises:
        EmbedderMismatch: it is another one; the text says both.
    """
    options = operator.options
    device = "cpu" if options["device"] == "cpu" else context.device
    embedder = make_embedder(options["model"], dimension=options["dimension"], device=device)
    for path, spec in _met_indexes(context.plan):
        spec.require_embedder(embedder.fingerprint, embedder.dimension, path)
    return embedder


def _met_indexes(plan: Plan) -> Iterator[tuple[Path, IndexSpec]]:
    """The indexes that a plan writes or searches."""
    if plan.index is not None:
        yield Path(plan.index["path"]), IndexSpec.from_json(plan.index["spec"])
    for operator in (operator for stage in plan.stages for operator in stage.operators):
        if operator.kind == "retrieve":
            with open_index(operator.options["index"]) as index:
                yield index.path, index.spec


def _shuffle(context: RankContext, operator: PlannedOperator) -> Shuffle:
    assert context.plan.listing is not None
    schema = schema_of(operator.input)
    return Shuffle(context.communicator, context.stage.owners, context.plan.listing.tranches, schema)


def _my_splits(context: RankContext, committed: set[Unit]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which splits of the listing this rank reads, without those whose units are all committed; bool [splits]."""
    listing = context.plan.tables["listing"]
    readers = split_readers(listing, context.stage.owners, context.stage.ranks)
    mine: np.ndarray[tuple[int], np.dtype[np.bool_]] = readers == context.communicator.rank
    if committed:
        mine &= ~_done(listing, committed, context.plan.partitions)
    return mine


def _done(listing: pa.Table, committed: set[Unit], partitions: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    tranche, partition = listing["tranche"].to_numpy(), listing["partition"].to_numpy()
    done = np.zeros((int(tranche.max(initial=-1)) + 1, partitions + 1), np.bool_)
    for unit in committed:
        done[unit] = True
    done[:, partitions] = done[:, :partitions].all(axis=1)  # partition -1 reads this: a tranche whose units are all in
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = done[tranche, partition]
    return found


def _known_documents(context: RankContext) -> KnownDocuments | None:
    if context.plan.index is None:
        return None
    try:
        with open_index(Path(context.plan.index["path"])) as index:
            return KnownDocuments.of(index) if index.info().documents else None
    except IndexMissing:
        return None
