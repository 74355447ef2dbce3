"""What every communicator has to do, as a program of the ranks of one group: ``conformance.py BACKEND``.

Hypothesis draws on rank 0, and a case fails on all ranks when it fails on one, so that they stay together.
Rank 0 prints a JSON line for each case: its name and what went wrong, or null.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tables import KEYS, KINDS, SORTABLE, make_table

from aaflow.dataplane.communicator import Communicator, communicator
from aaflow.errors import CollectiveError

Case = Callable[[Communicator], None]
CASES: list[Case] = []

#: Examples of each property.
EXAMPLES = 15


def for_all(comm: Communicator, body: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> None:
    """Run ``body`` on every rank, with what Hypothesis draws on rank 0; the first failure ends it on all of them."""
    failure: Exception | None = None

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(st.tuples(*strategies))
    def draw(drawn: tuple[Any, ...]) -> None:
        nonlocal failure
        if failure is not None:
            raise failure
        try:
            told(comm, drawn)
            with together(comm):
                body(*drawn)
        except AssertionError as error:
            failure = error
            raise

    if comm.rank == 0:
        try:
            draw()
        finally:
            if failure is None:
                told(comm, None)
        return
    while (drawn := told(comm, None)) is not None:
        with together(comm):
            body(*drawn)


def told(comm: Communicator, value: Any) -> Any:
    """What rank 0 says."""
    if comm.size == 1:
        return value
    from mpi4py import MPI

    return MPI.COMM_WORLD.bcast(value)


kinds = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5)
seeds = st.integers(0, 2**16)


def case(function: Case) -> Case:
    CASES.append(function)
    return function


@contextmanager
def together(comm: Communicator) -> Iterator[None]:
    """Raise on every rank what was raised in the block on one."""
    failure = ""
    try:
        yield
    except Exception:
        failure = traceback.format_exc()
    failures = [failure]
    if comm.size > 1:
        from mpi4py import MPI

        failures = MPI.COMM_WORLD.allgather(failure)
    for rank, text in enumerate(failures):
        if text:
            raise AssertionError(f"rank {rank} of {comm.size}: {text}") from None


def rows_of(size: int) -> st.SearchStrategy[list[int]]:
    """The rows of every rank's table."""
    return st.lists(st.one_of(st.just(0), st.integers(0, 40)), min_size=size, max_size=size)


def same(got: pa.Table, rows: Sequence[dict[str, object]], schema: pa.Schema) -> None:
    got.validate(full=True)
    assert got.schema.equals(schema), f"{got.schema} is not {schema}"
    assert got.to_pylist() == list(rows), f"{got.to_pylist()} is not {rows}"


@case
def rows_go_to_the_rank_that_was_named(comm: Communicator) -> None:
    def check(kinds: list[str], rows: list[int], seed: int) -> None:
        tables = [make_table(kinds, count, seed + rank) for rank, count in enumerate(rows)]
        targets = [np.random.default_rng(seed + r).integers(0, comm.size, n, np.int32) for r, n in enumerate(rows)]
        got = comm.shuffle(tables[comm.rank], targets[comm.rank])
        sent = zip(tables, targets, strict=True)
        expected = [row for t, target in sent for row, to in zip(t.to_pylist(), target, strict=True) if to == comm.rank]
        same(got, expected, tables[0].schema)

    for_all(comm, check, kinds, rows_of(comm.size), seeds)


@case
def every_kind_of_column_arrives(comm: Communicator) -> None:
    for number, kind in enumerate(KINDS):
        with together(comm):
            tables = [make_table([kind, "int8"], 30, 97 * number + rank) for rank in range(comm.size)]
            target = np.arange(30, dtype=np.int32) % comm.size
            got = comm.shuffle(tables[comm.rank], target)
            expected = [row for t in tables for row, to in zip(t.to_pylist(), target, strict=True) if to == comm.rank]
            same(got, expected, tables[0].schema)


