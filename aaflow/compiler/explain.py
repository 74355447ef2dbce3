"""A plan and its slots as tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from aaflow.scheduling.slot import Slot, shares_cores

if TYPE_CHECKING:
    from aaflow.compiler.plan import Edge, Plan, Stage


def explain(plan: Plan, slots: Mapping[str, Sequence[Slot]]) -> Group:
    """Stages with patterns, domains and batch sizes; edges with their primitive; the slot of every rank.

    Args:
        plan: what to show.
        slots: by stage name, the slot of each rank; empty to leave them out.
    """
    parts: list[Text | Table] = [_headline(plan)]
    for stage in plan.stages:
        parts.append(_operator_table(stage))
        if stage.name in slots:
            parts.append(_slot_table(stage, slots[stage.name]))
    return Group(*parts, _edge_table(plan.edges))


def _headline(plan: Plan) -> Text:
    lines = [f"plan {plan.digest[:16]} on site {plan.site}, {plan.partitions} partitions"]
    if plan.listing is not None:
        listing = plan.listing
        lines.append(
            f"input: {listing.splits} split(s), {listing.bytes / 1e6:.1f} MB in {listing.tranches} tranche(s), "
            f"{listing.unchanged} file(s) unchanged"
        )
    if plan.index is not None:
        lines.append(f"index: {plan.index['path']}, dimension {plan.index['spec']['dimension']}")
    return Text("\n".join(lines))


def _operator_table(stage: Stage) -> Table:
    after = f", after {', '.join(stage.after)}" if stage.after else ""
    where = f", environment {stage.environment}" if stage.environment else ""
    title = f"Stage {stage.name}: {stage.ranks} rank(s), collectives {stage.communicator}{where}{after}"
    table = Table("operator", "pattern", "domain", "workers", "batch rows", title=title, title_justify="left")
    for operator in stage.operators:
        name = f"{operator.name} (after a shuffle)" if operator.shuffle else operator.name
        rows = "a unit" if operator.kind == "upsert" else str(operator.batch_rows or "as read")
        table.add_row(name, operator.pattern, operator.domain, str(operator.workers), rows)
    return table


def _slot_table(stage: Stage, slots: Sequence[Slot]) -> Table:
    shared = "; oversubscribed: ranks share cores" if shares_cores(slots) else ""
    title = f"Slots of {stage.name}{shared}"
    table = Table("rank", "node", "cores", "accelerators", "memory", "partitions", title=title, title_justify="left")
    for rank, slot in enumerate(slots):
        cores, memory = ",".join(map(str, slot.cores)), f"{slot.memory / 2**30:.1f} GiB"
        owned = sum(owner == rank for owner in stage.owners)
        table.add_row(str(rank), str(slot.node), cores, _accelerators(slot), memory, str(owned))
    return table


def _edge_table(edges: Iterable[Edge]) -> Table:
    columns = ("from", "to", "primitive", "bound (batches)", "bytes between ranks")
    table = Table(*columns, title="Edges", title_justify="left")
    for edge in edges:
        table.add_row(edge.source, edge.target, edge.primitive, str(edge.bound or "all"), f"{edge.bytes:,}")
    return table


def _accelerators(slot: Slot) -> str:
    seen = slot.accelerators
    return f"{seen.variable}={','.join(seen.ids)}" if seen is not None else "-"
