"""``aggregate`` against plain Python and exact fractions, for any number of ranks."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.dataplane.communicator import Communicator, SerialCommunicator
from aaflow.errors import WorkflowError
from aaflow.operators import aggregate
from aaflow.operators.aggregate import Aggregate, aggregated_schema
from aaflow.operators.operator import Item
from aaflow.workflow import Workflow

ROWS = pa.schema([("k", pa.string()), ("b", pa.bool_()), ("n", pa.int64()), ("x", pa.float64())])
VALUES = {
    "rows": "count()",
    "numbers": "count(n)",
    "n": "sum(n)",
    "average": "mean(n)",
    "x": "sum(x)",
    "middle": "mean(x)",
    "least": "min(x)",
    "most": "max(n)",
}
Row = tuple[Any, Any, Any, Any]


def batch(rows: Sequence[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(ROWS.names, row, strict=True)) for row in rows], ROWS)


def run(
    communicator: Communicator, batches: Sequence[Sequence[Row]], by: Sequence[str], values: Any = None
) -> list[Any]:
    options = {"by": list(by), "values": [list(pair) for pair in (values or VALUES).items()]}
    items = Aggregate(options, ROWS, communicator)(Item(n, 0, batch(rows)) for n, rows in enumerate(batches))
    return [row for item in items if item.rows is not None for row in item.rows.to_pylist()]


def model(rows: Sequence[Row], by: Sequence[int]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[at] for at in by), []).append(row)
    table = []
    for key in sorted(groups, key=lambda values: [(value is None, value) for value in values]):
        numbers = [row[2] for row in groups[key] if row[2] is not None]
        floats = [row[3] for row in groups[key] if row[3] is not None]
        exact = sum(map(Fraction, floats), Fraction(0))
        table.append(
            {
                **{ROWS.names[at]: value for at, value in zip(by, key, strict=True)},
                "rows": len(groups[key]),
                "numbers": len(numbers),
                "n": sum(numbers) if numbers else None,
                "average": sum(numbers) / len(numbers) if numbers else None,
                "x": float(exact) if floats else None,
                "middle": float(exact / len(floats)) if floats else None,
                "least": min(floats) if floats else None,
                "most": max(numbers) if numbers else None,
            }
        )
    return table


rows = st.lists(
    st.tuples(
        st.none() | st.sampled_from("abc"),
        st.none() | st.booleans(),
        st.none() | st.integers(-(2**40), 2**40),
        st.none() | st.floats(-1e300, 1e300, allow_nan=False),
    ),
    max_size=15,
)


@given(rows, st.integers(1, 3), st.sampled_from([[0], [1, 0], []]), st.sampled_from([1, 1 << 18]), st.data())
def test_groups_are_those_of_exact_arithmetic_on_any_ranks(
    on_ranks: Any, rows: list[Row], ranks: int, by: list[int], held: int, data: Any
) -> None:
    dealt = data.draw(st.lists(st.integers(0, ranks - 1), min_size=len(rows), max_size=len(rows)))
    size = data.draw(st.integers(1, 5))
    names = [ROWS.names[at] for at in by]
    values = {name: text for name, text in VALUES.items() if name not in names}

    def work(communicator: Communicator) -> list[Any]:
        mine = [row for row, rank in zip(rows, dealt, strict=True) if rank == communicator.rank]
        return run(communicator, [mine[at : at + size] for at in range(0, len(mine), size)], names, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregate, "HELD_ROWS", held)
        first, *others = on_ranks(ranks, work)
    assert first == model(rows, by)
    assert others == [[]] * (ranks - 1)


def test_sums_do_not_depend_on_order() -> None:
    drawn = random.Random(7)
    numbers = [drawn.uniform(-1, 1) * 10.0 ** drawn.randint(-200, 200) for _ in range(500)]
    values = {"s": "sum(x)", "m": "mean(x)"}
    expected = {"k": "a", "s": math.fsum(numbers), "m": float(sum(map(Fraction, numbers)) / 500)}
    for _ in range(3):
        drawn.shuffle(numbers)
        batches = [[("a", None, None, x) for x in part] for part in (numbers[:100], numbers[100:])]
        assert run(SerialCommunicator(), batches, ["k"], values) == [expected]


@pytest.mark.parametrize(
    ("numbers", "total"),
    [
        ([1e308, 1e308], math.inf),
        ([-1e308, -1e308, 1.0], -math.inf),
        ([math.inf, 1.0], math.inf),
        ([-math.inf, 1.0], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1.0], math.nan),
        ([5e-324, 5e-324], 1e-323),
        ([1e308, 1e308, -1e308], 1e308),
        ([0.1] * 10, 1.0),
    ],
)
def test_sums_at_the_ends_of_floats(numbers: list[float], total: float) -> None:
    (row,) = run(SerialCommunicator(), [[("a", None, None, x) for x in numbers]], ["k"], {"s": "sum(x)"})
    assert row["s"] == total or (math.isnan(total) and math.isnan(row["s"]))


def test_a_sum_that_64_bits_do_not_hold_is_an_error() -> None:
    many = [[("a", None, 2**62, None)] * 2]
    with pytest.raises(WorkflowError, match=r"sum\(n\), column 's', is more than 64 bits hold"):
        run(SerialCommunicator(), many, ["k"], {"s": "sum(n)"})
    assert run(SerialCommunicator(), many, ["k"], {"m": "mean(n)"}) == [{"k": "a", "m": 2.0**62}]


def test_keys_and_values_may_be_expressions_and_keys_alone_are_distinct_values() -> None:
    given = [[("A", None, 1, None), ("a", None, 2, None), ("b", None, 3, None)]]
    assert run(SerialCommunicator(), given, ["lower(k)"], {"most": "max(length(k))"}) == [
        {"lower(k)": "a", "most": 1},
        {"lower(k)": "b", "most": 1},
    ]
    options = {"by": ["k"], "values": []}
    items = list(Aggregate(options, ROWS, SerialCommunicator())(iter([Item(0, 0, batch(given[0]))])))
    assert [item.rows.to_pylist() for item in items if item.rows] == [[{"k": "A"}, {"k": "a"}, {"k": "b"}]]


def test_nothing_is_given_before_all_ranks_have_met(on_ranks: Any) -> None:
    """Or a rank that waits for room in an edge keeps those waiting that the edge's reader waits for."""
    notice = pa.RecordBatch.from_pylist(
        [{"kind": "kept", "doc_id": "x", "partition": 0, "source": "x", "record": 0, "reason": ""}], schema.NOTICES
    )
    met = threading.Barrier(2, timeout=5)

    def work(group: Communicator) -> int:
        items = iter([Item(0, 0, notices=notice)] * 3 if group.rank else [])
        given = Aggregate({"by": ["k"], "values": []}, ROWS, group)(items)
        first = next(given, None)
        met.wait()
        return sum(bool(item.notices) for item in (first, *given) if item)

    assert on_ranks(2, work) == [0, 3]


