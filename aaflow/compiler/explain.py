"""A plan and its slots as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from aaflow.compiler.volumes import bytes_between_nodes
from aaflow.scheduling.slot import Slot, shares_cores

if TYPE_CHECKING:
    from aaflow.compiler.plan import Edge, Plan, Stage


def explain(plan: Plan, slots: Mapping[str, Sequence[Slot]]) -> Group:
    """Stages with patterns, domains and batch sizes; edges with their primitive; the slot of every rank.

    Args:
        plan: what to show.
        slots: by stage name, the slot of each rank; empty to leave them out.
    """
    crowded = shares_cores([slot for group in slots.values() for slot in group])
    parts: list[Text | Table] = [_headline(plan)]
    for stage in plan.stages:
        parts += [_stage_line(stage), _operator_table(stage)]
        if stage.name in slots:
            parts.append(_slot_table(stage, slots[stage.name], crowded=crowded))
    return Group(*parts, _edge_table(plan, slots))


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


def _stage_line(stage: Stage) -> Text:
    """What would be the title of its table, which is narrower."""
    reads = f", reads {stage.upstream}" if stage.upstream else ""
    where = f", environment {stage.environment}" if stage.environment else ""
    slots = f"{stage.ranks} rank(s), slots for {stage.domain}"
    return Text(f"Stage {stage.name}: {slots}, collectives {stage.communicator}{where}{reads}", style="table.title")


def _operator_table(stage: Stage) -> Table:
    table = Table("operator", "pattern", "domain", "workers", "batch rows")
    for operator in stage.operators:
        name = f"{operator.name} (after a shuffle)" if operator.shuffle else operator.name
        rows = "a unit" if operator.kind == "upsert" else str(operator.batch_rows or "as read")
        table.add_row(name, operator.pattern, operator.domain, str(operator.workers), rows)
    return table


def _slot_table(stage: Stage, slots: Sequence[Slot], *, crowded: bool) -> Table:
    shared = "; oversubscribed: ranks share cores" if crowded else ""
    title = f"Slots of {stage.name}{shared}"
    table = Table("rank", "node", "cores", "accelerators", "memory", "partitions", title=title, title_justify="left")
    for rank, slot in enumerate(slots):
        cores, memory = ",".join(map(str, slot.cores)), f"{slot.memory / 2**30:.1f} GiB"
        owned = sum(owner == rank for owner in stage.owners)
        table.add_row(str(rank), str(slot.node), cores, _accelerators(slot), memory, str(owned))
    return table


def _edge_table(plan: Plan, slots: Mapping[str, Sequence[Slot]]) -> Table:
    columns = ("edge", "primitive", "rows go to", "batches", "buffers", "bytes", "between nodes")
    table = Table(title="Edges", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")  # on a narrow terminal too nothing is cut off
    for edge in plan.edges:
        primitive, buffers = edge.primitive, "-"
        if edge.primitive == "stream":
            pairs = plan.pairs_of(edge)
            buffers = f"{len(pairs)} x {edge.bound} x {edge.buffer_bytes / 2**20:g} MiB"
            primitive = _forms(plan, edge, pairs, slots) or primitive
        away = f"{bytes_between_nodes(plan, edge, slots):,}" if slots else "-"
        row = (f"{edge.source} → {edge.target}", primitive, _TARGETS[edge.routing], str(edge.bound), buffers)
        table.add_row(*row, f"{edge.bytes:,}", away)
    return table


_TARGETS = {"same": "same rank", "owner": "partition's owner", "forward": "rank by number"}


def _forms(plan: Plan, edge: Edge, pairs: Sequence[tuple[int, int]], slots: Mapping[str, Sequence[Slot]]) -> str:
    """How many pairs of ranks share a node, and how many do not."""
    source, target = plan.stage_of(edge.source).name, plan.stage_of(edge.target).name
    if source not in slots or target not in slots:
        return ""
    near = sum(slots[source][one].node == slots[target][other].node for one, other in pairs)
    socket = "socket" if plan.encrypted_edges else "socket without encryption"
    named = {"shared memory": near, socket: len(pairs) - near}
    return ", ".join(name for name, count in named.items() if count)


def _accelerators(slot: Slot) -> str:
    seen = slot.accelerators
    return f"{seen.variable}={','.join(seen.ids)}" if seen is not None else "-"
