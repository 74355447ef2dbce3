"""Expressions over columns as text: a subset of Python's, read by Python's own parser and never run by Python.

    metadata.year >= 2000 and source_type in ("html", "md")
    not starts_with(source, "drafts/") and metadata.title is not None
    date("2024-01-01") <= metadata.published < date("2025-01-01")

================= ==========================================================================================
columns           ``source``, ``metadata.title``; ``field("metadata", "any name")`` for other names
literals          numbers, strings, ``True``, ``False``, ``date("2024-01-31")``, ``timestamp("2024-01-31T12:00Z")``
comparisons       ``== != < <= > >=``, also chained; ``in (…)``, ``not in (…)``; ``is None``, ``is not None``
logic             ``and``, ``or``, ``not``, parentheses
functions         ``contains(x, "text")``, ``starts_with(x, "text")``, ``ends_with(x, "text")``, ``lower(x)``,
                  ``length(x)`` (in characters)
================= ==========================================================================================

As in SQL a comparison with null is null, neither true nor false: say ``metadata.year is None or …`` where it matters.
"""

from __future__ import annotations

import ast
import datetime
import functools
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_SEARCHES = {"contains": pc.match_substring, "starts_with": pc.starts_with, "ends_with": pc.ends_with}
_FUNCTIONS = {"lower": pc.utf8_lower, "length": pc.utf8_length}
_LITERALS = {"date": datetime.date.fromisoformat, "timestamp": datetime.datetime.fromisoformat}
_CALLS = ("field", *_LITERALS, *_SEARCHES, *_FUNCTIONS)


def parse(text: str) -> pc.Expression:
    """The expression that a text stands for.

    Raises:
        ValueError: it is none; says where and what can stand there.
    """
    try:
        return _expression(_tree(text), text)
    except RecursionError as error:
        raise ValueError(f"{text[:80]!r} is no expression: it is nested too deeply") from error


def canonical(text: str) -> str:
    """The one spelling of an expression: spaces, quotes and needless parentheses say nothing.

    Raises:
        ValueError: it is none.
    """
    parse(text)
    return ast.unparse(_tree(text))


def parse_call(text: str) -> tuple[str, str | None]:
    """The function and the argument of a text like ``sum(metadata.pages)``; None for no argument.

    Raises:
        ValueError: it is another kind of text, or its argument is no expression.
    """
    node = _tree(text)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords or len(node.args) > 1:
        raise ValueError(f"{text!r} is no call of a function with one expression, such as sum(metadata.pages)")
    return node.func.id, canonical(ast.unparse(node.args[0])) if node.args else None


def type_of(expression: pc.Expression, schema: pa.Schema) -> pa.DataType:
    """The type that an expression has over rows of a schema.

    Raises:
        ValueError: it names a column that isn't there, or has types that don't meet.
    """
    try:
        rows = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
        return evaluate({"value": expression}, rows).schema.field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{_why(error)}; the columns are {', '.join(column_names(schema))}") from error


def column_names(schema: Iterable[pa.Field], prefix: str = "") -> list[str]:
    """Every column of a schema with its type, fields of structs by their dotted names."""
    names = []
    for field in schema:
        if pa.types.is_struct(field.type):
            names += column_names(field.type, f"{prefix}{field.name}.")
        else:
            names.append(f"{prefix}{field.name} ({field.type})")
    return names