@case
def equal_keys_meet_on_one_rank(comm: Communicator) -> None:
    def check(keys: list[str], others: list[str], rows: list[int], seed: int) -> None:
        tables = [make_table(keys + others, count, seed + rank) for rank, count in enumerate(rows)]
        names = tables[0].schema.names[: len(keys)]
        got = comm.shuffle(tables[comm.rank], names)
        got.validate(full=True)
        every = comm.all_gather(got)
        sent = sorted(str(row) for t in tables for row in t.to_pylist())
        assert sorted(str(row) for t in every for row in t.to_pylist()) == sent
        homes: dict[str, int] = {}
        for rank, t in enumerate(every):
            for row in t.select(names).to_pylist():
                key = str(list(row.values())).replace("-0.0", "0.0")
                assert homes.setdefault(key, rank) == rank, f"{key} on ranks {homes[key]} and {rank}"
        # Rows come by source rank and in that rank's order.
        mine = iter(got.to_pylist())
        row = next(mine, None)
        for t in tables:
            for candidate in t.to_pylist():
                if row is not None and str(candidate) == str(row):
                    row = next(mine, None)
        assert row is None, f"{row} is out of order"

    for_all(comm, check, st.lists(st.sampled_from(KEYS), min_size=1, max_size=2), kinds, rows_of(comm.size), seeds)


@case
def keys_spread_over_the_ranks(comm: Communicator) -> None:
    with together(comm):
        got = comm.shuffle(pa.table({"key": [f"document {comm.rank}/{n}" for n in range(3000)]}), ["key"])
        assert 0.9 * 3000 < got.num_rows < 1.1 * 3000


@case
def how_a_key_is_encoded_does_not_matter(comm: Communicator) -> None:
    values = ["a", "b", None, "c", "longer than eight", "b"] * 5
    plain = pa.table({"key": values})
    # Each rank holds the same values, in other chunks, behind other offsets.
    shifted = pa.table({"key": ["x"] * comm.rank + values}).slice(comm.rank)
    cut = pa.concat_tables([shifted.slice(0, comm.rank), shifted.slice(comm.rank)])
    with together(comm):
        got = comm.shuffle(cut, ["key"])
        counts = got.to_pylist()
        for row in plain.to_pylist():
            assert counts.count(row) in (0, plain.to_pylist().count(row) * comm.size)
        encoded = pa.table({"key": cut["key"].dictionary_encode()})
        again = comm.shuffle(encoded, ["key"])
        assert again["key"].type == pa.dictionary(pa.int32(), pa.string())
        assert again["key"].to_pylist() == got["key"].to_pylist()
        zeros = pa.table({"key": [0.0 if comm.rank % 2 else -0.0, float("nan"), -float("nan")]})
        homes = comm.all_gather(comm.shuffle(zeros, ["key"]))
        assert sum(any(value == 0 for value in t["key"].to_pylist()) for t in homes) == 1
        assert sum(any(value != value for value in t["key"].to_pylist()) for t in homes) == 1


@case
def everybody_gets_the_table_of_rank_0(comm: Communicator) -> None:
    def check(kinds: list[str], rows: int, seed: int) -> None:
        table = make_table(kinds, rows, seed)
        same(comm.broadcast(table if comm.rank == 0 else None), table.to_pylist(), table.schema)

    for_all(comm, check, kinds, st.integers(0, 40), seeds)


@case
def tables_are_gathered_by_rank(comm: Communicator) -> None:
    def check(kinds: list[str], rows: list[int], seed: int) -> None:
        tables = [make_table(kinds, count, seed + rank) for rank, count in enumerate(rows)]
        gathered = comm.gather(tables[comm.rank])
        assert (gathered is not None) == (comm.rank == 0)
        for received in (gathered or [], comm.all_gather(tables[comm.rank])):
            for table, got in zip(tables, received, strict=bool(received)):
                same(got, table.to_pylist(), table.schema)

    for_all(comm, check, kinds, rows_of(comm.size), seeds)


