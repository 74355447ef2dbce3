"""How many bytes pass an edge, as far as the names and sizes of the input files tell before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types

from aaflow.compiler.ingest import Inputs, transform_options
from aaflow.compiler.plan import Edge, Plan
from aaflow.operators.listing import split_sizes
from aaflow.operators.operator import Operator
from aaflow.scheduling.slot import Slot

#: Bytes of a record in a file of records, where its text is the most of it.
RECORD_BYTES = 1000
#: Bytes of text in one token of a model.
TOKEN_BYTES = 4
#: Bytes of a short value: a type, a scope.
VALUE_BYTES = 4
_OFFSET_BYTES = 4
_NAMES = ("doc_id", "source")


@dataclass(frozen=True)
class Volume:
    """Rows on their way.

    Attributes:
        rows: their number.
        text: bytes of text in all of them.
        name: bytes of a source's name, in the mean.
    """

    rows: int
    text: int
    name: int

    @classmethod
    def of_documents(cls, inputs: Inputs) -> Volume:
        """What ``load`` gives."""
        files = int(pc.sum(pc.invert(inputs.listing["records"])).as_py() or 0)
        names = pc.mean(pc.binary_length(inputs.listing["source"])).as_py() or 0
        text = int(split_sizes(inputs.listing).sum())
        return cls(files + -(-inputs.record_bytes // RECORD_BYTES), text, round(names))

    def in_chunks(self, transform: Operator) -> Volume:
        """What an operator ``transform`` makes of documents: long ones are cut, and chunks repeat what overlaps."""
        options = transform_options(transform)
        unit = TOKEN_BYTES if options.splitter == "tokens" else 1
        size, repeated = options.size * unit, options.repeated * unit
        if options.splitter == "whole" or self.text <= size * self.rows:
            return self
        rows = -(-self.text // (size - repeated))
        return Volume(rows, self.text + (rows - self.rows) * repeated, self.name)

    def bytes(self, schema: pa.Schema) -> int:
        """Of these rows as Arrow buffers of a schema."""
        text = self.text if "text" in schema.names else 0
        return text + self.rows * sum(self._width(field) for field in schema)

    def _width(self, field: pa.Field) -> int:
        kind: Any = field.type
        if pa.types.is_struct(kind):
            return sum(_OFFSET_BYTES if child.nullable else self._width(child) for child in kind)
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size * (kind.value_type.bit_width // 8))
        try:
            return int(kind.bit_width) // 8
        except ValueError:  # of variable width
            short = self.name if field.name in _NAMES else VALUE_BYTES
            return _OFFSET_BYTES + (short if field.name != "text" else 0)


def volume_of(operator: str, operators: Mapping[str, Operator], inputs: Inputs) -> int:
    """Bytes of what an operator gives; filters and the like are taken to keep everything."""
    schema = operators[operator].output
    if schema is None:
        return 0
    volume = Volume.of_documents(inputs)
    above: str | None = operator
    while above is not None and operators[above].kind != "transform":
        above = operators[above].upstream
    return (volume if above is None else volume.in_chunks(operators[above])).bytes(schema)


def bytes_between_nodes(plan: Plan, edge: Edge, slots: Mapping[str, Sequence[Slot]]) -> int:
    """The part of an edge's bytes that leaves its node, for rows that are spread evenly over ranks and partitions.

    Args:
        plan: that the edge belongs to.
        edge: of ``plan.edges``.
        slots: by stage name, the slot of each rank.
    """
    if edge.routing == "same":
        return 0
    source, target = plan.stage_of(edge.source), plan.stage_of(edge.target)
    pairs = plan.pairs_of(edge)
    away = 0.0
    for producer, consumer in pairs:
        if slots[source.name][producer].node == slots[target.name][consumer].node:
            continue
        if edge.routing == "owner":
            away += target.owners.count(consumer) / len(target.owners) / source.ranks
        else:
            away += 1 / sum(one == producer for one, _ in pairs) / source.ranks
    return round(edge.bytes * away)
