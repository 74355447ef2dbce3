"""``aggregate``: counts, sums, least and largest values and means by key, over all rows of a run.

Sums are exact, whatever the order of the rows: a number is split into whole numbers of a known scale, these are added,
and only the total is rounded, once. So any number of ranks gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aaflow.dataplane.communicator import Communicator
from aaflow.errors import WorkflowError
from aaflow.operators.expressions import evaluate, parse, parse_call, type_of
from aaflow.operators.operator import Item

FUNCTIONS = ("count", "sum", "min", "max", "mean")
#: Rows of partial results that a rank holds before it adds them up.
HELD_ROWS = 1 << 18
#: A float is 53 bits and an exponent; a whole number 64 bits. Both are held as two numbers: ``high * 2**bits + low``,
#: so that 2**31 of them can be added in 64 bits.
_FLOAT_BITS, _INTEGER_BITS = 27, 32
#: Exponents that stand for what has none.
_NAN, _POSITIVE, _NEGATIVE = 1 << 20, (1 << 20) + 1, (1 << 20) + 2
_PARTS = ("exponent", "high", "low")


@dataclass(frozen=True)
class Measure:
    """One value of a group: a function of an expression over the rows.

    Attributes:
        name: of the column that it becomes.
        function: one of :data:`FUNCTIONS`.
        expression: text of :mod:`aaflow.operators.expressions`; None for the number of rows.
        type: of the expression; int64 for the number of rows.
    """

    name: str
    function: str
    expression: str | None
    type: pa.DataType

    @classmethod
    def of(cls, name: str, text: str, rows: pa.Schema) -> Measure:
        """What a text like ``sum(metadata.pages)`` says, over rows of a schema.

        Raises:
            ValueError: it says nothing, or the expression has a type that the function can't take.
        """
        function, expression = parse_call(text)
        if function not in FUNCTIONS:
            raise ValueError(f"{text!r}: there is no function {function!r}; use {', '.join(FUNCTIONS)}")
        if expression is None:
            if function != "count":
                raise ValueError(f"{text!r}: {function}() needs an expression, such as {function}(metadata.pages)")
            return cls(name, function, None, pa.int64())
        kind = type_of(parse(expression), rows)
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if function in ("sum", "mean") and not numeric:
            raise ValueError(f"{text!r}: {expression} is {kind}, and only numbers have a {function}")
        if function in ("min", "max") and not numeric and kind not in _ORDERED:
            raise ValueError(f"{text!r}: {expression} is {kind}, of which there is no {function}")
        return cls(name, function, expression, kind)

    @property
    def text(self) -> str:
        """The one spelling of it."""
        return f"{self.function}({self.expression or ''})"

    @property
    def output(self) -> pa.DataType:
        """The type of the values."""
        if self.function == "count":
            return pa.int64()
        if self.function == "mean":
            return pa.float64()
        if self.function == "sum":
            return pa.float64() if pa.types.is_floating(self.type) else pa.int64()
        return self.type


_ORDERED = (pa.string(), pa.date32(), pa.bool_(), *(pa.timestamp(unit, "UTC") for unit in ("s", "ms", "us", "ns")))
_KEYS = (pa.string(), pa.bool_(), pa.date32(), *_ORDERED[3:])


def aggregated_schema(rows: pa.Schema, by: Sequence[str], values: Mapping[str, str]) -> pa.Schema:
    """The schema of the groups: the key columns as they are named in ``by``, then the values.

    Raises:
        ValueError: a key or a value can't be had of these rows; a name occurs twice.
    """
    fields = []
    for key in by:
        kind = type_of(parse(key), rows)
        if not pa.types.is_integer(kind) and kind not in _KEYS:
            raise ValueError(f"rows can't be grouped by {key}, which is {kind}")
        fields.append(pa.field(key, kind))
    fields += [pa.field(m.name, m.output) for m in (Measure.of(name, text, rows) for name, text in values.items())]
    names = [field.name for field in fields]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        raise ValueError(f"two columns are named {twice[0]!r}" if twice else "it gives no column")
    return pa.schema(fields)


class Aggregate:
    """Groups the rows of all ranks; rank 0 gives the groups at the end, sorted by key, nulls last.

    Each rank adds up its own rows, the partial results go to the owner of their key, which ends them. Without rows
    there are no groups.

    Args:
        options: ``by``, expressions of the keys; ``values``, pairs of a name and a text of a :class:`Measure`.
        rows: schema of the rows that come in.
        communicator: of the ranks that aggregate together.

    Raises:
        ValueError: see :func:`aggregated_schema`.
    """

    def __init__(self, options: Mapping[str, Any], rows: pa.Schema, communicator: Communicator) -> None:
        by, values = list(options["by"]), dict(options["values"])
        self._rows = rows
        self._output = aggregated_schema(rows, by, values)
        self._communicator = communicator
        self._measures = [Measure.of(name, text, rows) for name, text in values.items()]
        # Columns have names of their own here, so that no key meets a value.
        self._keys = [f"key{number}" for number in range(len(by))]
        self._expressions = dict(zip(self._keys, map(parse, by), strict=True))
        for number, measure in enumerate(self._measures):
            if measure.expression is not None:
                self._expressions[f"value{number}"] = parse(measure.expression)

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        totals = Totals(self._keys, self._measures)
        totals.add(self._projected(pa.RecordBatch.from_pylist([], self._rows)))  # the types, where no row comes
        told: list[Item] = []
        for item in items:
            if item.notices:
                told.append(replace(item, rows=None, last=False).owned())
            if item.rows:
                totals.add(self._projected(item.rows))
        gathered = self._communicator.gather(totals.exchanged(self._communicator).groups())
        # Not before: a rank that waits here for room in an edge would keep the others above waiting for it, and who
        # reads that edge may wait for one of them.
        yield from told
        if gathered is None:
            return
        groups = pa.concat_tables(gathered)
        if self._keys:
            groups = groups.sort_by([(key, "ascending") for key in self._keys])
        for batch in groups.rename_columns(self._output.names).cast(self._output).combine_chunks().to_batches():
            yield Item(0, -1, batch)
        yield Item(0, -1, last=True)

    def _projected(self, rows: pa.RecordBatch) -> pa.Table:
        """The keys and the values of every measure, under their names here; ones where rows are counted."""
        found = evaluate(self._expressions, rows) if self._expressions else None
        columns = {name: found[name] for name in self._expressions} if found is not None else {}
        ones = pa.repeat(pa.scalar(1, pa.int64()), rows.num_rows)
        for number, measure in enumerate(self._measures):
            if measure.expression is None:
                columns[f"value{number}"] = ones
        return pa.table({_ALL: ones, **columns})


#: A key that all rows share, so that there is always one.
_ALL = "all"


class Totals:
    """Partial results by key: of every measure one column that can be added up, and the parts of exact sums.

    Args:
        keys: names of the key columns.
        measures: those whose values are ``value0``, ``value1``, ….
    """

    def __init__(self, keys: Sequence[str], measures: Sequence[Measure]) -> None:
        self._keys = [_ALL, *keys]
        self._measures = {f"value{number}": measure for number, measure in enumerate(measures)}
        # For sums and means this column counts the values; the parts of the sums are apart.
        self._steps = [
            (name, m.function if m.function in ("min", "max") else "sum") for name, m in self._measures.items()
        ]
        self._plain: list[pa.Table] = []
        self._parts: list[pa.Table] = []
        self._held = 0

    def add(self, table: pa.Table) -> None:
        """Add rows: the keys and the values of every measure."""
        columns = {key: table[key] for key in self._keys}
        parts = []
        for name, measure in self._measures.items():
            values = table[name]
            if measure.function in ("sum", "mean"):
                valid = values.is_valid()
                parts.append(_with_parts(table.select(self._keys).filter(valid), name, values.filter(valid)))
            if measure.function not in ("min", "max"):
                values = values.is_valid().cast(pa.int64())
            elif pa.types.is_floating(values.type):
                values = pc.add(values, pa.scalar(0.0, values.type))  # -0.0 becomes 0.0, whichever came first
            columns[name] = values
        self._hold([pa.table(columns)], parts)
        if self._held > HELD_ROWS:
            plain, parts, self._plain, self._parts, self._held = self._plain, self._parts, [], [], 0
            self._hold(plain, parts)
            self._held = 0

    def exchanged(self, communicator: Communicator) -> Totals:
        """The totals of the keys that this rank owns, over all ranks."""
        owned = Totals(self._keys[1:], list(self._measures.values()))
        plain = communicator.shuffle(pa.concat_tables(self._plain), self._keys)
        owned._hold([plain], [communicator.shuffle(pa.concat_tables(self._parts), self._keys)] if self._parts else [])
        return owned

    def groups(self) -> pa.Table:
        """The keys and the ended values, under their names here."""
        order = [(key, "ascending") for key in self._keys]
        plain = pa.concat_tables(self._plain).sort_by(order)
        columns = {key: plain[key] for key in self._keys[1:]}
        for name, measure in self._measures.items():
            columns[name] = plain[name]
            if measure.function in ("sum", "mean"):
                parts = pa.concat_tables(self._parts)
                mine = parts.filter(pc.equal(parts["measure"], name)).group_by(self._keys)
                lists = mine.aggregate([(part, "list") for part in _PARTS]).sort_by(order)
                columns[name] = _ended(measure, plain[name].to_numpy(), lists)
        return pa.table(columns)

    def _hold(self, plain: Sequence[pa.Table], parts: Sequence[pa.Table]) -> None:
        """Keep the sums of these tables."""
        self._plain.append(_summed(pa.concat_tables(plain), self._keys, self._steps))
        self._held += self._plain[-1].num_rows
        if parts:
            keys, steps = [*self._keys, "measure", "exponent"], [("high", "sum"), ("low", "sum")]
            self._parts.append(_summed(pa.concat_tables(parts), keys, steps))
            self._held += self._parts[-1].num_rows


def _summed(table: pa.Table, keys: Sequence[str], steps: Sequence[tuple[str, str]]) -> pa.Table:
    summed = table.group_by(list(keys)).aggregate(list(steps))
    names = [*keys, *(name for name, _ in steps)]
    return summed.select([*keys, *(f"{name}_{step}" for name, step in steps)]).rename_columns(names)


def _with_parts(keys: pa.Table, measure: str, values: pa.ChunkedArray) -> pa.Table:
    """Numbers without nulls as ``high * 2**bits + low``; floats times two to the power of ``exponent`` - 53."""
    if pa.types.is_floating(values.type):
        numbers = values.cast(pa.float64()).to_numpy()
        finite = np.isfinite(numbers)
        fraction, exponent = np.frexp(np.where(finite, numbers, 0.0))
        whole = np.ldexp(fraction, 53).astype(np.int64)
        high, low = whole >> _FLOAT_BITS, whole & ((1 << _FLOAT_BITS) - 1)
        special = np.where(np.isnan(numbers), _NAN, np.where(numbers > 0, _POSITIVE, _NEGATIVE))
        exponent = np.where(finite, exponent, special)
    else:
        whole = values.cast(pa.int64()).to_numpy()
        high, low = whole >> _INTEGER_BITS, whole & ((1 << _INTEGER_BITS) - 1)
        exponent = np.zeros(len(whole))
    columns = {name: keys[name] for name in keys.column_names}
    columns |= {"measure": pa.repeat(measure, keys.num_rows), "exponent": pa.array(exponent.astype(np.int32))}
    return pa.table({**columns, "high": pa.array(high), "low": pa.array(low)})


def _ended(measure: Measure, counts: npt.NDArray[np.int64], parts: pa.Table) -> pa.Array:
    """The sums or means of groups; null where a group has no value.

    Args:
        measure: which one.
        counts: values of each group, int64 [groups].
        parts: lists of parts, of every group that has values.
    """
    totals = iter(zip(*(parts[f"{name}_list"].to_pylist() for name in _PARTS), strict=True))
    floating = pa.types.is_floating(measure.type)
    ended: list[float | int | None] = []
    for count in counts.tolist():
        if not count:
            ended.append(None)
        elif floating:
            exponents, highs, lows = next(totals)
            ended.append(_float_total(exponents, highs, lows, count if measure.function == "mean" else 1))
        else:
            _, highs, lows = next(totals)
            total = (sum(highs) << _INTEGER_BITS) + sum(lows)
            ended.append(total / count if measure.function == "mean" else total)
    try:
        return pa.array(ended, measure.output)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise WorkflowError(f"{measure.text}, column {measure.name!r}, is more than 64 bits hold") from error


def _float_total(exponents: list[int], highs: list[int], lows: list[int], count: int) -> float:
    """The sum of the parts, divided by ``count`` and rounded once."""
    special = set(exponents) & {_NAN, _POSITIVE, _NEGATIVE}
    if special:
        return math.inf if special == {_POSITIVE} else -math.inf if special == {_NEGATIVE} else math.nan
    least = min(exponents)
    total = sum(
        ((high << _FLOAT_BITS) + low) << (e - least) for e, high, low in zip(exponents, highs, lows, strict=True)
    )
    power = least - 53
    try:
        return (total << power) / count if power >= 0 else total / (count << -power)
    except OverflowError:
        return math.inf if total > 0 else -math.inf
