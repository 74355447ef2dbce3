"""The benchmark of the data plane measures what it says it does; its figures are no test's business."""

from __future__ import annotations

import os

import dataplane
import pytest
from measure.figures import figure
from measure.processes import flow, shuffle
from rich.console import Console


@pytest.mark.serial
@pytest.mark.parametrize("name", ["memcpy", "edge, in place", "edge, TCP, CURVE"])
def test_a_channel_brings_every_byte_of_batches_of_all_sizes(name: str) -> None:
    """Its ends compare the sum of what was read with that of what was sent."""
    cores = sorted(os.sched_getaffinity(0))
    computed = name != "edge, TCP, CURVE"
    found = flow(name, [64, 1024], computed=computed, seconds=0.0, least=6, cores=[cores[0], cores[-1]], pool=1024)
    assert {size: each["batches"] for size, each in found.items()} == {64: 6, 1024: 6}
    assert all(each["bytes"] > 6 * size * 2000 and each["rate"] > 0 for size, each in found.items())


@pytest.mark.serial
@pytest.mark.parametrize("name", ["mpi", "pickle"])
def test_a_shuffle_brings_every_row_to_its_rank(name: str) -> None:
    """The ranks compare where rows are and what they hold."""
    found = shuffle(name, 2, 4_000_000)
    assert len(found["seconds"]) == 3
    assert found["rate"] > 0


def test_a_ratio_below_its_target_is_called_missed_where_the_target_holds() -> None:
    rates = {
        "edge": {1024: figure([1.0]), 16384: figure([3.0]), 65536: figure([8.0])},
        "memcpy": {size: figure([10.0]) for size in (1024, 16384, 65536)},
    }
    case = dataplane.Case(
        ("edge", "memcpy"),
        (1024, 16384, 65536),
        "rows",
        "GB/s",
        1,
        (dataplane.Target("edge", "memcpy", 0.7, 16384),),
        dict,
    )
    console = Console(record=True, width=200)
    console.print(dataplane.table("edge", case, {"rates": rates, "cpu": {}, "calm": True, "missing": ["iceoryx2"]}))
    shown = console.export_text()
    row = next(line for line in shown.splitlines() if "at least 0.7" in line)
    assert ["missed" in cell or "met" in cell for cell in row.split("│")[2:5]] == [False, True, True]
    assert row.index("missed") < row.index(" met")
    assert "not here: iceoryx2" in shown
