"""``filter`` and ``join``: rows leave by an expression, and get metadata from a table by key."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow import schema
from aaflow.dataplane.communicator import Communicator
from aaflow.errors import DependencyError
from aaflow.hashing import sha256
from aaflow.operators.expressions import evaluate, parse
from aaflow.operators.operator import Item
from aaflow.operators.tablefile import read_join_table


class Filter:
    """Keeps the rows for which an expression is true; where it is false or null they leave without a notice.

    Args:
        options: ``where``, a text of :mod:`aaflow.operators.expressions`; or ``substrait``, an expression of pyarrow
            as Substrait in base64, bound to the schema of the rows.

    Raises:
        DependencyError: this pyarrow can't read Substrait.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        if "substrait" in options:
            if not hasattr(pc.Expression, "from_substrait"):
                raise DependencyError(
                    f"filter: an expression of pyarrow needs a newer one than {pa.__version__} of {sys.executable}; "
                    "upgrade it, or give the expression as a text"
                )
            self._where = pc.Expression.from_substrait(base64.b64decode(options["substrait"]))
        else:
            self._where = parse(options["where"])

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        for item in items:
            if item.rows is None or not item.rows.num_rows:
                yield item
                continue
            yield replace(item, rows=item.rows.filter(evaluate({"mask": self._where}, item.rows)["mask"]))


class Join:
    """Adds columns of a table to the ``metadata`` of the rows whose key it has; a left join.

    A field that rows have already takes the table's value where there is one and keeps its own elsewhere. Rank 0 reads
    the table, the others get it from there.

    Args:
        options: ``on`` (column of the rows), and those of :func:`aaflow.operators.tablefile.describe_join_table`.
        rows: schema of the rows that come in.
        communicator: of the ranks that join.

    Raises:
        InputError: the table is not the one of the plan.
    """

    def __init__(self, options: Mapping[str, Any], rows: pa.Schema, communicator: Communicator) -> None:
        self._on = parse(options["on"]).cast(schema.METADATA_TYPES[options["key_type"]])
        self._fields = dict(options["fields"])
        self._output = joined_schema(rows, self._fields)
        table = read_join_table(options) if communicator.rank == 0 else None
        joined = communicator.broadcast(table)
        self._columns = {name: _array(joined[name]) for name in joined.column_names}
        self._keys = Keys(self._columns["key"])

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        for item in items:
            yield replace(item, rows=self._joined(item.rows) if item.rows else None)

    def _joined(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        where = self._keys.find(evaluate({"key": self._on}, rows)["key"])
        at = self._output.get_field_index("metadata")
        kind, own = self._output.field(at).type, rows.column(at)
        children = []
        for field in kind:
            known = own.type.get_field_index(field.name) >= 0
            child = pc.struct_field(own, [own.type.get_field_index(field.name)]) if known else None
            if field.name in self._fields:
                found = self._columns[f"metadata.{field.name}"].take(where).cast(field.type)
                child = found if child is None else pc.coalesce(found, child)
            children.append(child)
        columns = [*rows.columns[:at], pa.StructArray.from_arrays(children, fields=list(kind)), *rows.columns[at + 1 :]]
        return pa.RecordBatch.from_arrays(columns, schema=self._output)


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays([pa.array([], column.type), *column.chunks])


def joined_schema(rows: pa.Schema, fields: Mapping[str, str]) -> pa.Schema:
    """The schema of rows whose ``metadata`` got ``fields``."""
    at = rows.get_field_index("metadata")
    kind = schema.metadata_type({**schema.metadata_fields(rows.field(at).type), **fields})
    return rows.set(at, rows.field(at).with_type(kind))


class Keys:
    """Where each key of a table lies: keys are looked up by their SHA-256, sorted by one of its words.

    Args:
        keys: distinct ones; a null is never found.
    """

    def __init__(self, keys: pa.Array) -> None:
        places = np.flatnonzero(np.asarray(keys.is_valid()))
        digests = _digests(keys.take(pa.array(places)))
        for word in range(4):  # the first is enough, unless two keys share it
            order = np.argsort(digests[:, word], kind="stable")
            ordered = digests[order]
            if not (ordered[1:, word] == ordered[:-1, word]).any():
                break
        self._word, self._digests, self._places = word, ordered, places[order]

    def find(self, asked: pa.Array) -> pa.Int64Array:
        """The row of each key; null where there is none, int64 [asked]."""
        if not len(self._places):
            return pa.nulls(len(asked), pa.int64())
        digests = _digests(asked)
        at = np.searchsorted(self._digests[:, self._word], digests[:, self._word])
        at = np.minimum(at, len(self._places) - 1)
        found = (self._digests[at] == digests).all(axis=1) & np.asarray(asked.is_valid())
        return pa.array(self._places[at], pa.int64(), mask=~found)


def _digests(keys: pa.Array) -> npt.NDArray[np.uint64]:
    data = np.frombuffer(sha256(keys).buffers()[1], np.uint64)
    return data.reshape(-1, 4)
