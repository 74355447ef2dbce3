"""Rows that are scattered into sections and read in place are the rows that were sent."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import KINDS, make_table

from aaflow.dataplane.basic import basic_table, original_table
from aaflow.dataplane.sections import ALIGNMENT, Rows, Section, read_section

kinds = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5)


def split(table: pa.Table, targets: np.ndarray, count: int) -> list[pa.Table | None]:
    """Every section, written behind dirt, between guards that stay whole."""
    basic = basic_table(table)
    rows = Rows(basic, targets.astype(np.int32), count)
    assert not (rows.sizes % ALIGNMENT).any()
    starts = np.cumsum(rows.sizes + ALIGNMENT) - rows.sizes
    memory = np.full(int(rows.sizes.sum()) + (count + 1) * ALIGNMENT, 0xAB, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    addresses = memory.ctypes.data + first + starts
    rows.write(addresses)
    for start in starts:
        assert (memory[first + start - ALIGNMENT : first + start] == 0xAB).all()
    return [
        original_table(read_section(Section(int(address), int(size), memory), basic.schema), table.schema)
        if size
        else None
        for address, size in zip(addresses, rows.sizes, strict=True)
    ]


@given(kinds, st.integers(0, 60), st.integers(0, 2**16), st.integers(1, 5))
def test_every_row_is_in_the_section_of_its_destination(kinds: list[str], n: int, seed: int, count: int) -> None:
    table = make_table(kinds, n, seed)
    targets = np.random.default_rng(seed).integers(0, count, n)
    for destination, section in enumerate(split(table, targets, count)):
        expected = [row for row, to in zip(table.to_pylist(), targets, strict=True) if to == destination]
        assert (section is None) == (not expected)
        if section is not None:
            section.validate(full=True)
            assert section.schema == table.schema
            assert section.to_pylist() == expected


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_column_can_be_sent(kind: str) -> None:
    for seed in range(4):
        table = make_table([kind, "int8", kind], 50, seed)
        (section,) = split(table, np.zeros(50), 1)
        assert section is not None
        section.validate(full=True)
        assert section.to_pylist() == table.to_pylist()
