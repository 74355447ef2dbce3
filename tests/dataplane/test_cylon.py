"""What the Cylon communicator does around the exchange; the exchange itself is in the conformance suite."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import run, run_cases
from tables import KINDS, NEWER, make_column

from aaflow.dataplane import cylon

CARRIED = pa.types.is_integer, pa.types.is_string, pa.types.is_binary, pa.types.is_fixed_size_binary
BESIDE = {"null", "large_text", "large_list", "list", "struct", "map", "dictionary", "small_dictionary", "dictionaries"}


@pytest.mark.parametrize("kind", KINDS)
@given(rows=st.integers(0, 40), seed=st.integers(0, 2**16))
def test_what_cylon_carries_comes_back_as_it_was(kind: str, rows: int, seed: int) -> None:
    """It is given only types that it carries right, and nothing that begins behind an offset."""
    column = make_column(kind, rows, np.random.default_rng(seed))
    if not column.num_chunks or not all(map(cylon._is_carried, column.chunks)):
        inner_nulls = pa.types.is_fixed_size_list(column.type) and "None" in str(column.to_pylist())
        assert kind in {*BESIDE, *NEWER} or inner_nulls or not column.num_chunks
        return
    assert kind not in {*BESIDE, *NEWER}
    whole = cylon._whole(column)
    plain = cylon._plain(whole)
    plain.validate(full=True)
    assert plain.offset == 0
    assert any(is_kind(plain.type) for is_kind in CARRIED)
    back = cylon._original(plain, column.type)
    back.validate(full=True)
    assert back.type == column.type
    assert back.to_pylist() == column.to_pylist()


def test_a_vector_is_handed_over_in_place() -> None:
    values = pa.array(np.arange(12, dtype=np.float32))
    vectors = pa.FixedSizeListArray.from_arrays(values, 4)
    plain = cylon._plain(cylon._whole(pa.chunked_array([vectors])))
    assert plain.type == pa.binary(16)
    assert plain.buffers()[1].address == values.buffers()[1].address
    assert cylon._original(plain, vectors.type).values.buffers()[1].address == values.buffers()[1].address


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.randoms(use_true_random=False), st.booleans())
def test_rows_are_put_back_into_the_order_of_ranks_and_rows(counts: list[int], draw, mixed: bool) -> None:
    """Cylon gives the rows of each rank in a run, in any order of the ranks; were they mixed, they would be sorted."""
    runs = [[(rank << 32) + row for row in range(count)] for rank, count in enumerate(counts)]
    draw.shuffle(runs)
    numbers = [number for run in runs for number in run]
    if mixed:
        draw.shuffle(numbers)
    order = np.array(numbers, np.int64)
    parts = list(cylon._by_source((pa.table({"number": order}), order)))
    assert sorted(rank for rank, _ in parts) == [rank for rank, count in enumerate(counts) if count]
    for rank, rows in parts:
        assert rows["number"].to_pylist() == [(rank << 32) + row for row in range(counts[rank])]


@pytest.mark.parametrize("ranks", [2, 3])
def test_it_does_what_all_communicators_do_over_an_exchange_like_cylon_s(ranks: int) -> None:
    run_cases(ranks, "cylon_program.py", "conformance")


def test_what_fails_in_one_rank_is_raised_in_all_before_they_wait_in_cylon() -> None:
    run(3, "cylon_program.py", "failures")


@pytest.mark.serial
def test_ranks_sleep_while_another_imports_pycylon() -> None:
    run(2, "cylon_program.py", "import")


@pytest.mark.skipif(importlib.util.find_spec("pycylon") is not None, reason="pycylon is installed")
def test_without_pycylon_the_error_says_how_to_name_an_interpreter_that_has_it() -> None:
    code = "from aaflow.dataplane.communicator import communicator; communicator('cylon')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DependencyError: communicator 'cylon' needs pycylon" in done.stderr
    assert "[environments.cylon] python = " in done.stderr