@case
def the_first_rows_of_all_ranks_arrive_on_rank_0(comm: Communicator) -> None:
    order = st.lists(
        st.tuples(st.sampled_from(SORTABLE), st.sampled_from(["ascending", "descending"])), min_size=1, max_size=2
    )

    def check(order: list[tuple[str, str]], grouped: bool, k: int, rows: list[int], seed: int) -> None:
        kinds = [kind for kind, _ in order] + ["small_dictionary", "vector"]
        tables = [make_table(kinds, count, seed + rank) for rank, count in enumerate(rows)]
        names = tables[0].schema.names
        group = names[-2] if grouped else None
        asked = [(name, direction) for name, (_, direction) in zip(names, order)]  # noqa: B905 - the keys come first
        got = comm.reduce_topk(tables[comm.rank], k, asked, group)
        assert (got is not None) == (comm.rank == 0)
        if got is not None:
            same(got, first_rows([row for t in tables for row in t.to_pylist()], k, asked, group), tables[0].schema)

    for_all(comm, check, order, st.booleans(), st.integers(0, 12), rows_of(comm.size), seeds)


def first_rows(
    rows: list[dict[str, object]], k: int, order: list[tuple[str, str]], group: str | None
) -> list[dict[str, object]]:
    """What reduce_topk means, in plain Python."""
    for name, direction in reversed(order if group is None else [(group, "ascending"), *order]):
        known = [row for row in rows if row[name] is not None]
        known.sort(key=lambda row: row[name], reverse=direction == "descending")  # type: ignore[arg-type, return-value]
        rows = known + [row for row in rows if row[name] is None]
    if group is None:
        return rows[:k]
    seen: dict[object, int] = {}
    kept = []
    for row in rows:
        seen[row[group]] = seen.get(row[group], 0) + 1
        if seen[row[group]] <= k:
            kept.append(row)
    return kept


def refused(comm: Communicator, operation: Callable[[], object], rank: int, *words: str) -> None:
    """The operation raises on every rank, with one text that names the rank and the cause; and the next one works."""
    with together(comm):
        with pytest.raises(CollectiveError) as raised:
            operation()
        text = str(raised.value)
        assert raised.value.rank == rank, text
        assert all(word in text for word in (f"rank {rank}", *words)), text
        assert {t["text"][0].as_py() for t in comm.all_gather(pa.table({"text": [text]}))} == {text}


@case
def what_one_rank_cannot_do_is_refused_on_all(comm: Communicator) -> None:
    last = comm.size - 1
    mine = pa.table({"key" if comm.rank == last else "id": [1, 2], "n": [1.5, 2.5]}).rename_columns(["id", "n"])
    refused(comm, lambda: comm.shuffle(mine, ["nokey" if comm.rank == last else "id"]), last, "nokey", "id, n")
    to = np.array([0, 0] if comm.rank != last else [0, comm.size], np.int32)
    refused(comm, lambda: comm.shuffle(mine, to), last, str(comm.size))
    refused(comm, lambda: comm.shuffle(mine, np.zeros(2 if comm.rank != last else 3, np.int32)), last, "2 rows")
    maps = pa.table({"key": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))})
    refused(comm, lambda: comm.shuffle(maps, ["key"]), 0, "map")
    refused(comm, lambda: comm.reduce_topk(mine, 2, [("id", "up" if comm.rank == last else "ascending")]), last, "up")
    refused(comm, lambda: comm.broadcast(None), 0)


@case
def schemas_that_differ_are_refused(comm: Communicator) -> None:
    if comm.size == 1:
        return
    other = pa.int32() if comm.rank == comm.size - 1 else pa.int64()
    mine = pa.table({"id": pa.array([1, 2], pa.string() if other is None else pa.int8()), "n": pa.array([1, 2], other)})
    for operation in (
        lambda: comm.shuffle(mine, ["id"]),
        lambda: comm.gather(mine),
        lambda: comm.all_gather(mine),
        lambda: comm.reduce_topk(mine, 1, [("n", "ascending")]),
    ):
        refused(comm, operation, comm.size - 1, "n: int32", "n: int64")


