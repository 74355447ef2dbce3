"""Whom the end of a run blames when ranks only say whom they lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from aaflow.runtime import records
from aaflow.runtime.ending import first_loss

Loss = tuple[str, int, str, int]


def lose(folder: Path, *losses: Loss) -> None:
    """Ranks that say, in this order, whom they lost."""
    (folder / "errors").mkdir()
    for time, (stage, rank, gone, number) in enumerate(losses):
        record = {"stage": stage, "rank": rank, "lost": [gone, number], "error": "it is gone", "time": float(time)}
        records.write(str(folder / "errors" / f"{stage}.{rank}.json"), record)


@pytest.mark.parametrize(
    "losses",
    [
        [("embed", 0, "hold", 0), ("upsert", 0, "embed", 0)],
        # A neighbour of a neighbour may tell sooner.
        [("upsert", 0, "embed", 0), ("upsert", 1, "embed", 0), ("embed", 0, "hold", 0)],
        [("load", 1, "hold", 0), ("upsert", 0, "embed", 1), ("embed", 1, "hold", 0)],
    ],
)
def test_who_stands_still_is_blamed_and_not_who_left_because_of_it(tmp_path: Path, losses: list[Loss]) -> None:
    lose(tmp_path, *losses)
    blamed = first_loss(str(tmp_path))
    assert blamed is not None
    assert (blamed.stage, blamed.rank) == ("hold", 0)
    assert str(blamed).startswith("stage 'hold' failed: its rank 0 is gone or stands still: ")


def test_a_stage_that_others_lost_says_why_itself_if_it_can(tmp_path: Path) -> None:
    lose(tmp_path, ("embed", 0, "hold", 0))
    own = {"stage": "hold", "rank": 0, "type": "ValueError", "error": "not to my taste", "lost": None, "time": -1.0}
    records.write(str(tmp_path / "errors" / "hold.0.json"), own)
    blamed = first_loss(str(tmp_path))
    assert blamed is not None
    assert str(blamed).startswith("stage 'hold' failed on rank 0: ValueError: not to my taste")


def test_of_two_that_lost_each_other_one_is_blamed(tmp_path: Path) -> None:
    lose(tmp_path, ("embed", 0, "upsert", 0), ("upsert", 0, "embed", 0))
    blamed = first_loss(str(tmp_path))
    assert blamed is not None
    assert blamed.stage in ("embed", "upsert")


def test_where_nobody_lost_anyone_nobody_is_blamed(tmp_path: Path) -> None:
    assert first_loss(str(tmp_path)) is None
