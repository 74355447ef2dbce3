"""Texts that say which rows are meant: what they mean, and what is refused."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.operators.expressions import canonical, evaluate, parse, parse_call, type_of

METADATA = schema.metadata_type(
    {"year": "int64", "day": "date", "at": "timestamp", "draft": "bool", "two words": "string"}
)
ROWS = pa.schema([("source", pa.string()), ("n", pa.int64()), ("metadata", METADATA)])
NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone.utc)
BATCH = pa.RecordBatch.from_pylist(
    [
        {
            "source": "a/é.md",
            "n": 1,
            "metadata": {"year": 2000, "day": datetime.date(2024, 5, 1), "at": NOON, "draft": True},
        },
        {"source": "B.html", "n": 2, "metadata": {"title": "T", "two words": "x"}},
        {"source": "c.txt", "n": 3, "metadata": {"title": "", "year": 1999, "draft": False}},
    ],
    ROWS,
)


def chosen(text: str) -> list[int]:
    values = evaluate({"v": parse(text)}, BATCH)["v"].to_pylist()
    return [n for n, value in zip([1, 2, 3], values, strict=True) if value]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("n == 2", [2]),
        ("n != 2", [1, 3]),
        ("1 < n <= 3", [2, 3]),
        ("n in (1, 3)", [1, 3]),
        ("n not in [1, 3]", [2]),
        ("n > -1 and not (n == 2 or n == 3)", [1]),
        ("metadata.year >= 2000", [1]),
        ("metadata.year != 2000", [3]),
        ("metadata.year not in (2000,)", [3]),
        ("not metadata.year in (2000,)", [3]),
        ("metadata.year is None", [2]),
        ("metadata.title is not None", [2, 3]),
        ("metadata.draft", [1]),
        ("not metadata.draft", [3]),
        ("metadata.draft == False", [3]),
        ("metadata.day == date('2024-05-01')", [1]),
        ("metadata.at >= timestamp('2024-05-01T12:00:00Z')", [1]),
        ("metadata.at >= timestamp('2024-05-01T12:00:00')", [1]),
        ("metadata.day in (date('2024-05-01'), date('2024-05-02'))", [1]),
        ("contains(source, '.')", [1, 2, 3]),
        ("starts_with(source, 'a/') or ends_with(lower(source), '.html')", [1, 2]),
        ("length(source) == 6", [1, 2]),
        ("field('metadata', 'two words') == 'x'", [2]),
        ("metadata.year == 1999.0", [3]),
    ],
)  # fmt: skip
def test_what_a_text_means(text: str, rows: list[int]) -> None:
    assert chosen(text) == rows
    assert type_of(parse(text), ROWS) == pa.bool_()
    assert chosen(canonical(text)) == rows
    assert canonical(canonical(text)) == canonical(text)


def test_spelling_does_not_matter() -> None:
    assert canonical(" ( n==1 )and  source in ( 'a' ,) ") == canonical('n == 1 and source in ("a",)')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("n = 2", "compare with =="),
        ("", "no expression"),
        ("n ==", "no expression"),
        ("(", "no expression"),
        ("n\0", "null bytes"),
        ("not " * 5000 + "n", "nested"),
        ("n == None", "is None"),
        ("n is 1", "'is' and 'is not' take None"),
        ("source in 'abc'", "list of values"),
        ("source in ()", "list of values"),
        ("n in (1, m)", "'m' can't stand"),
        ("n + 1 == 2", "can't stand in an expression"),
        ("__import__('os')", "no function '__import__'"),
        ("source.upper()", "no function 'source.upper'"),
        ("contains(source)", "too few or too many"),
        ("contains(source, source)", "text in quotes"),
        ("date('yesterday') < metadata.day", "yesterday"),
        ("n == 99999999999999999999", "64 bits"),
        ("[n for n in source]", "can't stand"),
        ("n == -'a'", "can't stand"),
        ("lambda: n", "can't stand"),
        ("n if n else n", "can't stand"),
        ("f'{n}'", "can't stand"),
        ("field()", "too few"),
    ],
)
def test_what_is_no_expression(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + why.replace("(", r"\(")):
        parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("missing == 1", "there is no column missing; the columns are source .string., n .int64., metadata.at"),
        ("metadata.yeer == 1", "there is no column metadata.yeer"),
        ("source == 1", "equal.*string"),
        ("metadata == 1", "equal"),
        ("starts_with(n, 'a')", "starts_with"),
        ("n in ('a',)", "int64.*string|string.*int64"),
    ],
)
def test_what_does_not_fit_the_rows(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        type_of(parse(text), ROWS)


@given(st.text(max_size=40))
def test_no_text_does_anything_but_mean_something_or_be_refused(text: str) -> None:
    try:
        once = canonical(text)
    except ValueError:
        return
    assert canonical(once) == once


def model(row: dict[str, Any], tree: Any) -> Any:
    """Python's own three-valued logic of a tree."""
    kind, *parts = tree
    if kind in ("and", "or"):
        sides = [model(row, part) for part in parts]
        decisive = kind == "or"
        return decisive if decisive in sides else None if None in sides else not decisive
    if kind == "not":
        inner = model(row, parts[0])
        return None if inner is None else not inner
    name, operator, value = parts
    if operator == "is None":
        return row[name] is None
    if row[name] is None:
        return None
    return {"==": row[name] == value, "<": row[name] < value, "in": row[name] in (value, 7)}[operator]


def text_of(tree: Any) -> str:
    kind, *parts = tree
    if kind in ("and", "or"):
        return f" {kind} ".join(f"({text_of(part)})" for part in parts)
    if kind == "not":
        return f"not ({text_of(parts[0])})"
    name, operator, value = parts
    return f"{name} {operator}" + {"is None": "", "in": f" ({value}, 7)"}.get(operator, f" {value}")


leaf = st.tuples(
    st.just("leaf"), st.sampled_from("ab"), st.sampled_from(["==", "<", "in", "is None"]), st.integers(0, 9)
)
trees = st.recursive(
    leaf,
    lambda inner: st.one_of(st.tuples(st.sampled_from(["and", "or"]), inner, inner), st.tuples(st.just("not"), inner)),
    max_leaves=6,
)
numbers = st.none() | st.integers(0, 9)


@given(trees, st.lists(st.fixed_dictionaries({"a": numbers, "b": numbers}), min_size=1, max_size=6))
def test_logic_is_that_of_three_values(tree: Any, rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, pa.schema([("a", pa.int64()), ("b", pa.int64())]))
    assert evaluate({"v": parse(text_of(tree))}, batch)["v"].to_pylist() == [model(row, tree) for row in rows]


def test_calls() -> None:
    assert parse_call("sum( metadata.year )") == ("sum", "metadata.year")
    assert parse_call("count()") == ("count", None)
    for text in ("sum", "sum(a, b)", "sum(x=1)", "a.sum(b)", "sum(=)"):
        with pytest.raises(ValueError, match=r"no call|no expression"):
            parse_call(text)