@case
def metadata_of_a_schema_is_each_rank_s_own(comm: Communicator) -> None:
    with together(comm):
        mine = pa.table({"n": [1, 2]}).replace_schema_metadata({"rank": str(comm.rank)})
        got = comm.shuffle(mine, np.array([0, comm.size - 1], np.int32))
        assert got.schema.metadata == mine.schema.metadata


@case
def results_stay_as_they_are_when_more_is_sent(comm: Communicator) -> None:
    with together(comm):
        kept = []
        for number in range(12):
            tables = [make_table(["text", "vector", "int64"], 200, 1000 * number + rank) for rank in range(comm.size)]
            target = np.random.default_rng(number).integers(0, comm.size, 200, np.int32)
            expected = [row for t in tables for row, to in zip(t.to_pylist(), target, strict=True) if to == comm.rank]
            kept.append((comm.shuffle(tables[comm.rank], target), expected))
            if number % 3 == 1:
                del kept[0]
        for got, expected in kept:
            same(got, expected, got.schema)


@case
def nobody_passes_a_barrier_before_all_have_come(comm: Communicator) -> None:
    for late in sorted({0, comm.size - 1}):
        comm.barrier()
        if comm.rank == late:
            time.sleep(0.2)
        came = time.monotonic()  # one clock for all processes of a machine
        comm.barrier()
        passed = time.monotonic()
        with together(comm):
            times = comm.all_gather(pa.table({"came": [came], "passed": [passed]}))
            last = max(t["came"][0].as_py() for t in times)
            assert all(t["passed"][0].as_py() >= last for t in times), f"a rank did not wait for rank {late}"


@case
def waiting_costs_no_core(comm: Communicator) -> None:
    comm.barrier()
    used = 0.0
    if comm.rank == 0:
        time.sleep(2)
        comm.broadcast(pa.table({"n": [1]}))
    else:
        began = time.process_time()
        comm.broadcast(None)
        used = time.process_time() - began
    with together(comm):  # one that failed alone would leave the others waiting for it
        assert used < 0.04, f"{used:.3f} s of a core in 2 s of waiting"


def communicators(backend: str) -> Iterator[tuple[str, Communicator]]:
    """The backend as a stage gets it, and on three ranks its forms that other machines would bring about."""
    global EXAMPLES
    first = communicator(backend)
    yield backend, first
    if backend == "mpi" and first.size > 2:
        from aaflow.dataplane.mpi import MpiCommunicator

        EXAMPLES = 5
        yield "mpi, two nodes", MpiCommunicator(color=first.rank % 2)
        yield "mpi, nodes of one rank", MpiCommunicator(color=first.rank)
        yield "mpi, windows of 8 KiB", MpiCommunicator(window_bytes=8192)
        yield "mpi, windows of 16 KiB, two nodes", MpiCommunicator(color=first.rank % 2, window_bytes=16384)
        yield "mpi, no shared memory", MpiCommunicator(window_bytes=0)
    if backend == "cylon" and first.size > 1:
        from aaflow.dataplane.cylon import CylonCommunicator

        EXAMPLES = 10
        yield "cylon, rounds of 2 KiB", CylonCommunicator(round_bytes=2048)


def main(backend: str) -> None:
    faulthandler.dump_traceback_later(100, exit=True)
    for name, comm in communicators(backend):
        for function in CASES:
            if function is waiting_costs_no_core and name != backend:
                continue
            problem = None
            try:
                function(comm)
            except Exception as error:
                problem = str(error)
            if comm.rank == 0:
                sys.stdout.write(json.dumps([f"{name}: {function.__name__}", problem]) + "\n")
                sys.stdout.flush()
            if problem is not None:
                return  # ranks that failed may not be at the same operation


if __name__ == "__main__":
    main(*sys.argv[1:])