def test_notices_pass() -> None:
    notice = pa.RecordBatch.from_pylist(
        [{"kind": "kept", "doc_id": "x", "partition": 0, "source": "x", "record": 0, "reason": ""}], schema.NOTICES
    )
    items = list(
        Aggregate({"by": ["k"], "values": []}, ROWS, SerialCommunicator())(iter([Item(2, 1, None, notice, last=True)]))
    )
    assert items == [Item(2, 1, notices=notice), Item(0, -1, last=True)]


@pytest.mark.parametrize(
    ("by", "values", "why"),
    [
        (["missing"], {"n": "count()"}, "there is no column missing"),
        (["text"], {"text": "count()"}, "two columns are named 'text'"),
        (["metadata.price"], {"n": "count()"}, "can't be grouped by metadata.price, which is double"),
        (["content_hash"], {"n": "count()"}, "can't be grouped by content_hash"),
        ([], {}, "it gives no column"),
        ([], {"n": "median(record)"}, "no function 'median'; use count, sum"),
        ([], {"n": "sum()"}, "needs an expression"),
        ([], {"n": "sum(text)"}, "text is string, and only numbers have a sum"),
        ([], {"n": "min(metadata)"}, "of which there is no min"),
        ([], {"n": "record"}, "is no call"),
    ],
)
def test_what_cannot_be_grouped_is_refused_when_it_is_added(by: Any, values: Any, why: str) -> None:
    with pytest.raises(WorkflowError, match=f"operator 'aggregate': .*{why}"):
        Workflow(metadata={"price": "float64"}).load("x").aggregate(by, values)


def test_the_schema_is_declared() -> None:
    got = aggregated_schema(
        schema.chunks({"price": "float64"}), ["doc_id"], {"n": "count()", "s": "sum(metadata.price)", "t": "max(text)"}
    )
    assert got == pa.schema([("doc_id", pa.string()), ("n", pa.int64()), ("s", pa.float64()), ("t", pa.string())])
