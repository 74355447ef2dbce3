from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from aaflow.errors import EdgeCancelled
from aaflow.operators.operator import Item
from aaflow.runtime import engine
from aaflow.runtime.engine import run_chain
from aaflow.runtime.trace import OperatorTrace


def batch(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"n": pa.array(values, pa.int64())})


def numbers(count: int) -> Iterator[Item]:
    for number in range(count):
        yield Item(0, number, batch(number), last=True)


def pass_on(items: Iterator[Item]) -> Iterator[Item]:
    yield from items


def chain(*functions):
    return [(OperatorTrace(f"op{number}"), function) for number, function in enumerate(functions)]


def test_items_come_out_in_order_and_whole():
    out = list(run_chain(chain(pass_on, pass_on, pass_on), numbers(200), 2))
    assert [item.partition for item in out] == list(range(200))
    assert all(item.last for item in out)


def test_operators_of_a_chain_overlap():
    first_is_ahead = threading.Event()

    def producer(items):
        for item in items:
            if item.partition == 1:
                first_is_ahead.set()
            yield item

    def consumer(items):
        for item in items:
            assert first_is_ahead.wait(10), "the producer never got to its second batch while this one held the first"
            yield item

    assert len(list(run_chain(chain(producer, consumer), numbers(3), 1))) == 3


def test_a_queue_bounds_how_far_the_producer_gets_ahead():
    given = []
    gate = threading.Event()

    def producer(items):
        for item in items:
            given.append(item.partition)
            if len(given) == 5:
                gate.set()
            yield item

    def consumer(items):
        for item in items:
            if item.partition == 0:
                gate.wait(0.5)
                assert len(given) <= 4
            yield item

    list(run_chain(chain(producer, consumer), numbers(50), 2))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_any_operator_ends_the_chain_with_that_error(failing):
    def fail(items):
        for item in items:
            if item.partition == 7:
                raise ValueError("record 7 is bad")
            yield item

    functions = [pass_on, pass_on, pass_on]
    functions[failing] = fail
    before = threading.active_count()
    with pytest.raises(ValueError, match="record 7 is bad"):
        list(run_chain(chain(*functions), numbers(1000), 2))
    assert threading.active_count() == before


def test_a_caller_that_stops_early_leaves_no_thread():
    before = threading.active_count()
    items = run_chain(chain(pass_on, pass_on), numbers(1000), 2)
    next(items)
    items.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("stuck", [False, True])
def test_a_caller_that_was_woken_learns_which_operator_failed(stuck, monkeypatch):
    monkeypatch.setattr(engine, "LEAVING_SECONDS", 0.2)
    waits, woken, ended = threading.Event(), threading.Event(), threading.Event()

    def fail(items):
        yield from items
        waits.wait(5)
        raise ValueError("record 7 is bad")

    def hold(items):
        for item in items:
            yield item
            if stuck:  # as in a collective whose other ranks wait for this one
                ended.wait(5)

    def deliver(items):
        for _ in items:
            waits.set()
            assert woken.wait(5)
            raise EdgeCancelled("this rank gave its edges up")

    items = run_chain(chain(fail, hold), numbers(1), 2, woken.set)
    with pytest.raises(ValueError, match="record 7 is bad") as caught, contextlib.closing(items):
        deliver(items)
    assert caught.value.__notes__ == ["in operator 'op0'"]
    ended.set()


def test_the_trace_counts_rows_and_batches():
    traced = chain(pass_on, pass_on)
    list(run_chain(traced, numbers(10), 2))
    table = traced[1][0].table("stage", 0)
    assert table.num_rows == 10
    assert sum(table["rows"].to_pylist()) == 10
    assert all(end >= start for start, end in zip(table["start"].to_pylist(), table["end"].to_pylist(), strict=True))