def evaluate(expressions: Mapping[str, pc.Expression], rows: pa.RecordBatch) -> pa.RecordBatch:
    """The values of expressions over rows, a column for each, in the order of the rows."""
    scanner = ds.Scanner.from_batches(iter([rows]), schema=rows.schema, columns=dict(expressions), use_threads=False)
    table = scanner.to_table()
    columns = [pa.concat_arrays([pa.array([], column.type), *column.chunks]) for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def _why(error: pa.ArrowException) -> str:
    """What Arrow says, in the words of an expression."""
    line = str(error).splitlines()[0]
    missing = re.match(r"No match for (.*) in ", line)
    return f"there is no column {'.'.join(re.findall(r'Name[(](.*?)[)]', missing[1]))}" if missing else line


def _tree(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        hint = "; compare with ==" if re.search(r"(?<![=!<>])=(?!=)", text) else ""
        raise ValueError(f"{text!r} is no expression: {error.msg} at character {error.offset}{hint}") from error
    except ValueError as error:
        raise ValueError(f"{text[:80]!r} is no expression: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} is no expression: it is nested too deeply") from error


def _expression(node: ast.expr, text: str) -> Any:
    """What a node stands for: an expression, or the value of a literal."""
    convert = functools.partial(_expression, text=text)
    if isinstance(node, (ast.Name, ast.Attribute)):
        return pc.field(_path(node, text))
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, bool, int, float)):
        return pc.scalar(_scalar(node.value, text))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~convert(node.operand)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return pc.scalar(_literal(node, text))
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        return functools.reduce(join, map(convert, node.values))
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:])  # noqa: B905 - one less at the end
        return functools.reduce(operator.and_, (_comparison(left, op, right, text) for left, op, right in pairs))
    if isinstance(node, ast.Call):
        return _call(node, text)
    raise ValueError(_refused(node, text))


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> pc.Expression:
    value = _expression(left, text)
    if isinstance(op, (ast.Is, ast.IsNot)):
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise ValueError(f"{text!r}: 'is' and 'is not' take None; compare values with == and !=")
        return value.is_null() if isinstance(op, ast.Is) else value.is_valid()
    if isinstance(op, (ast.In, ast.NotIn)):
        if not isinstance(right, (ast.Tuple, ast.List)) or not right.elts:
            raise ValueError(f"{text!r}: 'in' takes a list of values, such as (1, 2) or ('a',)")
        values = pa.array([_literal(element, text) for element in right.elts])
        # is_in() is false for null, and its negation would be true.
        found = pc.if_else(value.is_valid(), value.isin(values), pc.scalar(pa.scalar(None, pa.bool_())))
        return found if isinstance(op, ast.In) else ~found
    if isinstance(right, ast.Constant) and right.value is None:
        raise ValueError(f"{text!r}: nothing equals None; say 'is None' or 'is not None'")
    return _COMPARISONS[type(op)](value, _expression(right, text))


def _call(node: ast.Call, text: str) -> pc.Expression:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    if name not in _CALLS or node.keywords:
        raise ValueError(f"{text!r}: there is no function {name!r}; use {', '.join(_CALLS)}")
    if name == "field":
        return pc.field(tuple(_text_of(argument, name, text) for argument in node.args) or _wrong(name, text))
    if name in _LITERALS:
        return pc.scalar(_literal(node, text))
    if len(node.args) != (2 if name in _SEARCHES else 1):
        _wrong(name, text)
    value = _expression(node.args[0], text)
    if name in _SEARCHES:
        return _SEARCHES[name](value, _text_of(node.args[1], name, text))
    return _FUNCTIONS[name](value)


def _path(node: ast.expr, text: str) -> tuple[str, ...]:
    if isinstance(node, ast.Attribute):
        return (*_path(node.value, text), node.attr)
    if isinstance(node, ast.Name):
        return (node.id,)
    raise ValueError(_refused(node, text))


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, bool, int, float)):
        return _scalar(node.value, text)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = node.operand.value if isinstance(node.operand, ast.Constant) else None
        if type(number) in (int, float):
            return _scalar(-number, text)  # type: ignore[operator]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _LITERALS:
        name = node.func.id
        value = _text_of(node.args[0], name, text) if len(node.args) == 1 else _wrong(name, text)
        try:
            # Python 3.10 doesn't know the Z of UTC.
            moment = _LITERALS[name](value[:-1] + "+00:00" if name == "timestamp" and value.endswith("Z") else value)
        except ValueError as error:
            raise ValueError(f"{text!r}: {name}({value!r}): {error}") from error
        if isinstance(moment, datetime.datetime):
            moment = moment.replace(tzinfo=moment.tzinfo or datetime.timezone.utc)
        return moment
    raise ValueError(f"{_refused(node, text)} in place of a value")


def _scalar(value: Any, text: str) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{text!r}: {value} does not fit 64 bits")
    return value


def _text_of(node: ast.expr, function: str, text: str) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError(f"{text!r}: {function}() takes a text in quotes, not {ast.unparse(node)}")


def _wrong(function: str, text: str) -> Any:
    raise ValueError(f"{text!r}: {function}() is called with too few or too many arguments")


def _refused(node: ast.expr, text: str) -> str:
    return f"{text!r}: {ast.unparse(node)!r} can't stand in an expression"
