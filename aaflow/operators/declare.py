"""The declarations of the relational operators: what is asked of the rows that come in, what goes out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aaflow import schema
from aaflow.errors import InputError, WorkflowError
from aaflow.operators import deduplicate, expressions
from aaflow.operators.aggregate import Measure, aggregated_schema
from aaflow.operators.operator import Domain, Operator, Pattern
from aaflow.operators.relational import joined_schema
from aaflow.operators.tablefile import describe_join_table


def declare_filter(name: str, rows: pa.Schema, where: str | pc.Expression) -> Operator:
    """See :meth:`aaflow.workflow.Stream.filter`."""
    try:
        options = {"where": expressions.canonical(where)} if isinstance(where, str) else _substrait(where, rows)
        kind = expressions.type_of(expressions.parse(where) if isinstance(where, str) else where, rows)
    except ValueError as error:
        raise WorkflowError(f"operator {name!r}: {error}") from error
    if kind != pa.bool_():
        raise WorkflowError(f"operator {name!r}: {where} is {kind}, and rows are kept where something is true (bool)")
    return _operator(name, "filter", "relational:Filter", rows, rows, Pattern.EMBARRASSINGLY_PARALLEL, options)


def declare_join(
    name: str, rows: pa.Schema, table: str | Path, on: str, key: str | None, columns: Sequence[str] | None
) -> Operator:
    """See :meth:`aaflow.workflow.Stream.join`."""
    path = Path(table).expanduser().absolute()
    try:
        kind = rows.field("metadata").type if "metadata" in rows.names else pa.null()
        if not pa.types.is_struct(kind):
            raise ValueError("it adds to the column 'metadata' of documents or chunks, which these rows lack")
        met = schema.metadata_type_name(expressions.type_of(expressions.parse(on), rows))
        if met is None:
            raise ValueError(f"rows can't be found by {on}: only texts, numbers, dates and times are keys")
        found = key or on.rpartition(".")[2]
        options = describe_join_table(path, found, met, schema.metadata_fields(kind), columns)
    except (ValueError, InputError) as error:
        raise WorkflowError(f"operator {name!r}: {error}") from error
    options["on"] = expressions.canonical(on)
    output = joined_schema(rows, options["fields"])
    return _operator(name, "join", "relational:Join", rows, output, Pattern.EXCHANGE, options)


def declare_deduplicate(name: str, rows: pa.Schema) -> Operator:
    """See :meth:`aaflow.workflow.Stream.deduplicate`."""
    missing = deduplicate.columns_missing(rows.names)
    if missing:
        raise WorkflowError(
            f"operator {name!r} takes documents or chunks; these rows lack the column {missing[0]!r}, and have "
            f"{', '.join(rows.names)}"
        )
    return _operator(name, "deduplicate", "deduplicate:Deduplicate", rows, rows, Pattern.SHUFFLE_COMPUTE, {})


def declare_aggregate(name: str, rows: pa.Schema, by: Sequence[str], values: Mapping[str, str]) -> Operator:
    """See :meth:`aaflow.workflow.Stream.aggregate`."""
    try:
        keys = [expressions.canonical(key) for key in ([by] if isinstance(by, str) else by)]
        texts = [[column, Measure.of(column, text, rows).text] for column, text in values.items()]
        output = aggregated_schema(rows, keys, values)
    except ValueError as error:
        raise WorkflowError(f"operator {name!r}: {error}") from error
    options = {"by": keys, "values": texts}
    return _operator(name, "aggregate", "aggregate:Aggregate", rows, output, Pattern.REDUCE, options)


def described(operator: Operator) -> str:
    """What a relational operator does to the rows of an index, as an index records it: the same text, the same rows."""
    rows = "chunks" if operator.input is not None and "ordinal" in operator.input.names else "documents"
    options = operator.options
    if operator.kind == "filter":
        return f"{rows} where {options.get('where') or options['text']}"
    if operator.kind == "join":
        table = f"{', '.join(options['fields'])} of a table of SHA-256 {options['digest']}"
        return f"{rows} joined on {options['on']} = {options['key']} with {table}"
    return f"{rows} deduplicated"


def _substrait(where: pc.Expression, rows: pa.Schema) -> dict[str, Any]:
    """An expression of pyarrow as JSON, and as a text that tells it from others.

    Raises:
        ValueError: it has a function that Substrait doesn't know.
    """
    if not isinstance(where, pc.Expression):
        raise ValueError(f"an expression is a text or a pyarrow.compute.Expression, not {type(where).__name__}")
    expressions.type_of(where, rows)
    try:
        data = bytes(where.to_substrait(rows))
    except pa.ArrowException as error:
        raise ValueError(f"{where} can't be written to a plan ({error}); give it as a text") from error
    text = f"{where} (Substrait of SHA-256 {hashlib.sha256(data).hexdigest()})"
    return {"substrait": base64.b64encode(data).decode(), "text": text}


def _operator(
    name: str, kind: str, function: str, rows: pa.Schema, output: pa.Schema, pattern: Pattern, options: dict[str, Any]
) -> Operator:
    return Operator(
        name=name,
        kind=kind,
        function=f"aaflow.operators.{function}",
        input=rows,
        output=output,
        pattern=pattern,
        domain=Domain.AGGREGATION if kind == "aggregate" else Domain.CPU_PARTITION,
        options=options,
    )
