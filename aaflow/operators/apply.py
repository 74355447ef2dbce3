"""The user's own operator: a function on record batches, found by its import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from aaflow.errors import WorkflowError
from aaflow.operators.operator import Item


def import_function(path: str) -> Callable[..., Any]:
    """What ``module:name`` names.

    Raises:
        ImportError: the module can't be imported.
        AttributeError: it has no such name.
    """
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


class Apply:
    """Calls a function on the rows of every item.

    Args:
        name: of the operator, for errors.
        path: ``module:name`` of the function.
        options: keywords it is called with.
        output: schema that it promised.
        whole_units: whether it gets all rows of a (tranche, partition) at once, as after a shuffle.
    """

    def __init__(
        self, name: str, path: str, options: Mapping[str, Any], output: pa.Schema, *, whole_units: bool
    ) -> None:
        self._name = name
        self._function = import_function(path)
        self._options = dict(options)
        self._output = output
        self._whole_units = whole_units

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        held: list[pa.RecordBatch] = []
        for item in items:
            if self._whole_units and item.partition >= 0:
                own = item.owned()
                if own.rows is not None:
                    held.append(own.rows)
                if not item.last:
                    if own.notices is not None:
                        yield replace(own, rows=None)
                    continue
                table = pa.Table.from_batches(held, held[0].schema) if held else None
                held = []
                rows = table.combine_chunks().to_batches()[0] if table is not None and table.num_rows else None
            else:
                rows = item.rows
            yield replace(item, rows=self._call(rows) if rows is not None else None)

    def _call(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        result = self._function(rows, **self._options)
        if not isinstance(result, pa.RecordBatch):
            raise WorkflowError(f"operator {self._name!r} gave {type(result).__name__}, not a pyarrow.RecordBatch")
        try:
            return pa.RecordBatch.from_arrays([_column(result, field) for field in self._output], schema=self._output)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
            raise WorkflowError(
                f"operator {self._name!r} promised the columns {_columns(self._output)} "
                f"and gave {_columns(result.schema)}: {error}"
            ) from error


def _column(rows: pa.RecordBatch, field: pa.Field) -> pa.Array:
    at = rows.schema.get_field_index(field.name)
    if at < 0:
        raise ValueError(f"column {field.name!r} is missing, or there are several")
    column = rows.column(at).cast(field.type)
    if column.null_count and not field.nullable:
        raise ValueError(f"column {field.name!r} has {column.null_count} null(s), which it must not have")
    return column


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
