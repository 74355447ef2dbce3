"""A plan and its slots as tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from aaflow.compiler.plan import Edge, Plan, Stage
from aaflow.scheduling.slot import Slot, shares_cores


def explain(plan: Plan, slots: Mapping[str, Sequence[Slot]]) -> Group:
    """Stages with patterns, domains and batch sizes; edges with their primitive; the slot of every rank.

    Args:
        plan: what to show.
        slots: by stage name, the slot of each rank; empty to leave them out.
    """
    parts: list[Text | Table] = [_headline(plan), _stage_table(plan.stages), _edge_table(plan.edges)]
    return Group(*parts, _slot_table(plan.stages, slots)) if slots else Group(*parts)


def _headline(plan: Plan) -> Text:
    text = Text(f"plan {plan.digest[:16]} on site {plan.site}, {plan.partitions} partitions")
    if plan.listing is not None:
        listing = plan.listing
        text.append(
            f"\ninput: {listing.splits} split(s), {listing.bytes / 1e6:.1f} MB in {listing.tranches} tranche(s)"
        )
        text.append(f", {listing.unchanged} file(s) unchanged; listing {listing.digest[:16]}")
    if plan.index is not None:
        text.append(f"\nindex: {plan.index['path']}, dimension {plan.index['spec']['dimension']}")
    return text


def _stage_table(stages: Iterable[Stage]) -> Table:
    table = Table(
        "stage", "operator", "pattern", "domain", "workers", "batch rows", "ranks", "collectives", title="Stages"
    )
    for stage in stages:
        for number, operator in enumerate(stage.operators):
            first = number == 0
            name = f"{operator.name} (after shuffle)" if operator.shuffle else operator.name
            table.add_row(
                stage.name if first else "",
                name,
                operator.pattern,
                operator.domain,
                str(operator.workers),
                str(operator.batch_rows or "as read"),
                str(stage.ranks) if first else "",
                stage.communicator if first else "",
                end_section=number == len(stage.operators) - 1,
            )
    return table


def _edge_table(edges: Iterable[Edge]) -> Table:
    table = Table("from", "to", "primitive", "bound (batches)", "bytes between ranks", title="Edges")
    for edge in edges:
        table.add_row(edge.source, edge.target, edge.primitive, str(edge.bound or "all"), f"{edge.bytes:,}")
    return table


def _slot_table(stages: Iterable[Stage], slots: Mapping[str, Sequence[Slot]]) -> Table:
    shared = " (oversubscribed: ranks share cores)" if any(map(shares_cores, slots.values())) else ""
    table = Table("stage", "rank", "node", "cores", "accelerators", "memory", "partitions", title=f"Slots{shared}")
    for stage in stages:
        for rank, slot in enumerate(slots[stage.name]):
            owned = sum(owner == rank for owner in stage.owners)
            table.add_row(
                stage.name if rank == 0 else "",
                str(rank),
                str(slot.node),
                ",".join(map(str, slot.cores)),
                _accelerators(slot),
                f"{slot.memory / 2**30:.1f} GiB",
                str(owned),
                end_section=rank == stage.ranks - 1,
            )
    return table


def _accelerators(slot: Slot) -> str:
    seen = slot.accelerators
    return f"{seen.variable}={','.join(seen.ids)}" if seen is not None else "-"
